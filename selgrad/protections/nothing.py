"""No protection: the unchanged update in float32.

Federated averaging without any defence (McMahan et al., AISTATS 2017, mcmahan2017fedavg), which every other protection is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selgrad.base import Grads, Key, Sent


@dataclasses.dataclass(frozen=True)
class ProtectionBase:
    """The common base of protections, which override what they change."""

    @property
    def changes(self) -> bool:
        """Whether it changes updates, true by default."""
        return True

    @property
    def deterministic_part(self) -> Callable[[Grads], Grads] | None:
        """The deterministic part, none by default."""
        return None

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """Returns the whole update."""
        return Sent(grads)

    def noise(self, grads: Grads) -> Grads:
        """Returns zeros."""
        return jax.tree.map(lambda _: jnp.float32(0), grads)

    @property
    def gaussian(self) -> bool:
        """Whether the noise is Gaussian or absent, true by default, since nothing is added."""
        return True

    def num_bytes(self, num_visible: int, num_total: int) -> int:
        """Returns four bytes per entry."""
        return 4 * num_visible


@dataclasses.dataclass(frozen=True)
class Plain(ProtectionBase):
    """A protection that changes nothing."""

    @property
    def changes(self) -> bool:
        """Whether it changes updates, which it does not."""
        return False


def none() -> Plain:
    """Sends the update unchanged."""
    return Plain()
