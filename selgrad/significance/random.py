"""Random significance: a uniform draw per entry, the control that every other metric must beat at equal ratio.

It does not depend on the data, so its mask reveals nothing about them.
"""

from __future__ import annotations

import jax

from selgrad import trees
from selgrad.base import GradientContext, Metric, Scores


def random(*, seed: int | None = None) -> Metric:
    """Scores ~ U(0, 1), independent per entry.

    Args:
      seed: None draws from `context.key`, afresh for each sample and round; a number gives every client the same scores in every round, so that entries
        hidden once stay hidden.
    """

    def score(context: GradientContext) -> Scores:
        key = context.key if seed is None else jax.random.key(seed)
        return trees.unravel(jax.random.uniform(key, (trees.size(context.grads),)), context.grads)

    return Metric(score, draws=seed is None)
