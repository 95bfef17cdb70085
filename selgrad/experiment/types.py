"""The arrays and results that the parts of an experiment pass to each other.

A block has two axes, seeds and lanes; whatever belongs to a round is an entry of a tuple with at least one entry.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad import encryption
from selgrad.base import Batch, Grads, Key, Mask, Observation, Params
from selgrad.registry import Spec


def fold(key: Key, *names: str | int) -> Key:
    """Derives a key for a named purpose, the same in every process and for every size of sweep."""
    for name in names:
        key = jax.random.fold_in(key, _code(name))
    return key


def _code(name: str | int) -> int:
    return name if isinstance(name, int) else zlib.crc32(name.encode())


@dataclasses.dataclass(frozen=True)
class Lane:
    """Identifies one lane by everything that varies inside a block."""

    seed: int
    sample: int
    metric: Spec
    selector: Spec
    ratio: float


@dataclasses.dataclass(frozen=True)
class Client:
    """One seed's weights, and every sample's batch, sent update, withheld entries, and the noise on each leaf, stacked along a leading axis."""

    params: Params
    batches: Batch
    grads: Grads
    withheld: Mask | None = None
    noise: Grads | None = None


class Shown(NamedTuple):
    """What a lane's attacker sees of one round's update: its visible entries, with hidden ones set to 0, and the mask of the hidden ones."""

    visible: Grads
    mask: Mask


class Seen(NamedTuple):
    """What an attacker holds of one lane besides public knowledge: an `Observation` as arrays alone.

    Attributes:
      sent: one entry per round, including what the attacker knows although it is not sent.
      labels, valid: where the threat model reveals them.
      estimate: a decoder's estimate, where the attack has one.
      noise: the noise of a protection.
      completed: one entry per round, where the attack fills in entries.
    """

    sent: tuple[Shown, ...]
    labels: Array | None = None
    valid: Array | None = None
    estimate: Array | None = None
    noise: Grads | None = None
    completed: tuple[Mask, ...] | None = None

    @classmethod
    def of(cls, observation: Observation) -> Seen:
        """Returns the arrays of an observation."""
        shown = tuple(Shown(update.visible, update.mask) for update in observation.sent)
        return cls(shown, observation.labels, observation.valid, observation.estimate, observation.noise, observation.completed)


class Tables(NamedTuple):
    """What the lanes of a block have in common, held once for all of them.

    Attributes:
      weights: weights of each round, leading axis (seeds,).
      updates: updates of each round, as they are sent: leading axes (seeds, updates), every sample of a row once.
      noise: noise of a protection on the first round's updates, the same axes.
    """

    weights: tuple[Params, ...]
    updates: tuple[Grads, ...]
    noise: Grads | None = None


class Lanes(NamedTuple):
    """What each lane of a block has of its own; every leaf has the leading axes (seeds, lanes).

    Attributes:
      key: key of each attack.
      batch: the truth, read only by measures and for what a threat model reveals.
      update: int32 (NumPy on the host, as `hidden`), the lane's index in the tables.
      hidden: one entry per round, (ceil(n / 8),) uint8: which entries are hidden, as `numpy.packbits` returns them.
    """

    key: Key
    batch: Batch
    update: Any
    hidden: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of seeds and of lanes."""
        rows, columns = self.key.shape[:2]
        return int(rows), int(columns)

    def at(self, row: int, column: int) -> Lanes:
        """Returns one lane, without the two leading axes."""
        lane: Lanes = jax.tree.map(lambda leaf: leaf[row, column], self)
        return lane


@dataclasses.dataclass(frozen=True)
class CellResult:
    """One cell of an experiment.

    Attributes:
      measures: `objective`, `label_correct`, `diverged`, `restart`, `num_evaluations`; of images `mse`, `psnr` (dB), `ssim`; of text `rouge1`,
        `rouge2`, `rougeL`, `token_accuracy`, `exact_match`.
      truth, reconstruction: (B, *shape) pixels in [0, 1], or decoded sentences.
      labels: (B, *label_shape), the recovered labels.
      num_selected, num_total: number of encrypted entries and of all entries.
      num_visible: number of entries sent in the clear.
      seconds: run time of the attack, without compilation.
      cost: cost of the encryption, where it was requested.
      report: the report of an attack on the host, as JSON.
    """

    measures: dict[str, float]
    truth: npt.NDArray[np.float32] | tuple[str, ...]
    reconstruction: npt.NDArray[np.float32] | tuple[str, ...]
    labels: npt.NDArray[np.int32]
    num_selected: int
    num_total: int
    num_visible: int
    seconds: float
    cost: encryption.Cost | None = None
    report: str = ""

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["measures"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"a cell result has no {name!r}; its measures are {', '.join(self.__dict__.get('measures', {}))}") from None


def widen(leaf: Any) -> Any:
    """Converts a float32 array to float64; others are returned as they are."""
    return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf


def seed_key(seed: int, *names: str | int) -> Key:
    """Returns the key of a seed for a named purpose, as `fold` derives it; at most four names."""
    codes = np.zeros(4, np.uint32)
    codes[: len(names)] = [_code(name) for name in names]
    return _seed_key(np.int32(seed), codes, np.int32(len(names)))


@jax.jit
def _seed_key(seed: Any, codes: Any, count: Any) -> Key:
    return jax.lax.fori_loop(0, count, lambda i, key: jax.random.fold_in(key, codes[i]), jax.random.key(seed))


def each_key(key: Key, samples: Sequence[int]) -> Key:
    """Returns one key per sample, which does not depend on the other samples."""
    return _each_key(key, np.asarray(samples, np.int32))


@jax.jit
def _each_key(key: Key, samples: Any) -> Key:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(samples)
