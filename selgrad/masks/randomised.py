"""Randomised response on the order of entries: each entry keeps its own rank only with some probability, so membership in the mask can be denied.

Warner 1965 (warner1965randomized): with probability `flip` a coin gives the answer. An entry is in the mask because of its score or because of the coin; with
flip p and a mask of share r the odds are at most (1 - p + p r) / (p r), and their logarithm is the local differential privacy for each index.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Ranks, Scores, Selector
from selgrad.errors import UsageError


def randomised(*, flip: float = 0.5, seed: int = 0) -> Selector:
    """Ranks entries by their own rank, or with probability `flip` by a random one.

    Args:
      flip: in [0, 1]; 0 is `global_top`, 1 a random mask.
      seed: of the coins, which also depend on the scores themselves: they are secret and differ from sample to sample.

    Raises:
      UsageError: if `flip` lies outside [0, 1].
    """
    if not 0 <= flip <= 1:
        raise UsageError(f"flip={flip} lies outside [0, 1]; give the probability of a random place, such as 0.5")

    def order(scores: Scores) -> Ranks:
        flat = trees.ravel(scores).astype(jnp.float32)
        bits = jax.lax.bitcast_convert_type(flat, jnp.uint32)
        key = jax.random.fold_in(jax.random.key(seed), (bits * (2 * jnp.arange(flat.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32))
        coins_key, places_key = jax.random.split(key)
        own = trees.descending_ranks(flat)
        drawn = jax.random.permutation(places_key, flat.size)
        chosen = jnp.where(jax.random.uniform(coins_key, flat.shape) < flip, drawn, own)
        return trees.unravel(trees.inverse_permutation(jnp.lexsort((own, chosen))), scores)

    return Selector(order)
