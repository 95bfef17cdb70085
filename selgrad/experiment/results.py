"""From a block's outcome to what one lane found, and whether that is a success.

The success rule is a measure with a direction of its own and a threshold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from selgrad import measures
from selgrad.config import SuccessConfig
from selgrad.errors import UsageError
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane
from selgrad.measures import Measure
from selgrad.modality import LaneResult, Modality, Outcome


def decode_lane(setting: Setting, outcome: Outcome, row: int, column: int, lane: Lane) -> LaneResult:
    """What a block on the device left of one lane, with what only the host can measure: decoded text."""
    numbers = {name: float(value[row, column]) for name, value in outcome.measures.items()}
    found = LaneResult(numbers, np.asarray(outcome.outputs[row, column]), np.asarray(outcome.labels[row, column]))
    batch = jax.tree.map(lambda leaf: leaf[lane.sample], setting.batches)
    guess = setting.modality.guess(setting.public, setting.dataset)
    return setting.modality.finish(setting.dataset, setting.model, batch, found, guess, setting.others)


@dataclasses.dataclass(frozen=True)
class SuccessRule:
    """When an attack has succeeded.

    Attributes:
      measure: that judges.
      threshold: that it must pass.
    """

    measure: Measure
    threshold: float

    @classmethod
    def of(cls, given: SuccessConfig, modality: Modality) -> SuccessRule:
        """As configured, or what the modality judges by."""
        measure = modality.judge if given.measure is None else measures.named(given.measure)
        threshold = measure.threshold if given.threshold is None else given.threshold
        assert threshold is not None
        return cls(measure, threshold)

    def __call__(self, found: Mapping[str, float]) -> bool:
        """Whether the attack with these measures succeeded.

        Raises:
          UsageError: if the data have no such measure.
        """
        if self.measure.name not in found:
            raise UsageError(f"success: these data have no measure {self.measure.name!r}; they have {', '.join(found)}")
        return self.measure.passed(found[self.measure.name], self.threshold)

    def __str__(self) -> str:
        return self.measure.rule(self.threshold)
