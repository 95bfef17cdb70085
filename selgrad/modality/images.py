"""Images: pixels in [0, 1], aligned by mean squared error, measured inside the compiled block and kept as compressed arrays.

The measures are those of `selgrad.evaluation` that read images or labels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad.base import Batch, InputSpec, Model, Params, Reconstruction
from selgrad.data import Dataset, TextDataset
from selgrad.devices import write_atomically
from selgrad.errors import UsageError
from selgrad.evaluation import MEASURES, align
from selgrad.evaluation.certificates import gaussian_prior
from selgrad.measures import Measure
from selgrad.modality.protocol import NUMBERS, Kept, LaneResult, Outcome

_MINE = [measure for measure in MEASURES.values() if measure.reads in ("images", "labels")]


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one shape and normalisation."""

    spec: InputSpec

    @property
    def name(self) -> str:
        """Images."""
        return "images"

    @property
    def judge(self) -> Measure:
        """The first measure of images with a threshold."""
        return next(measure for measure in _MINE if measure.threshold is not None)

    @property
    def headline(self) -> Measure:
        """PSNR."""
        return next(measure for measure in _MINE if measure.headline)

    @property
    def output_dtype(self) -> Any:
        """Float pixels."""
        return np.float32

    @property
    def bounds_all_samples(self) -> bool:
        """Every pixel of every sample is unknown."""
        return True

    def require_fitting(self, dataset: Dataset | TextDataset, model: Model) -> None:
        """Every picture of the shape is understood."""

    def measure(self, batch: Batch, found: Reconstruction) -> Outcome:
        """Aligns reconstructed images with the truth and measures them."""
        aligned = align(self.spec, batch, found)
        measures: dict[str, Array] = {name: getattr(found, name) for name in NUMBERS}
        for one in _MINE:
            assert one.of is not None
            measures[one.name] = jnp.where(found.diverged, jnp.nan, one.of(self.spec, batch, aligned))
        return Outcome(measures, jnp.clip(self.spec.pixels(aligned.inputs), 0, 1), aligned.labels)

    def finish(self, dataset: Dataset | TextDataset, model: Model, batch: Batch, found: LaneResult) -> LaneResult:
        """As it is: pixels need no decoding."""
        return found

    def shown(self, batch: Batch, found: LaneResult) -> tuple[Any, Any]:
        """Pixels in [0, 1], (B, *shape)."""
        return np.asarray(self.spec.pixels(batch.inputs)), found.outputs

    def public(self, load: Any, dataset: Dataset | TextDataset, label: str) -> Dataset | TextDataset:
        """Images of the clients' shape."""
        data: Dataset | TextDataset = load(None)
        if not isinstance(data.spec, InputSpec) or data.spec.shape != self.spec.shape:
            raise UsageError(f"public: {label} holds inputs of shape {data.spec.shape}, and the clients' have shape {self.spec.shape}")
        return data

    def unknown(self, batch: Batch, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """All of them."""
        return np.ones(int(np.prod(shape)), bool)

    def prior(self, model: Model, params: Params, public: Batch | None) -> Any:
        """A Gaussian fitted to the public images, or uniform pixels."""
        if public is not None:
            return gaussian_prior(np.asarray(public.inputs))
        return 12 / float(np.mean([(high - low) ** 2 for low, high in zip(self.spec.low, self.spec.high, strict=True)]))

    def columns(self, model: Model) -> dict[str, str]:
        """None is of interest."""
        return {"embedding": ""}

    def keep_truth(self, file: Path, batch: Batch) -> None:
        """Pixels and labels as `<stem>.npz`."""
        _write_npz(file.with_suffix(".npz"), pixels=_to_uint8(self.spec.pixels(np.asarray(batch.inputs))), labels=np.asarray(batch.labels))

    def keep_gallery(self, file: Path, kept: Sequence[Kept]) -> None:
        """Pixels with their titles as `<stem>.npz`."""
        titles = {key: np.asarray([one.title[key] for one in kept]) for key in kept[0].title}
        _write_npz(file.with_suffix(".npz"), pixels=_to_uint8(np.stack([one.found.outputs for one in kept])), **titles)


def _to_uint8(pixels: Any) -> Any:
    return np.rint(np.nan_to_num(np.clip(np.asarray(pixels), 0, 1)) * 255).astype(np.uint8)


def _write_npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)

    def write(target: Path) -> None:
        target.write_bytes(buffer.getvalue())

    write_atomically(path, write)
