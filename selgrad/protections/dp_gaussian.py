"""Clipping and Gaussian noise, the mechanism of differentially private federated averaging.

Abadi et al., CCS 2016 (abadi2016dp): clip to the norm C, add N(0, (z C)^2) to each entry. Here the client adds it to its own update, so that the server need
not be trusted; the noise multiplier z is that of one client's update, not of a sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Grads, Key, Sent
from selgrad.errors import UsageError
from selgrad.protections.nothing import ProtectionBase


@dataclasses.dataclass(frozen=True)
class Clip:
    """Scales an update down where its norm exceeds `norm`.

    Where word embeddings are sent, a simulation through embedded inputs lacks their gradient and so scales down by less than the client does; scale-invariant
    distances, such as the cosine, are not affected.
    """

    norm: float

    def __call__(self, grads: Grads) -> Grads:
        """Returns the update, scaled to a norm of at most `norm`."""
        length = trees.safe_sqrt(trees.dot(grads, grads))
        factor = jnp.minimum(1, self.norm / jnp.maximum(length, 1e-30))
        return jax.tree.map(lambda g: factor * g, grads)


@dataclasses.dataclass(frozen=True)
class Gaussian(ProtectionBase):
    """Clipping to the norm `clip`, and noise of the standard deviation `multiplier * clip` on each entry."""

    clip: float
    multiplier: float

    @property
    def deterministic_part(self) -> Callable[[Grads], Grads] | None:
        """The clipping of the norm."""
        return Clip(self.clip)

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """Returns the noisy update; the key must be secret."""
        leaves, treedef = jax.tree.flatten(grads)
        keys = jax.random.split(key, len(leaves))
        scale = self.clip * self.multiplier
        noisy = [g + scale * jax.random.normal(k, g.shape, g.dtype) for g, k in zip(leaves, keys, strict=True)]
        return Sent(jax.tree.unflatten(treedef, noisy))

    def noise(self, grads: Grads) -> Grads:
        """Returns the same standard deviation for every leaf."""
        return jax.tree.map(lambda _: jnp.float32(self.clip * self.multiplier), grads)


def dp_gaussian(*, clip: float = 1.0, noise: float = 0.01) -> Gaussian:
    """Clips the update's Euclidean norm and adds Gaussian noise to each entry, as the field does; in float32, so it is no differential privacy.

    A float32 has so few values that whoever holds two candidate updates can often tell which one was sent, whatever the noise.

    Args:
      clip: the largest norm, in the units of the update.
      noise: standard deviation of the noise on one entry, in units of `clip`.

    Raises:
      UsageError: if `clip` is not positive or `noise` negative.
    """
    if not 0 < clip < float("inf") or not 0 <= noise < float("inf"):
        raise UsageError(f"protection 'dp_gaussian': clip={clip} must be positive and noise={noise} 0 or more")
    return Gaussian(float(clip), float(noise))
