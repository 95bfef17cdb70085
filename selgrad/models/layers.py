"""Flax Linen layers built on selgrad's own convolution, and the initialisers that the attacks were published with.

Parameters have the names, shapes and defaults of `flax.linen.Conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from selgrad.models.convolution import convolve

Initializer = Callable[..., Any]
_BLOCK = 32


he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015, as PyTorch's `kaiming_normal_` draws convolutions."""


def uniform_half(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws weights and biases from U(-0.5, 0.5), as DLG's released code does."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


class Conv(nn.Module):
    """A square convolution over (B, H, W, C), parameters as in `flax.linen.Conv`: kernel (size, size, C, features)."""

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        if not self.use_bias:
            return convolve(x, kernel, stride=self.stride, padding=self.padding)
        bias = self.param("bias", self.bias_init, (self.features,))
        return convolve(x, kernel, stride=self.stride, padding=self.padding) + bias


class Dense(nn.Module):
    """A dense layer over (B, C) whose long sums are computed in blocks of 32; parameters as in `flax.linen.Dense`.

    An error in the logits scales the whole gradient, so rounding there limits gradient matching in float32. Sums of short sums
    round less than one long sum (`benchmarks/float32_noise.py`).
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, C) to (B, features)."""
        width = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        if width % _BLOCK:
            return x @ kernel + bias
        blocks = width // _BLOCK
        parts = jnp.einsum("bki,kif->kbf", x.reshape(-1, blocks, _BLOCK), kernel.reshape(blocks, _BLOCK, -1))
        return parts.sum(axis=0) + bias


def max_pool(x: Float[Array, "b h w c"], size: int = 2) -> Float[Array, "b i j c"]:
    """Max-pools over adjacent squares, dropping leftover rows and columns; it uses no reduce-window, so higher derivatives are cheap."""
    b, h, w, c = x.shape
    x = x[:, : h - h % size, : w - w % size]
    return x.reshape(b, h // size, size, w // size, size, c).max(axis=(2, 4))


def norm(kind: Literal["batch", "group"], name: str, train: bool) -> nn.Module:
    """Returns a normalisation over the channels of (B, H, W, C): batch statistics with PyTorch's momentum, or groups of at most 16 channels.

    The variance is computed from centred values: in float32, E[x^2] - E[x]^2 loses the precision that gradient matching needs.
    """
    if kind == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, use_fast_variance=False, name=name)
    return _GroupNorm(name=name.replace("bn", "gn"))


class _GroupNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        groups = next(count for count in range(-(-channels // 16), channels + 1) if channels % count == 0)
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, use_fast_variance=False, name="norm")(x)
