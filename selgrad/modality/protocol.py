"""What a modality must offer, and the two results that it speaks in: a block's on the device, and a lane's on the host.

It composes data, models and evaluation, so it stands beside `experiment` and above the rooms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad.base import Batch, Model, Params, Reconstruction
from selgrad.data import Dataset, TextDataset
from selgrad.measures import Measure


class Outcome(NamedTuple):
    """What a block leaves of each lane.

    Attributes:
      measures: by name.
      outputs: pixels (B, *shape) in [0, 1], or tokens (B, length).
      labels: (B, *label_shape).
    """

    measures: dict[str, Array]
    outputs: Array
    labels: Array


class LaneResult(NamedTuple):
    """One lane's result on the host.

    Attributes:
      measures: by name.
      outputs: aligned pixels or tokens.
      labels: aligned.
      truth, texts: decoded sentences, empty for images.
    """

    measures: dict[str, float]
    outputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    truth: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


class Kept(NamedTuple):
    """One reconstruction that a gallery keeps: how it is titled, and what was found."""

    title: Mapping[str, Any]
    found: LaneResult


NUMBERS = ("objective", "diverged", "restart", "num_evaluations", "moved")
"""What every attack says of itself, in the order of the records."""


NUM_OTHERS = 1000
"""From which the truth has to be told, at most."""


def drawn(count: int) -> npt.NDArray[np.int64]:
    """At most so many rows as a comparison takes, of `count`, the same in every process."""
    rows: npt.NDArray[np.int64] = np.sort(np.random.default_rng(0).permutation(count)[:NUM_OTHERS])
    return rows


def rounding(like: Array) -> Array:
    """Noise between -2^-20 and 2^-20, the same at every call: eight units in the last place of 1 in float32."""
    return jax.random.uniform(jax.random.key(0), like.shape, like.dtype, -(2.0**-20), 2.0**-20)


@runtime_checkable
class Modality(Protocol):
    """A kind of data."""

    @property
    def name(self) -> str:
        """Such as "images"."""
        ...

    @property
    def judge(self) -> Measure:
        """What success is judged by unless a configuration says otherwise; it has a threshold."""
        ...

    @property
    def headline(self) -> Measure:
        """What a table with room for one measure shows."""
        ...

    @property
    def output_dtype(self) -> Any:
        """Of what attacks return: pixels or token ids."""
        ...

    @property
    def bounds_all_samples(self) -> bool:
        """Whether all samples have the same unknown coordinates, so that one bound speaks of their mean."""
        ...

    def require_fitting(self, dataset: Dataset | TextDataset, model: Model) -> None:
        """Refuses data that the model can read and does not understand.

        Raises:
          UsageError: if the tokenizer of a text is not that of the model's checkpoint.
        """
        ...

    def require_telling(self, dataset: Dataset | TextDataset, rows: Sequence[int]) -> None:
        """Refuses samples of which nothing can be measured.

        Raises:
          UsageError: naming the first.
        """
        ...

    def measure(self, batch: Batch, found: Reconstruction, guess: Any) -> Outcome:
        """On the device, inside a compiled block: aligns and measures what it can; a diverged reconstruction has NaN in every measure."""
        ...

    def finish(self, dataset: Dataset | TextDataset, model: Model, batch: Batch, found: LaneResult, guess: Any, others: Any) -> LaneResult:
        """On the host: decodes, and measures what only decoded data, or other inputs of the data set, can say."""
        ...

    def others(self, everything: Dataset | TextDataset, own: Dataset | TextDataset) -> Any:
        """At most a thousand inputs of a data set, drawn once for all: those that are not one's own, then one's own; the truth is left out later."""
        ...

    def level(self, measures: Mapping[str, float], told_labels: bool) -> str:
        """Which of `selgrad.measures.LEVELS` an attack reached; labels that it was told are nothing it found."""
        ...

    def guess(self, public: Batch | None, dataset: Dataset | TextDataset) -> Any:
        """What somebody says of the data who has seen no gradient, which `better_than_prior` compares with."""
        ...

    def near(self, embedded: Array) -> Array:
        """Embedded inputs moved by what float32 makes of a few operations on them: a search whose objective is lower has found all that it looks for."""
        ...

    def shown(self, batch: Batch, found: LaneResult) -> tuple[Any, Any]:
        """Truth and reconstruction as a person looks at them."""
        ...

    def public(self, load: Any, dataset: Dataset | TextDataset, label: str) -> Dataset | TextDataset:
        """Public data in the shape of the clients', from (maximal length or None) -> data set.

        Raises:
          UsageError: if they do not fit the clients' data.
        """
        ...

    def unknown(self, batch: Batch, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which coordinates of embedded inputs of this shape an attacker does not know, flat."""
        ...

    def prior(self, model: Model, params: Params, public: Batch | None) -> Any:
        """The precision of what an attacker knows of each coordinate beforehand."""
        ...

    def columns(self, model: Model) -> dict[str, str]:
        """Facts about the model that records hold."""
        ...

    def keep_truth(self, file: Path, batch: Batch) -> None:
        """Keeps the first samples of a setting for a gallery: `truth-<setting>` without an ending; nothing where galleries hold the truth themselves."""
        ...

    def keep_gallery(self, file: Path, kept: Sequence[Kept]) -> None:
        """Keeps reconstructions for a gallery, in a file of this stem."""
        ...
