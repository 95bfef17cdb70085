"""Residual streams that XLA keeps: the sum from layer to layer is written once and not computed again by every operation that reads it.

XLA's CPU compiler fuses cheap elementwise operations into each of their readers. The sum of a residual stream, and in derivatives the sum of the gradients
that flow back along it, is cheap at each layer and read by all later ones, so fusions grow with the depth and recompute the whole chain
(`benchmarks/engine.py` times steps of BERT with and without). An operation that the compiler counts as expensive, such as a division, is never computed
twice; an optimisation barrier is removed before fusion and does not help.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def kept(x: Array) -> Array:
    """Returns the same values as the result of a division by 1 that the compiler cannot recognise; so are all derivatives.

    >>> kept(jnp.asarray([3.0, 0.1])).tolist() == jnp.asarray([3.0, 0.1]).tolist()
    True
    """
    return x / jnp.where(jnp.isnan(x.reshape(-1)[0]), jnp.asarray(2, x.dtype), jnp.asarray(1, x.dtype))
