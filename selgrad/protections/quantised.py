"""Stochastic rounding of each leaf to a few bits, as in compressed federated learning.

Alistarh et al., NeurIPS 2017 (alistarh2017qsgd), on an even grid between the smallest and the largest entry of each leaf, without their coding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import Grads, Key, Sent
from selgrad.errors import UsageError
from selgrad.protections.nothing import ProtectionBase


@dataclasses.dataclass(frozen=True)
class Quantised(ProtectionBase):
    """Unbiased rounding to 2^bits values per leaf."""

    bits: int

    def _step(self, leaf: Array) -> Array:
        return (leaf.max() - leaf.min()) / (2**self.bits - 1)

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """Rounds each entry up or down to a grid point, with the entry as the expected value."""
        leaves, treedef = jax.tree.flatten(grads)

        def round_leaf(leaf: Array, key: Key) -> Array:
            low, step = leaf.min(), jnp.maximum(self._step(leaf), 1e-30)
            points = jnp.floor((leaf - low) / step + jax.random.uniform(key, leaf.shape, leaf.dtype))
            return low + jnp.minimum(points, 2**self.bits - 1) * step

        rounded = [round_leaf(leaf, k) for leaf, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)]
        return Sent(jax.tree.unflatten(treedef, rounded))

    def noise(self, grads: Grads) -> Grads:
        """Returns step / sqrt(6): f (1 - f) step^2 is the variance at the fraction f of a step, averaged over f."""
        return jax.tree.map(lambda leaf: self._step(leaf) / 6**0.5, grads)

    @property
    def gaussian(self) -> bool:
        """Whether the noise is Gaussian, which it is not: rounding errors are bounded."""
        return False

    def num_bytes(self, num_visible: int, num_total: int) -> int:
        """Returns the bytes of all bits; the two ends of each leaf's grid are not counted."""
        return -(-num_visible * self.bits // 8)


def quantised(*, bits: int = 8) -> Quantised:
    """Rounds every leaf stochastically to 2^bits values.

    Args:
      bits: of each entry, 1 to 16.

    Raises:
      UsageError: if `bits` lies outside that range.
    """
    if not 1 <= bits <= 16:
        raise UsageError(f"protection 'quantised': bits={bits} lies outside 1 .. 16")
    return Quantised(bits)
