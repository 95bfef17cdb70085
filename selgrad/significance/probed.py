"""A metric that estimates norms of Jacobian rows from Gaussian probes, with the standard error of what it estimates.

For v ~ N(0, I), (J v)_i^2 / |J_i|^2 is chi-squared with one degree of freedom, so the error of a mean of them is known exactly (hutchinson1990).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from selgrad.base import GradientContext, Metric, Scores


@dataclasses.dataclass(frozen=True)
class Probed:
    """A metric that may use probes.

    Attributes:
      score: the metric itself.
      num_probes: (input coordinates of a batch, batch size) -> probes that it then uses; 0 where it is exact.
    """

    score: Metric
    num_probes: Callable[[int, int], int]

    def __call__(self, context: GradientContext) -> Scores:
        """The scores."""
        return self.score(context)

    def standard_error(self, num_inputs: int, batch_size: int) -> float:
        """Of a squared norm, relative to it: sqrt(2 / probes), and 0 where it is exact; of a norm about half of that."""
        probes = self.num_probes(num_inputs, batch_size)
        return math.sqrt(2 / probes) if probes else 0.0
