"""Row norms of the Jacobian of a client update, for all entries at once: forward-mode probes over reverse mode.

For v ~ N(0, I), E[(J v)_i^2] = ||J_i||^2 (Hutchinson, 1990, hutchinson1990); with the unit vectors in place of v the sum is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import Grads, Key, Scores


def row_norms(function: Callable[[Array], Grads], point: Array, *, num_probes: int | None, key: Key) -> Scores:
    """||d function_i / d point||_2 for every entry i of the function's tree.

    Args:
      function: point -> tree; differentiable forward.
      point: array of any shape, d entries.
      num_probes: Gaussian probes, relative standard error of the squared norm sqrt(2 / num_probes); None runs all d unit vectors.
      key: of the probes.

    Returns:
      The tree of the function's output, norms >= 0 in its dtypes.
    """
    _, linear = jax.linearize(function, point)
    probes = point.size if num_probes is None else num_probes

    def accumulate(total: Scores, index: Array) -> tuple[Scores, None]:
        if num_probes is None:
            tangent = (jnp.arange(point.size) == index).astype(point.dtype)
        else:
            tangent = jax.random.normal(jax.random.fold_in(key, index), (point.size,), point.dtype)
        return jax.tree.map(lambda t, d: t + d**2, total, linear(tangent.reshape(point.shape))), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, point))
    total, _ = jax.lax.scan(accumulate, zeros, jnp.arange(probes))
    return jax.tree.map(lambda t: jnp.sqrt(t / (1 if num_probes is None else probes)), total)
