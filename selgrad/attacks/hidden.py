"""What an attacker makes of the entries that it cannot see: the first rungs of the attacker ladder.

`zero` is what LAMP's mask option and MaskCrypt's evaluation do; `ignore` is the attacker that knows the mask (docs/threat_model.md).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import Grads, Observation

Hidden: TypeAlias = Literal["zero", "average", "ignore"]


class Target(NamedTuple):
    """What a dummy update is compared with: values, and which of them count (a tree of bool)."""

    grads: Grads
    counted: Grads


def fill(observation: Observation, hidden: Hidden) -> Target:
    """The target of gradient matching under a mask.

    Args:
      observation: what the attacker holds.
      hidden: "zero" matches every entry, hidden ones against 0; "average" against the mean of the leaf's visible entries (0 where none is
        visible); "ignore" matches visible entries only.
    """
    visible, mask = observation.visible, observation.mask
    if hidden == "ignore":
        return Target(visible, jax.tree.map(jnp.logical_not, mask))
    everything = jax.tree.map(jnp.ones_like, mask)
    if hidden == "zero":
        return Target(visible, everything)

    def average(leaf: Array, m: Array) -> Array:
        mean = leaf.sum() / jnp.maximum((~m).sum(), 1)
        return jnp.where(m, mean, leaf)

    return Target(jax.tree.map(average, visible, mask), everything)
