"""What an attacker makes of the entries that it cannot see: the first rungs of the attacker ladder.

`zero` is what LAMP's mask option and MaskCrypt's evaluation do; `ignore` is the attacker that knows the mask (docs/threat_model.md).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from selgrad import trees
from selgrad.base import Grads, Observation

Hidden: TypeAlias = Literal["zero", "average", "ignore"]


class Target(NamedTuple):
    """What a dummy update is compared with: values, 0 where they do not count, and which of them count (a tree of bool)."""

    grads: Grads
    counted: Grads


def fill(observation: Observation, hidden: Hidden) -> Target:
    """The target of gradient matching under a mask.

    Args:
      observation: what the attacker holds.
      hidden: "zero" matches every entry, hidden ones against 0; "average" against the mean of the leaf's visible entries (0 where none is
        visible); "ignore" matches visible entries only.
    """
    visible, mask, bypassed = observation.visible, observation.mask, observation.model.bypassed
    # A dummy in the place of the embeddings gives the leaves that embedding reads no gradient to compare. This is known before anything is traced:
    # a large target must not be copied in each step of an attack.
    reached = jax.tree_util.tree_map_with_path(lambda path, _: trees.path_name(path) not in bypassed, mask)

    def value(leaf: Array, m: Array, r: bool) -> Array:
        if not r:
            return jnp.zeros_like(leaf)
        return jnp.where(m, leaf.sum() / jnp.maximum((~m).sum(), 1), leaf) if hidden == "average" else leaf

    def counted(m: Array, r: bool) -> Array:
        return ~m if r and hidden == "ignore" else jnp.full(m.shape, r)

    return Target(jax.tree.map(value, visible, mask, reached), jax.tree.map(counted, mask, reached))
