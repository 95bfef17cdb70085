"""Residual streams that XLA keeps: what is added up from layer to layer is written once and not computed again by everything that reads it.

XLA's CPU compiler fuses cheap elementwise operations into each of their readers. The sum of a residual stream, and in derivatives the sum of what comes
back along it, is cheap at each layer and read by all further ones, so fusions grow with the depth and recompute the whole chain (`benchmarks/engine.py`
times steps of BERT with and without). An operation that it counts as expensive is never computed twice, and a division is one; an optimisation barrier
is taken out before fusion and does not help.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def kept(x: Array) -> Array:
    """The same values, as the result of a division by 1 that the compiler does not know to be one; so are all derivatives.

    >>> kept(jnp.asarray([3.0, 0.1])).tolist() == jnp.asarray([3.0, 0.1]).tolist()
    True
    """
    return x / jnp.where(jnp.isnan(x.reshape(-1)[0]), jnp.asarray(2, x.dtype), jnp.asarray(1, x.dtype))
