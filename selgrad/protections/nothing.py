"""No protection: the update as it is, in float32.

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
    """What every protection has in common; each changes what it must."""

    @property
    def changes(self) -> bool:
        """Yes."""
        return True

    @property
    def deterministic_part(self) -> Callable[[Grads], Grads] | None:
        """Nothing."""
        return None

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """All of it."""
        return Sent(grads)

    def noise(self, grads: Grads) -> Grads:
        """Zeros."""
        return jax.tree.map(lambda _: jnp.float32(0), grads)

    @property
    def gaussian(self) -> bool:
        """Nothing is added."""
        return True

    def num_bytes(self, num_visible: int, num_total: int) -> int:
        """Four an entry."""
        return 4 * num_visible


@dataclasses.dataclass(frozen=True)
class Plain(ProtectionBase):
    """Changes nothing."""

    @property
    def changes(self) -> bool:
        """No."""
        return False


def none() -> Plain:
    """Sends the update as it is."""
    return Plain()
