"""A convolution whose derivatives of every order are matrix products when thousands of attacks run under `vmap`.

JAX lowers the weight gradient of a vmapped convolution to a grouped convolution, which is slow on CPU and GPU, and its derivative to
another one. A product of patches and a matrix is lowered to batched matrix products instead (measured in `benchmarks/convolution_forms.py`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def patches(x: Float[Array, "n h w c"], size: int, stride: int, padding: int) -> Float[Array, "n i j k"]:
    """Returns the windows that a convolution reads, flattened in the order of a kernel (size, size, c).

    Rows and columns are taken one after the other: 2 * size slices instead of size^2.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    x = jnp.stack([x[:, :, j : j + stride * (columns - 1) + 1 : stride] for j in range(size)], axis=3)
    x = jnp.stack([x[:, i : i + stride * (rows - 1) + 1 : stride] for i in range(size)], axis=3)
    return x.reshape(*x.shape[:3], -1)


def convolve(x: Float[Array, "n h w c"], w: Float[Array, "s s c o"], *, stride: int = 1, padding: int = 0) -> Float[Array, "n i j o"]:
    """Computes the cross-correlation of `flax.linen.Conv`, with square kernels and equal padding on all sides."""
    return patches(x, w.shape[0], stride, padding) @ w.reshape(-1, w.shape[-1])
