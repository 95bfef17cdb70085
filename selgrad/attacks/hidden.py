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
    # A dummy in the place of the embeddings gives the leaves that embedding reads no gradient to compare.
    reached = jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.full(leaf.shape, trees.path_name(path) not in bypassed), mask)
    visible = jax.tree.map(lambda leaf, r: jnp.where(r, leaf, 0), visible, reached)
    if hidden == "ignore":
        return Target(visible, jax.tree.map(lambda m, r: ~m & r, mask, reached))
    if hidden == "zero":
        return Target(visible, reached)

    def average(leaf: Array, m: Array, r: Array) -> Array:
        mean = leaf.sum() / jnp.maximum((~m).sum(), 1)
        return jnp.where(r, jnp.where(m, mean, leaf), 0)

    return Target(jax.tree.map(average, visible, mask, reached), reached)
