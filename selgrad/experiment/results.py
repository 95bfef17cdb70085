"""From a block's outcome to what one lane found, and whether that is a success.

The success rule is a level, or a measure with a direction of its own and a threshold. Whether a search has ended is judged beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from selgrad import measures
from selgrad.base import Attack, Batch, Observation, Reconstruction
from selgrad.config import SuccessConfig
from selgrad.errors import UsageError
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane
from selgrad.measures import LEVELS, Measure
from selgrad.modality import LaneResult, Outcome


def decode_lane(setting: Setting, outcome: Outcome, row: int, column: int, lane: Lane) -> LaneResult:
    """What a block on the device left of one lane, with what only the host can measure: decoded text."""
    numbers = {name: float(value[row, column]) for name, value in outcome.measures.items()}
    found = LaneResult(numbers, np.asarray(outcome.outputs[row, column]), np.asarray(outcome.labels[row, column]))
    batch = jax.tree.map(lambda leaf: leaf[lane.sample], setting.batches)
    guess = setting.modality.guess(setting.public, setting.dataset)
    return setting.modality.finish(setting.dataset, setting.model, batch, found, guess, setting.others)


def judged(setting: Setting, attack: Attack, observation: Observation | None, batch: Batch, found: Reconstruction) -> dict[str, Array]:
    """Whether an attack has found all that it looks for, which only whoever knows the truth can say.

    Returns:
      `objective_at_truth`, the attack's own objective beside the truth (`Modality.near`), NaN where it has none; and `converged`, whether what it returned
      matches at least as well, so that another result is another explanation of what is visible and no weakness of the search. An attack in closed form has
      converged where it had anything to read. `restarts_converged`, the share of its restarts of which that holds.
    """
    if attack.objective is None or observation is None:
        ended = jnp.asarray(found.moved, bool)
        return {"objective_at_truth": jnp.full((), jnp.nan), "converged": ended, "restarts_converged": ended.astype(jnp.float32)}
    model = observation.model
    embedded = setting.modality.near(model.embed(observation.params, batch.inputs))
    beside = attack.objective(observation, embedded, model.targets(batch))
    every = jnp.mean((found.all_objectives <= beside).astype(jnp.float32))
    return {"objective_at_truth": beside, "converged": found.objective <= beside, "restarts_converged": every}


@dataclasses.dataclass(frozen=True)
class SuccessRule:
    """When an attack has succeeded.

    Attributes:
      level: that it must reach; "" where a measure judges.
      measure: that judges otherwise.
      threshold: that it must pass.
    """

    level: str
    measure: Measure
    threshold: float

    @classmethod
    def of(cls, given: SuccessConfig, setting: Setting) -> SuccessRule:
        """As configured; or by whether the truth is told from the data set's other inputs; or, where there are none, by what the modality judges by.

        Raises:
          UsageError: if a level is asked for that takes other inputs, and there are none.
        """
        chosen = given.measure is not None or given.threshold is not None
        if given.level == "recognisable" and not len(setting.others):
            raise UsageError(
                "success: level='recognisable' tells the truth from other inputs of the data set, and there are none; name a measure and a threshold"
            )
        level = given.level or ("" if chosen or not len(setting.others) else "recognisable")
        measure = setting.modality.judge if given.measure is None else measures.named(given.measure)
        threshold = measure.threshold if given.threshold is None else given.threshold
        assert threshold is not None
        return cls(level, measure, threshold)

    def __call__(self, found: Mapping[str, float], level: str) -> bool:
        """Whether the attack with these measures, which reached this level, succeeded.

        Raises:
          UsageError: if the data have no such measure.
        """
        if self.level:
            return LEVELS.index(level) >= LEVELS.index(self.level)
        if self.measure.name not in found:
            raise UsageError(f"success: these data have no measure {self.measure.name!r}; they have {', '.join(found)}")
        return self.measure.passed(found[self.measure.name], self.threshold)

    def __str__(self) -> str:
        return f"level: {self.level}" if self.level else self.measure.rule(self.threshold)
