"""The Jacobian J of a client update by its private input, never written out: products with it, row norms, and Gram matrices under a mask.

Significance metrics and certificates share it (docs/theory.md, sections 1 and 2). For v ~ N(0, I), E[(J v)_i^2] = ||J_i||^2 (Hutchinson, 1990,
hutchinson1990); with unit vectors in place of v the sum is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from selgrad import trees
from selgrad.base import GradientContext, Grads, Scores
from selgrad.errors import UsageError

EXACT_INPUTS = 4096
"""Number of input coordinates up to which a Gram matrix is formed and factorised; beyond it, everything is matrix-free."""
_CHUNK = 2**22


class JacobianOperator(NamedTuple):
    """The Jacobian J at one point.

    Attributes:
      apply: v (the point's shape) -> J v (a tree like the update).
      transpose: u (a tree like the update) -> J' u (the point's shape).
      point: where J was taken; d = point.size coordinates.
      num_entries: n, of the update.
    """

    apply: Callable[[Array], Grads]
    transpose: Callable[[Grads], Array]
    point: Array
    num_entries: int

    @property
    def chunk(self) -> int:
        """The number of products computed at a time that keeps temporaries small: one for a large model, more for small ones."""
        return max(1, min(64, _CHUNK // self.num_entries, self.point.size))


def linearise(function: Callable[[Array], Grads], point: Array) -> JacobianOperator:
    """Returns J of a function from an array to a tree; the function is evaluated once, and J' is the transpose of the same linear program."""
    value, apply = jax.linearize(function, point)
    transpose = jax.linear_transpose(apply, point)
    return JacobianOperator(apply, lambda u: transpose(u)[0], point, trees.size(value))


def input_jacobian(context: GradientContext, sample: Array | None = None) -> JacobianOperator:
    """Returns J of a client's update by its embedded inputs: pixels for images, embeddings for text.

    Args:
      context: of the client.
      sample: differentiates by the inputs of this sample alone, shape (1, ...), the others held fixed; None takes all, shape (B, ...).
    """
    model, params, batch, labels = context.model, context.params, context.batch, context.labels
    embedded = jax.eval_shape(model.embed, params, batch.inputs)
    shape = embedded.shape if sample is None else (1, *embedded.shape[1:])

    def update(offset: Array) -> Grads:
        if sample is not None:
            offset = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(embedded.shape, embedded.dtype), offset, sample, axis=0)
        return context.update.client(model, params, batch, labels, offset)

    return linearise(update, jnp.zeros(shape, embedded.dtype))


def row_norms(linear: JacobianOperator, tangents: Callable[[Array], Array], count: int) -> Scores:
    """Returns sqrt(sum over k of (J t_k)_i^2) for every entry i: ||(J T)_i|| for the matrix T with the columns t_k.

    T = I gives row norms, T = (J'J + eps I)^-1 the solved ones, T = L^-T of a Cholesky factor the square root of leverage, and Gaussian columns
    over sqrt(count) an unbiased estimate of the squares, of relative standard error sqrt(2 / count).

    Args:
      linear: J.
      tangents: index () int32 -> t_k, shape (d,).
      count: number of tangents.

    Returns:
      A tree like the update, norms >= 0.
    """
    chunk = min(linear.chunk, count)
    shape = linear.point.shape

    def product(index: Array) -> Grads:
        return linear.apply(tangents(jnp.minimum(index, count - 1)).reshape(shape))

    def accumulate(total: Scores, start: Array) -> tuple[Scores, None]:
        if chunk == 1:
            return jax.tree.map(lambda t, d: t + d**2, total, product(start)), None
        index = start + jnp.arange(chunk)
        counted = (index < count).astype(linear.point.dtype)
        products = jax.vmap(product)(index)
        return jax.tree.map(lambda t, d: t + jnp.tensordot(counted, d**2, axes=1), total, products), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(linear.apply, linear.point))
    total, _ = jax.lax.scan(accumulate, zeros, jnp.arange(0, count, chunk))
    return jax.tree.map(trees.safe_sqrt, total)


def unit_vectors(linear: JacobianOperator) -> Callable[[Array], Array]:
    """Returns the tangents of T = I."""
    return lambda index: (jnp.arange(linear.point.size) == index).astype(linear.point.dtype)


def gaussian_probes(linear: JacobianOperator, key: Array, count: int) -> Callable[[Array], Array]:
    """Returns tangents whose squares sum, in expectation, to those of T = I."""
    size, dtype = linear.point.size, linear.point.dtype
    scale = jnp.asarray(count, dtype) ** -0.5
    return lambda index: jax.random.normal(jax.random.fold_in(key, index), (size,), dtype) * scale


def gram(linear: JacobianOperator, weights: Grads | None = None) -> Array:
    """Returns J' W J, shape (d, d), for a diagonal W >= 0 given as a tree like the update (None: the identity).

    With weights 0 on hidden and 1 / sigma_i^2 on visible entries it is the Fisher information of the visible entries.

    Raises:
      UsageError: if the input has more than 4,096 coordinates.
    """
    size = linear.point.size
    if size > EXACT_INPUTS:
        raise UsageError(f"a Gram matrix of {size:,} input coordinates is not formed (at most {EXACT_INPUTS:,}); ask for num_probes, such as 32")
    chunk = min(linear.chunk, size)
    unit = unit_vectors(linear)

    def column(index: Array) -> Array:
        product = linear.apply(unit(index).reshape(linear.point.shape))
        if weights is not None:
            product = jax.tree.map(lambda p, w: p * w.astype(p.dtype), product, weights)
        return linear.transpose(product).reshape(-1)

    columns = jax.lax.map(jax.vmap(column), jnp.arange(-(-size // chunk) * chunk).reshape(-1, chunk))
    result: Array = columns.reshape(-1, size)[:size]
    return (result + result.T) / 2


def regularised(linear: JacobianOperator, weights: Grads | None, shift: Array) -> Callable[[Array], Array]:
    """Returns the map v (d,) -> (J' W J + shift I) v, matrix-free: one product with J and one with J'."""

    def operator(v: Array) -> Array:
        product = linear.apply(v.reshape(linear.point.shape))
        if weights is not None:
            product = jax.tree.map(lambda p, w: p * w.astype(p.dtype), product, weights)
        return linear.transpose(product).reshape(-1) + shift * v

    return operator


def mean_eigenvalue(linear: JacobianOperator, key: Array, count: int = 8) -> Array:
    """Estimates tr(J'J) / d from Gaussian probes, with relative standard error at most sqrt(2 / count): the scale that a relative epsilon refers to."""
    probes = gaussian_probes(linear, key, count)

    def squared_norm(index: Array) -> Array:
        product = linear.apply(probes(index).reshape(linear.point.shape))
        return trees.dot(product, product)

    return jax.lax.map(squared_norm, jnp.arange(count)).sum() / linear.point.size


def dense(linear: JacobianOperator) -> Array:
    """Writes J out, shape (n, d), by forward mode; for certificates of small problems."""
    size, unit = linear.point.size, unit_vectors(linear)
    chunk = min(linear.chunk, size)
    column = lambda index: trees.ravel(linear.apply(unit(index).reshape(linear.point.shape)))
    columns = jax.lax.map(jax.vmap(column), jnp.arange(-(-size // chunk) * chunk).reshape(-1, chunk))
    return columns.reshape(-1, linear.num_entries)[:size].T
