"""Turns a block's outcome into the result of one lane, and judges whether that is a success.

The success rule is a level, or a measure with a direction of its own and a threshold. Whether a search has converged is judged separately.
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
    """Returns one lane's result from a block on the device, with what only the host can measure: decoded text."""
    numbers = {name: float(value[row, column]) for name, value in outcome.measures.items()}
    result = LaneResult(numbers, np.asarray(outcome.outputs[row, column]), np.asarray(outcome.labels[row, column]))
    batch = jax.tree.map(lambda leaf: leaf[lane.sample], setting.batches)
    guess = setting.modality.guess(setting.public, setting.dataset)
    return setting.modality.finish(setting.dataset, setting.model, batch, result, guess, setting.others)


def judged(setting: Setting, attack: Attack, observation: Observation | None, batch: Batch, reconstruction: Reconstruction) -> dict[str, Array]:
    """Judges whether an attack's search has converged, which takes knowledge of the truth.

    Returns:
      `objective_at_truth`, the attack's own objective next to the truth (`Modality.near`), NaN where it has none; `misfit` and `misfit_at_truth`, the parts of
      the objective that compare updates, without regularisers; `converged`, whether its result explains what is visible at least as well as the truth, so that
      a wrong result is another explanation and not a weakness of the search (an attack in closed form has converged where it had anything to read); and
      `restarts_converged`, the share of its restarts for which that holds.
    """
    nothing = jnp.full((), jnp.nan)
    if attack.objective is None or observation is None:
        ended = jnp.asarray(reconstruction.moved, bool)
        unmeasured = {"objective_at_truth": nothing, "misfit": nothing, "misfit_at_truth": nothing}
        return {**unmeasured, "converged": ended, "restarts_converged": ended.astype(jnp.float32)}
    model = observation.model
    embedded = setting.modality.near(model.embed(observation.params, batch.inputs))
    targets = model.targets(batch)
    objective = attack.objective(observation, embedded, targets)
    at_truth = objective if attack.misfit is None else attack.misfit(observation, embedded, targets)
    misfits = reconstruction.all_objectives if reconstruction.all_misfits is None else reconstruction.all_misfits
    ended = misfits <= at_truth
    return {
        "objective_at_truth": objective,
        "misfit": misfits[reconstruction.restart],
        "misfit_at_truth": at_truth,
        "converged": ended[reconstruction.restart],
        "restarts_converged": jnp.mean(ended.astype(jnp.float32)),
    }


@dataclasses.dataclass(frozen=True)
class SuccessRule:
    """Decides when an attack has succeeded.

    Attributes:
      level: the level that it must reach; "" where a measure judges.
      measure: the measure that judges otherwise.
      threshold: the threshold that the measure must pass.
    """

    level: str
    measure: Measure
    threshold: float

    @classmethod
    def of(cls, config: SuccessConfig, setting: Setting) -> SuccessRule:
        """Returns the configured rule; else whether the truth is told from the data set's other inputs; else, without any, the modality's own measure.

        Raises:
          UsageError: if the configured level takes other inputs, and there are none.
        """
        chosen = config.measure is not None or config.threshold is not None
        if config.level == "recognisable" and not len(setting.others):
            raise UsageError(
                "success: level='recognisable' tells the truth from other inputs of the data set, and there are none; name a measure and a threshold"
            )
        level = config.level or ("" if chosen or not len(setting.others) else "recognisable")
        measure = setting.modality.judge if config.measure is None else measures.named(config.measure)
        threshold = measure.threshold if config.threshold is None else config.threshold
        assert threshold is not None
        return cls(level, measure, threshold)

    def __call__(self, measured: Mapping[str, float], level: str) -> bool:
        """Returns whether the attack with these measures, which reached this level, succeeded.

        Raises:
          UsageError: if the data have no such measure.
        """
        if self.level:
            return LEVELS.index(level) >= LEVELS.index(self.level)
        if self.measure.name not in measured:
            raise UsageError(f"success: these data have no measure {self.measure.name!r}; they have {', '.join(measured)}")
        return self.measure.passed(measured[self.measure.name], self.threshold)

    def __str__(self) -> str:
        return f"level: {self.level}" if self.level else self.measure.rule(self.threshold)
