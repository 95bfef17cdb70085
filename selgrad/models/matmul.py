"""Matrix products whose derivatives of every order stay products that XLA's CPU compiler is fast at.

The derivative of x W by x contracts the last axes of both, dy W'. For few rows XLA's CPU compiler takes up to ten times as long for that as for the
other products, and gradient matching, which differentiates twice, has three of them for every weight (measured in `benchmarks/matmul_forms.py`). Computed
as (W dy')' it is as fast as the others. JAX's own rules cannot be changed to do so, hence a primitive with the three products, each other's transposes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Kind: TypeAlias = Literal["nn", "nt", "tn"]
"""nn: (t, d) (d, f) -> (t, f). nt: (t, f) (d, f) -> (t, d). tn: (t, d) (t, f) -> (d, f). Axes before the last two are batches of both."""

_product = Primitive("selgrad_product")


def _requested_precision() -> str | None:
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision


def _promoted(x: Array, w: Array) -> tuple[Array, Array]:
    dtype = jnp.result_type(x, w)
    return x.astype(dtype), w.astype(dtype)


def _bind(a: Array, b: Array, kind: Kind, precision: str | None) -> Array:
    result: Array = _product.bind(a, b, kind=kind, precision=precision)
    return result


def _compute(a: Array, b: Array, *, kind: Kind, precision: str | None, swap: bool = False) -> Array:
    rows, columns = a.ndim - 2, a.ndim - 1
    batch = tuple(range(rows))

    def contract(x: Array, i: int, y: Array, j: int) -> Array:
        return jax.lax.dot_general(x, y, (((i,), (j,)), (batch, batch)), precision=precision)

    if kind == "nn":
        return contract(a, columns, b, rows)
    if kind == "tn":
        return contract(a, rows, b, rows)
    if not swap:
        return contract(a, columns, b, columns)
    # Without the barrier XLA merges the transpose into the product, which restores the slow form.
    return jnp.swapaxes(jax.lax.optimization_barrier(contract(b, columns, a, columns)), -1, -2)


def _shape(a: Any, b: Any, *, kind: Kind, precision: str | None) -> Any:
    rows = a.shape[-1] if kind == "tn" else a.shape[-2]
    columns = b.shape[-2] if kind == "nt" else b.shape[-1]
    return jax.core.ShapedArray((*a.shape[:-2], rows, columns), a.dtype)


def _transpose_left(ct: Array, a: Any, b: Array, *, kind: Kind, precision: str | None) -> Array:
    if kind == "tn":
        return _bind(b, ct, "nt", precision)
    return _bind(ct, b, "nt" if kind == "nn" else "nn", precision)


def _transpose_right(ct: Array, a: Array, b: Any, *, kind: Kind, precision: str | None) -> Array:
    if kind == "tn":
        return _bind(a, ct, "nn", precision)
    return _bind(a, ct, "tn", precision) if kind == "nn" else _bind(ct, a, "tn", precision)


def _batch(operands: Any, axes: Any, *, kind: Kind, precision: str | None) -> Any:
    (a, b), (i, j) = operands, axes
    if kind != "tn" and j is None:
        # Lanes that share a matrix become further rows of one product.
        a = jnp.moveaxis(a, i, -3)
        product = _bind(a.reshape(*a.shape[:-3], -1, a.shape[-1]), b, kind, precision)
        return product.reshape(*a.shape[:-1], product.shape[-1]), a.ndim - 3
    size = a.shape[i] if i is not None else b.shape[j]
    left, right = (jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in ((a, i), (b, j)))
    return _bind(left, right, kind, precision), 0


_product.def_impl(_compute)
_product.def_abstract_eval(_shape)
ad.defbilinear(_product, _transpose_left, _transpose_right)
batching.primitive_batchers[_product] = _batch
mlir.register_lowering(_product, mlir.lower_fun(_compute, multiple_results=False))
mlir.register_lowering(_product, mlir.lower_fun(partial(_compute, swap=True), multiple_results=False), platform="cpu")


def matmul(x: Float[Array, "*batch d"], w: Float[Array, "d f"]) -> Float[Array, "*batch f"]:
    """Computes x W over the last axis of x, in the precision set by `jax.default_matmul_precision`.

    >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
    (2, 4)
    """
    x, w = _promoted(x, w)
    product = _bind(x.reshape(-1, x.shape[-1]), w, "nn", _requested_precision())
    return product.reshape(*x.shape[:-1], w.shape[-1])


def matmul_transposed(x: Float[Array, "*batch f"], w: Float[Array, "d f"]) -> Float[Array, "*batch d"]:
    """Computes x W' over the last axis of both, as in an output layer tied to the embeddings.

    >>> matmul_transposed(jnp.ones((2, 3)), jnp.ones((4, 3))).shape
    (2, 4)
    """
    x, w = _promoted(x, w)
    product = _bind(x.reshape(-1, x.shape[-1]), w, "nt", _requested_precision())
    return product.reshape(*x.shape[:-1], w.shape[0])
