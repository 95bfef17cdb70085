"""The protocol of a modality, and the two kinds of result that it returns: a block's on the device, and a lane's on the host.

It composes data, models and evaluation, so it stands next to `experiment` and above the rooms.
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
    """A block's result for each lane.

    Attributes:
      measures: measures by name.
      outputs: pixels (B, *shape) in [0, 1], or tokens (B, length).
      labels: (B, *label_shape).
    """

    measures: dict[str, Array]
    outputs: Array
    labels: Array


class LaneResult(NamedTuple):
    """One lane's result on the host.

    Attributes:
      measures: measures by name.
      outputs: aligned pixels or tokens.
      labels: aligned labels.
      truth, texts: decoded sentences, empty for images.
    """

    measures: dict[str, float]
    outputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    truth: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


class Kept(NamedTuple):
    """One reconstruction that a gallery keeps: its title, and the lane's result."""

    title: Mapping[str, Any]
    found: LaneResult


NUMBERS = ("objective", "diverged", "restart", "num_evaluations", "moved")
"""The numbers that every attack reports, in the order of the records."""


NUM_OTHERS = 1000
"""The largest number of other inputs from which the truth has to be told."""


def drawn(count: int) -> npt.NDArray[np.int64]:
    """Draws at most `NUM_OTHERS` of `count` rows for a comparison, the same in every process."""
    rows: npt.NDArray[np.int64] = np.sort(np.random.default_rng(0).permutation(count)[:NUM_OTHERS])
    return rows


def rounding(like: Array) -> Array:
    """Returns noise between -2^-20 and 2^-20, the same at every call: eight units in the last place of 1 in float32."""
    return jax.random.uniform(jax.random.key(0), like.shape, like.dtype, -(2.0**-20), 2.0**-20)


@runtime_checkable
class Modality(Protocol):
    """A kind of data."""

    @property
    def name(self) -> str:
        """The name of the modality, such as "images"."""
        ...

    @property
    def judge(self) -> Measure:
        """The measure, with a threshold, that judges success unless a configuration says otherwise."""
        ...

    @property
    def headline(self) -> Measure:
        """The measure that a table with room for only one shows."""
        ...

    @property
    def output_dtype(self) -> Any:
        """The dtype of what attacks return: pixels or token ids."""
        ...

    @property
    def bounds_all_samples(self) -> bool:
        """Whether all samples have the same unknown coordinates, so that one bound covers their mean."""
        ...

    def require_fitting(self, dataset: Dataset | TextDataset, model: Model) -> None:
        """Refuses data that the model can read but was not made for, or that cannot be measured.

        Raises:
          UsageError: if the tokenizer of a text is not that of the model's checkpoint, or images are too small.
        """
        ...

    def require_telling(self, dataset: Dataset | TextDataset, rows: Sequence[int]) -> None:
        """Refuses samples on which nothing can be measured.

        Raises:
          UsageError: if there is such a sample; the message names the first.
        """
        ...

    def measure(self, batch: Batch, reconstruction: Reconstruction, guess: Any) -> Outcome:
        """Aligns and measures what it can on the device, inside a compiled block; a diverged reconstruction has NaN in every measure."""
        ...

    def finish(self, dataset: Dataset | TextDataset, model: Model, batch: Batch, result: LaneResult, guess: Any, others: Any) -> LaneResult:
        """Decodes on the host, and computes the measures that need decoded data or other inputs of the data set."""
        ...

    def others(self, everything: Dataset | TextDataset, own: Dataset | TextDataset) -> Any:
        """Draws at most a thousand inputs of a data set, always the same: those that are not in `own`, then those of `own`; the truth is left out later."""
        ...

    def level(self, measures: Mapping[str, float], told_labels: bool) -> str:
        """Returns which of `selgrad.measures.LEVELS` an attack reached; labels that it was told do not count."""
        ...

    def guess(self, public: Batch | None, dataset: Dataset | TextDataset) -> Any:
        """Returns the guess of an attacker who has seen no gradient, with which `better_than_prior` compares."""
        ...

    def near(self, embedded: Array) -> Array:
        """Returns embedded inputs moved by the float32 rounding of a few operations: a search that reaches a lower objective than theirs has converged."""
        ...

    def shown(self, batch: Batch, result: LaneResult) -> tuple[Any, Any]:
        """Returns truth and reconstruction in the form in which a person looks at them."""
        ...

    def public(self, load: Any, dataset: Dataset | TextDataset, label: str) -> Dataset | TextDataset:
        """Returns public data in the shape of the clients', from a function (maximal length or None) -> data set.

        Raises:
          UsageError: if they do not fit the clients' data.
        """
        ...

    def unknown(self, batch: Batch, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Returns which coordinates of embedded inputs of this shape an attacker does not know, flattened."""
        ...

    def unit(self, shape: Sequence[int]) -> npt.NDArray[np.float64]:
        """Returns one unit of each coordinate of embedded inputs of this shape in the unit in which errors are measured, flattened."""
        ...

    def prior(self, model: Model, params: Params, public: Batch | None) -> Any:
        """Returns the precision of what an attacker knows about each coordinate beforehand, in the unit in which errors are measured."""
        ...

    def columns(self, model: Model) -> dict[str, str]:
        """Returns facts about the model that records hold."""
        ...

    def keep_truth(self, file: Path, batch: Batch) -> None:
        """Keeps the first samples of a setting for a gallery, in `truth-<setting>` plus an ending; does nothing where galleries hold the truth themselves."""
        ...

    def keep_gallery(self, file: Path, kept: Sequence[Kept]) -> None:
        """Keeps reconstructions for a gallery, in a file with this stem."""
        ...
