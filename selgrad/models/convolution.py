"""A convolution whose derivatives of every order stay matrix products when thousands of attacks run under `vmap`.

JAX lowers the weight gradient of a vmapped convolution to a grouped convolution, which is slow on CPU and GPU, and its derivative to
another one. A convolution, its input gradient and its kernel gradient are the three faces of one trilinear form, so they are three
bilinear primitives here, each the transpose of the others: where the kernel is shared they lower to XLA's convolution with the lanes
merged into the batch, where every lane has a kernel of its own to patches times matrix (measured in `benchmarks/convolution_forms.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax import Array
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def patches(x: Float[Array, "n h w c"], size: int, stride: int, padding: int) -> Float[Array, "n i j k"]:
    """The windows that a convolution reads, flattened in the order of a kernel (size, size, c).

    Rows and columns are taken one after the other: 2 * size slices instead of size^2.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    x = jnp.stack([x[:, :, j : j + stride * (columns - 1) + 1 : stride] for j in range(size)], axis=3)
    x = jnp.stack([x[:, i : i + stride * (rows - 1) + 1 : stride] for i in range(size)], axis=3)
    return x.reshape(*x.shape[:3], -1)


def _merged_patches(x: Array, size: int, stride: int, padding: int) -> Array:
    """(groups, n, h, w, c) to (groups, n * i * j, size * size * c)."""
    windows = patches(x.reshape(-1, *x.shape[2:]), size, stride, padding)
    return windows.reshape(x.shape[0], -1, windows.shape[-1])


def _output_shape(x: tuple[int, ...], size: int, stride: int, padding: int) -> tuple[int, int]:
    return (x[-3] + 2 * padding - size) // stride + 1, (x[-2] + 2 * padding - size) // stride + 1


def _forward(x: Array, w: Array, *, stride: int, padding: int, **_: Any) -> Array:
    if x.ndim == 4:
        return jax.lax.conv_general_dilated(x, w, (stride, stride), ((padding, padding),) * 2, dimension_numbers=_DIMENSIONS)
    size, features = w.shape[1], w.shape[-1]
    i, j = _output_shape(x.shape, size, stride, padding)
    result = _merged_patches(x, size, stride, padding) @ w.reshape(w.shape[0], -1, features)
    return result.reshape(*x.shape[:2], i, j, features)


def _input_gradient(y: Array, w: Array, *, stride: int, padding: int, spatial: tuple[int, int], **_: Any) -> Array:
    size = w.shape[-3]
    if y.ndim == 4:
        low = size - 1 - padding
        pads = [(low, n + padding - (m - 1) * stride - 1) for n, m in zip(spatial, y.shape[1:3], strict=True)]
        flipped = w[::-1, ::-1].swapaxes(2, 3)
        return jax.lax.conv_general_dilated(y, flipped, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=_DIMENSIONS)
    groups, n, channels = y.shape[0], y.shape[1], w.shape[-2]
    rows = y.reshape(groups, -1, y.shape[-1]) @ w.reshape(groups, -1, w.shape[-1]).swapaxes(1, 2)
    like = jax.ShapeDtypeStruct((groups, n, *spatial, channels), y.dtype)
    (result,) = jax.linear_transpose(partial(_merged_patches, size=size, stride=stride, padding=padding), like)(rows)
    return result


def _kernel_gradient(x: Array, y: Array, *, stride: int, padding: int, size: int, **_: Any) -> Array:
    if x.ndim == 4:
        return _kernel_gradient(x[None], y[None], stride=stride, padding=padding, size=size)[0]
    groups, features = y.shape[0], y.shape[-1]
    # (features, size^2 c) reads the large operand along its rows, which is twice as fast as the transposed product.
    result = y.reshape(groups, -1, features).swapaxes(1, 2) @ _merged_patches(x, size, stride, padding)
    return result.swapaxes(1, 2).reshape(groups, size, size, x.shape[-1], features)


def _primitive(name: str, implementation: Callable[..., Array]) -> jex.core.Primitive:
    primitive = jex.core.Primitive(name)
    primitive.def_impl(partial(jax.jit, static_argnames=("stride", "padding", "size", "spatial"))(implementation))

    def abstract(a: Any, b: Any, **parameters: Any) -> Any:
        shape = jax.eval_shape(partial(implementation, **parameters), *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b)))
        return jax.core.ShapedArray(shape.shape, shape.dtype)

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    return primitive


forward_p = _primitive("selgrad_conv", _forward)
input_gradient_p = _primitive("selgrad_conv_input_gradient", _input_gradient)
kernel_gradient_p = _primitive("selgrad_conv_kernel_gradient", _kernel_gradient)


def _bind(primitive: jex.core.Primitive, a: Array, b: Array, parameters: dict[str, Any]) -> Array:
    result: Array = primitive.bind(a, b, **parameters)
    return result


# <y, forward(x, w)> = <x, input_gradient(y, w)> = <w, kernel_gradient(x, y)>: each operand's cotangent is another face.
ad.defbilinear(
    forward_p,
    lambda ct, x, w, **p: _bind(input_gradient_p, ct, w, p),
    lambda ct, x, w, **p: _bind(kernel_gradient_p, x, ct, p),
)
ad.defbilinear(
    input_gradient_p,
    lambda ct, y, w, **p: _bind(forward_p, ct, w, p),
    lambda ct, y, w, **p: _bind(kernel_gradient_p, ct, y, p),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda ct, x, y, **p: _bind(input_gradient_p, y, ct, p),
    lambda ct, x, y, **p: _bind(forward_p, x, ct, p),
)


def _batch(primitive: jex.core.Primitive, second_is_kernel: bool) -> Callable[..., tuple[Array, int]]:
    """Lanes that share a kernel are merged into the batch; all others become groups (rank 5), of which there is one axis."""

    def rule(operands: Sequence[Array], axes: Sequence[Any], **parameters: Any) -> tuple[Array, int]:
        (a, b), (i, j) = operands, axes
        lanes = a.shape[i] if i is not None else b.shape[j]
        grouped = a.ndim - (i is not None) == 5
        if i is not None and j is None and second_is_kernel:
            a = jnp.moveaxis(a, i, 1 if grouped else 0)
            at = 1 if grouped else 0
            shape = a.shape
            merged = a.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
            result = _bind(primitive, merged, b, parameters)
            result = result.reshape(*result.shape[:at], shape[at], shape[at + 1], *result.shape[at + 1 :])
            return result, at

        def first(operand: Array, axis: Any) -> Array:
            if axis is None:
                return jnp.broadcast_to(operand, (lanes, *operand.shape))
            return jnp.moveaxis(operand, axis, 0)

        a, b = first(a, i), first(b, j)
        if not grouped:
            return _bind(primitive, a, b, parameters), 0
        groups = a.shape[1]
        flat = _bind(primitive, a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), parameters)
        return flat.reshape(lanes, groups, *flat.shape[1:]), 0

    return rule


batching.primitive_batchers[forward_p] = _batch(forward_p, True)
batching.primitive_batchers[input_gradient_p] = _batch(input_gradient_p, True)
batching.primitive_batchers[kernel_gradient_p] = _batch(kernel_gradient_p, False)


def convolve(x: Float[Array, "n h w c"], w: Float[Array, "s s c o"], *, stride: int = 1, padding: int = 0) -> Float[Array, "n i j o"]:
    """The cross-correlation of `flax.linen.Conv`, square kernels, equal padding on all sides; differentiable to any order."""
    dtype = jnp.promote_types(x.dtype, w.dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    parameters = {"stride": stride, "padding": padding, "size": w.shape[0], "spatial": tuple(x.shape[1:3])}
    return _bind(forward_p, x, w, parameters)
