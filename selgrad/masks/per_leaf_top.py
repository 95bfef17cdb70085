"""Per-leaf top-k: the same share of every leaf, so that no layer is left in the clear or wholly hidden.

Entries are ordered by their quantile within the leaf, which keeps the total exact and each leaf within one entry of its share.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Ranks, Scores, Selector


def per_leaf_top() -> Selector:
    """Ranks entries by (rank within leaf + 1/2) / leaf size."""

    def order(scores: Scores) -> Ranks:
        within = [trees.descending_ranks(leaf.reshape(-1)) for leaf in jax.tree.leaves(scores)]
        quantiles = jnp.concatenate([(r + 0.5) / r.size for r in within])
        # Float32 quantiles tie in leaves of more than 2^23 entries; the rank itself then decides.
        ordered = jnp.lexsort((jnp.concatenate(within), quantiles))
        return trees.unravel(trees.inverse_permutation(ordered), scores)

    return Selector(order, top_of="leaf")
