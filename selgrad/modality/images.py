"""Images: pixels in [0, 1], aligned by mean squared error, measured inside the compiled block and kept as compressed arrays.

The measures are those of `selgrad.evaluation` that read images or labels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad import files
from selgrad.base import Batch, InputSpec, Model, Params, Reconstruction
from selgrad.data import Dataset, TextDataset
from selgrad.errors import UsageError
from selgrad.evaluation import MEASURES, align, identified_images
from selgrad.evaluation.certificates import gaussian_prior
from selgrad.evaluation.features import HiddenLayer
from selgrad.evaluation.image import mse
from selgrad.measures import Measure
from selgrad.modality.protocol import NUM_OTHERS, NUMBERS, Kept, LaneResult, Outcome, drawn, rounding

_MINE = [measure for measure in MEASURES.values() if measure.reads in ("images", "labels")]


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one shape and normalisation.

    Attributes:
      spec: spec of the images.
      features: features of a trained network, in which images are compared in addition to their pixels.
    """

    spec: InputSpec
    features: HiddenLayer | None = None

    @property
    def name(self) -> str:
        """The name "images"."""
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
        """The dtype of pixels."""
        return np.float32

    @property
    def bounds_all_samples(self) -> bool:
        """True, since every pixel of every sample is unknown."""
        return True

    def require_fitting(self, dataset: Dataset | TextDataset, model: Model) -> None:
        """Accepts all images of the shape, unless they are too small.

        Raises:
          UsageError: if images have fewer than three pixels on a side, where no structure can be measured.
        """
        if min(self.spec.shape[:2]) < 3:
            raise UsageError(f"images of {self.spec.shape[0]} x {self.spec.shape[1]} pixels are too small to be measured; give at least 3 x 3")

    def require_telling(self, dataset: Dataset | TextDataset, rows: Sequence[int]) -> None:
        """Accepts all samples, since every image can be measured."""

    def guess(self, public: Batch | None, dataset: Dataset | TextDataset) -> Any:
        """Returns the mean of public images, or grey, in the units that the model reads."""
        if public is not None:
            return np.asarray(public.inputs).reshape(-1, *self.spec.shape).mean(axis=0)
        return self.spec.normalise(np.full(self.spec.shape, 0.5, np.float32))

    def near(self, embedded: Array) -> Array:
        """Moves inputs by one part in a million of the range of a pixel."""
        return embedded + rounding(embedded) / jnp.asarray(self.spec.std, embedded.dtype)

    def measure(self, batch: Batch, reconstruction: Reconstruction, guess: Any) -> Outcome:
        """Aligns reconstructed images with the truth and measures them."""
        aligned = align(self.spec, batch, reconstruction)
        measures: dict[str, Array] = {name: getattr(reconstruction, name) for name in NUMBERS}
        for measure in _MINE:
            assert measure.of is not None
            measures[measure.name] = jnp.where(reconstruction.diverged, jnp.nan, measure.of(self.spec, batch, aligned))
        pixels = lambda inputs: jnp.clip(self.spec.pixels(inputs), 0, 1)
        error = lambda inputs: mse(pixels(batch.inputs), pixels(inputs)).mean()
        measures["best_mse"] = jnp.where(reconstruction.diverged, jnp.nan, mse(pixels(batch.inputs), pixels(aligned.inputs)).min())
        measures["better_than_prior"] = ~reconstruction.diverged & (error(aligned.inputs) < error(jnp.broadcast_to(jnp.asarray(guess), batch.inputs.shape)))
        return Outcome(measures, jnp.clip(self.spec.pixels(aligned.inputs), 0, 1), aligned.labels)

    def finish(self, dataset: Dataset | TextDataset, model: Model, batch: Batch, result: LaneResult, guess: Any, others: Any) -> LaneResult:
        """Compares with the other inputs; pixels need no decoding."""
        if result.measures["diverged"]:
            unknown = dict.fromkeys(["identified", *(["feature_distance"] if self.features else [])], float("nan"))
            return result._replace(measures={**result.measures, **unknown})
        truths = self.spec.pixels(np.asarray(batch.inputs))
        apart, features, more = _apart(others, truths), None, {}
        if self.features is not None:
            features = self.features(truths), self.features(np.nan_to_num(result.outputs)), self.features.kept(others)[apart]
            more = {"feature_distance": float(1 - (features[0] * features[1]).sum(axis=1).mean())}
        return result._replace(measures={**result.measures, "identified": identified_images(truths, result.outputs, others[apart], features), **more})

    def others(self, everything: Dataset | TextDataset, own: Dataset | TextDataset) -> Any:
        """Returns pixels (N, *shape) in [0, 1]."""
        assert isinstance(everything, Dataset)
        assert isinstance(own, Dataset)
        mine = {image.tobytes() for image in own.pixels}
        rows = [row for row in drawn(len(everything)) if everything.pixels[row].tobytes() not in mine]
        return np.concatenate([everything.pixels[rows], own.pixels[drawn(len(own))][: NUM_OTHERS - len(rows)]])

    def level(self, measures: Mapping[str, float], told_labels: bool) -> str:
        """Returns the level; exact is an image of the batch with a root mean squared error below half a grey level.

        A result that has not moved is a draw from prior knowledge.
        """
        if not measures["moved"]:
            return "nothing"
        if measures["best_mse"] < (0.5 / 255) ** 2:
            return "exact"
        if measures["identified"] > 0:
            return "recognisable"
        return "attribute" if measures["label_correct"] == 1 and not told_labels else "nothing"

    def shown(self, batch: Batch, result: LaneResult) -> tuple[Any, Any]:
        """Returns pixels in [0, 1], (B, *shape)."""
        return np.asarray(self.spec.pixels(batch.inputs)), result.outputs

    def public(self, load: Any, dataset: Dataset | TextDataset, label: str) -> Dataset | TextDataset:
        """Returns public images, which must have the clients' shape."""
        data: Dataset | TextDataset = load(None)
        if not isinstance(data.spec, InputSpec) or data.spec.shape != self.spec.shape:
            raise UsageError(f"public: {label} holds inputs of shape {data.spec.shape}, and the clients' have shape {self.spec.shape}")
        return data

    def unknown(self, batch: Batch, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Returns True for every coordinate."""
        return np.ones(int(np.prod(shape)), bool)

    def unit(self, shape: Sequence[int]) -> npt.NDArray[np.float64]:
        """Returns the standard deviation by which each pixel was divided: errors are measured in pixels in [0, 1]."""
        return np.broadcast_to(np.asarray(self.spec.std, np.float64), shape).reshape(-1)

    def prior(self, model: Model, params: Params, public: Batch | None) -> Any:
        """Returns the precision of a Gaussian fitted to the pixels of the public images, or of uniform pixels in [0, 1]."""
        return 12.0 if public is None else gaussian_prior(self.spec.pixels(np.asarray(public.inputs)))

    def columns(self, model: Model) -> dict[str, str]:
        """Returns an empty embedding, since images have none."""
        return {"embedding": ""}

    def keep_truth(self, file: Path, batch: Batch) -> None:
        """Keeps pixels and labels as `<stem>.npz`."""
        _write_npz(file.with_suffix(".npz"), pixels=_to_uint8(self.spec.pixels(np.asarray(batch.inputs))), labels=np.asarray(batch.labels))

    def keep_gallery(self, file: Path, kept: Sequence[Kept]) -> None:
        """Keeps pixels with their titles as `<stem>.npz`."""
        titles = {key: np.asarray([entry.title[key] for entry in kept]) for key in kept[0].title}
        _write_npz(file.with_suffix(".npz"), pixels=_to_uint8(np.stack([entry.found.outputs for entry in kept])), **titles)


def _apart(others: npt.NDArray[np.float32], truths: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Returns which of the others are not among the truths, whose pixels were normalised and restored."""
    sums, apart = others.sum(axis=(1, 2, 3)), np.ones(len(others), bool)
    for truth in truths:
        near = np.flatnonzero(np.abs(sums - truth.sum()) < 1e-4 * truth.size)
        apart[near[np.abs(others[near] - truth).max(axis=(1, 2, 3)) < 1e-4]] = False
    return apart


def _to_uint8(pixels: Any) -> Any:
    return np.rint(np.nan_to_num(np.clip(np.asarray(pixels), 0, 1)) * 255).astype(np.uint8)


def _write_npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_bytes(path, buffer.getvalue())
