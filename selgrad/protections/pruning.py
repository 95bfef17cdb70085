"""Gradient pruning: some of the entries are not sent at all.

Zhu, Liu, Han, NeurIPS 2019 (zhu2019dlg), section 5.2, leave the smallest out (Lin et al., ICLR 2018, send the rest later). `order="largest"` leaves out the
entries that encryption by magnitude would hide, so an attacker sees the same and the server learns less.
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
    """A protection that leaves out round(ratio n) entries, the smallest or the largest by magnitude."""

    ratio: float
    order: str

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """Returns the update with pruned entries set to zero, and their mask."""
        sign = 1 if self.order == "largest" else -1
        ranks = trees.rank(jax.tree.map(lambda g: sign * jnp.abs(g), grads))
        withheld = trees.top(ranks, trees.count(self.ratio, trees.size(grads)))
        return Sent(trees.hide(grads, withheld), withheld)

    def num_bytes(self, num_visible: int, num_total: int) -> int:
        """Returns four bytes per entry, plus a bitmap of the entries that are sent."""
        return 4 * num_visible + -(-num_total // 8)


def pruning(*, ratio: float = 0.9, order: Literal["smallest", "largest"] = "smallest") -> Pruning:
    """Leaves out a share of the entries.

    Args:
      ratio: share of entries that are not sent, in [0, 1].
      order: whether the smallest or the largest magnitudes are left out.

    Raises:
      UsageError: if the ratio lies outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise UsageError(f"protection 'pruning': ratio={ratio} lies outside [0, 1]; give the share of entries that are not sent")
    return Pruning(float(ratio), order)
