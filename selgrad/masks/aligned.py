"""Whole rows, columns or ciphertext slots instead of single entries: an index list of few, large units reveals little about the data.

Bian et al. and FedML-HE encrypt single entries (jin2023fedmlhe, section 3); a CKKS ciphertext holds a fixed number of slots, so blocks of that size cost no
padding.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Ranks, Scores, Selector
from selgrad.errors import UsageError

Unit: TypeAlias = Literal["rows", "columns", "slots"]


def aligned(*, unit: Unit = "columns", size: int = 2048) -> Selector:
    """Ranks groups of entries by their mean score, and entries of one group by their index.

    Args:
      unit: `rows`, all entries that read one input feature (the last but one axis of a kernel); `columns`, all that feed one output unit (the last
        axis); `slots`, runs of `size` entries in the order of the tree. A vector is one row, and each of its entries is a column.
      size: of a run of slots.

    Raises:
      UsageError: if `size` is not positive.
    """
    if size < 1:
        raise UsageError(f"size={size} must be at least 1")

    def order(scores: Scores) -> Ranks:
        flat = trees.ravel(scores)
        if unit == "slots":
            group = jnp.arange(flat.size) // size
            count = -(-flat.size // size)
        else:
            parts, count = [], 0
            for leaf in jax.tree.leaves(scores):
                axis = leaf.ndim - 1 if unit == "columns" else leaf.ndim - 2
                number = leaf.shape[axis] if axis >= 0 else 1
                shape = [number if i == axis else 1 for i in range(leaf.ndim)]
                local = jnp.broadcast_to(jnp.arange(number).reshape(shape), leaf.shape)
                parts.append((count + local).reshape(-1))
                count += number
            group = jnp.concatenate(parts)
        group_ranks = trees.group_places(flat, group, count)
        return trees.unravel(trees.inverse_permutation(jnp.lexsort((jnp.arange(flat.size), group_ranks[group]))), scores)

    return Selector(order)
