"""Random significance: a uniform draw per entry, the control that every other metric must beat at equal ratio.

It is also the only metric here that does not depend on the data, so its mask reveals nothing about them.
"""

from __future__ import annotations

import jax

from selgrad import trees
from selgrad.base import GradientContext, Metric, Scores


def random() -> Metric:
    """Scores ~ U(0, 1), independent per entry, from `context.key`."""

    def score(context: GradientContext) -> Scores:
        return trees.split(jax.random.uniform(context.key, (trees.size(context.grads),)), context.grads)

    return score
