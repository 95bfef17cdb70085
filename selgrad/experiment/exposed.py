"""What a mask leaves for attackers to use: visible nonzero entries for each unknown coordinate, and how much of each layer is hidden.

The same ratio hides different things in two models, or with two metrics: convolutions are half of a LeNet's entries with 10 classes and a tenth with 100, and
a mask by magnitude leaves mostly zeros where activations are sparse. These are counts and not bounds, which `selgrad.evaluation.certificates` computes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from selgrad import trees
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane
from selgrad.topk import counts


class Left(NamedTuple):
    """What a mask leaves of the first round's update.

    Attributes:
      num_nonzero: visible entries that are not 0.
      num_unknown: coordinates of the embedded inputs that the attacker does not know.
      hidden: layer -> share of its entries that are hidden, in the order of the update.
    """

    num_nonzero: int
    num_unknown: int
    hidden: dict[str, float]


class Exposed:
    """Counts what the masks of one setting leave, on the host and from packed bits."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._nonzero = functools.lru_cache(maxsize=4)(self._page)

    def _page(self, seed: int, page: int) -> npt.NDArray[np.uint8]:
        """Returns which entries of a page's updates are not 0, packed by sample."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._setting.client(seed, 0, page).grads)]
        return np.stack([np.packbits(np.concatenate([(leaf[row] != 0).reshape(-1) for leaf in leaves])) for row in range(len(leaves[0]))])

    @functools.cached_property
    def _layers(self) -> tuple[list[str], npt.NDArray[np.int64], list[int]]:
        """The layers' names, the number of each leaf's layer, and the leaves' sizes."""
        setting = self._setting
        names = [path.rpartition("/")[0] or path for path in trees.paths(setting.shapes)]
        layers = list(dict.fromkeys(names))
        sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(setting.shapes)]
        return layers, np.asarray([layers.index(name) for name in names]), sizes

    def left(self, lane: Lane) -> Left:
        """Returns what the first round's mask of a lane leaves."""
        setting = self._setting
        layers, number, sizes = self._layers
        page, index = divmod(lane.sample, setting.page_size)
        packed = setting.hidden(lane)
        hidden, whole = (np.bincount(number, by_leaf, len(layers)) for by_leaf in (counts(packed, sizes), sizes))
        batch = jax.tree.map(lambda leaf: leaf[lane.sample], setting.batches)
        unknown = int(setting.modality.unknown(batch, setting.embedded.shape).sum())
        shares = {name: round(float(share), 6) for name, share in zip(layers, hidden / whole, strict=True)}
        return Left(int(np.bitwise_count(self._nonzero(lane.seed, page)[index] & ~packed).sum()), unknown, shares)
