"""One mask for a whole cohort of clients, so that an index list reveals little about any of them.

Averaged maps are FedML-HE's agreement (jin2023fedmlhe, section 3); interleaved priority lists are MaskCrypt's (hu2024maskcrypt). The order itself must be
agreed on under encryption or by a trusted party: a client that sends its own scores in the clear has leaked them already.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from selgrad import trees
from selgrad.base import Ranks, Scores, Selector

Agreement: TypeAlias = Literal["mean", "vote", "union", "interleaved"]


def agreed(scores: Scores, by: Agreement) -> Ranks:
    """Computes one order for all clients.

    Args:
      scores: of every client, a leading axis (clients,) on each leaf.
      by: how they agree.
    """
    flat = jax.vmap(trees.ravel)(scores)
    like = jax.tree.map(lambda leaf: leaf[0], scores)
    if by == "mean":
        # Each client has the same weight, however large its gradient.
        sizes = jnp.abs(flat).sum(axis=1, keepdims=True)
        return trees.rank(trees.unravel((flat / jnp.where(sizes > 0, sizes, 1)).mean(axis=0), like))
    ranks: Array = jax.lax.map(trees.descending_ranks, flat)
    chosen = ranks.min(axis=0) if by in ("union", "interleaved") else jnp.sort(ranks, axis=0)[(len(flat) - 1) // 2]
    # Ties go to the first client in turn, or to the entry with the better mean rank.
    then = ranks.argmin(axis=0) if by == "interleaved" else ranks.astype(jnp.float32).mean(axis=0)
    order = jnp.lexsort((then, chosen))
    return trees.unravel(trees.inverse_permutation(order), like)


def common(*, by: Agreement = "mean") -> Selector:
    """Ranks entries once for all samples of a sweep, taken as its clients.

    Args:
      by: `mean`: by the mean of the clients' scores, each divided by its sum. `vote`: by the median of their ranks, so that the first k are those that most
        clients would choose among their first k. `union`: by the best of their ranks: any client's first choice comes first. `interleaved`: one entry
        of each client's priority list in turn, as MaskCrypt's server takes them; the union's order except for ties.
    """
    alone = lambda scores: agreed(jax.tree.map(lambda leaf: leaf[None], scores), by)
    return Selector(alone, of_cohort=lambda scores: agreed(scores, by))
