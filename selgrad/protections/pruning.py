"""Gradient pruning: part of the entries is not sent at all.

Zhu, Liu, Han, NeurIPS 2019 (zhu2019dlg), section 5.2, leave the smallest out (Lin et al., ICLR 2018, send the rest later). `order="largest"` leaves out what
encryption by magnitude would hide, so an attacker sees the same and the server learns less.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Grads, Key, Sent
from selgrad.errors import UsageError
from selgrad.protections.nothing import ProtectionBase


@dataclasses.dataclass(frozen=True)
class Pruning(ProtectionBase):
    """round(ratio n) entries are left out, the smallest or the largest by magnitude."""

    ratio: float
    order: str

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """The update with zeros, and where they are."""
        sign = 1 if self.order == "largest" else -1
        ranks = trees.rank(jax.tree.map(lambda g: sign * jnp.abs(g), grads))
        withheld = trees.top(ranks, trees.count(self.ratio, trees.size(grads)))
        return Sent(trees.hide(grads, withheld), withheld)

    def num_bytes(self, num_visible: int, num_total: int) -> int:
        """Four for each entry, and a bitmap of those that are sent."""
        return 4 * num_visible + -(-num_total // 8)


def pruning(*, ratio: float = 0.9, order: Literal["smallest", "largest"] = "smallest") -> Pruning:
    """Leaves a share of the entries out.

    Args:
      ratio: share of entries that are not sent, in [0, 1].
      order: whether the smallest or the largest magnitudes are left out.

    Raises:
      UsageError: if the ratio lies outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise UsageError(f"protection 'pruning': ratio={ratio} lies outside [0, 1]; give the share of entries that are not sent")
    return Pruning(float(ratio), order)
