"""One score per leaf, given to all of its entries: the masks of systems that encrypt whole layers.

Leaves are ordered by depth, reversed depth, mean magnitude, or named paths; within a leaf entries are taken in index order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import GradientContext, Metric, Scores


def layerwise(*, order: Literal["depth", "reverse", "magnitude"] = "depth", paths: Sequence[str] | None = None) -> Metric:
    """Gives all entries of a leaf one score.

    Args:
      order: "depth" encrypts the first layers first (leaves in the natural order of their paths), "reverse" the last ones, "magnitude"
        the leaves with the largest mean |g|.
      paths: shell patterns of leaves that come before all others, the first pattern first, such as ["fc/**"].
    """

    def score(context: GradientContext) -> Scores:
        names = trees.paths(context.grads)
        position = {name: i for i, name in enumerate(sorted(names, key=trees.natural))}
        if paths is not None:
            trees.matching_leaves(context.grads, paths)  # a pattern that names nothing is an error
        leaves, treedef = jax.tree.flatten(context.grads)
        scores = []
        for name, leaf in zip(names, leaves, strict=True):
            if order == "magnitude":
                value = jnp.abs(leaf).mean()
                value = value / (1 + value)  # below 1, so that named paths stay ahead
            else:
                depth = position[name] / len(names)
                value = jnp.asarray(1 - depth if order == "depth" else depth, leaf.dtype)
            first = next((i for i, p in enumerate(paths or ()) if trees.matches(name, [p])), None)
            bonus = 0 if first is None else 2 * (len(paths or ()) - first)
            scores.append(jnp.full(leaf.shape, value + bonus, leaf.dtype))
        return jax.tree.unflatten(treedef, scores)

    return Metric(score)
