"""Selection by path: the named leaves first, by score, and the rest after them.

"Is it safe to encrypt everything but the last layer?" is this selector at the share of entries that the patterns name.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Ranks, Scores, Selector


def by_path(*, paths: Sequence[str]) -> Selector:
    """Ranks the entries of the named leaves before all others.

    Args:
      paths: shell patterns over leaf paths, such as ["conv*/**", "fc/bias"].

    Raises:
      UsageError: when applied, if a pattern names no leaf.
    """

    def order(scores: Scores) -> Ranks:
        chosen = trees.matching_leaves(scores, paths)
        leaves = jax.tree.leaves(scores)
        last = jnp.concatenate([jnp.full(leaf.size, not c) for leaf, c in zip(leaves, chosen, strict=True)])
        ordered = jnp.lexsort((trees.descending_ranks(trees.ravel(scores)), last))
        return trees.unravel(trees.inverse_permutation(ordered), scores)

    return Selector(order)
