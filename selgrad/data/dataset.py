"""A loaded data set: pixels in [0, 1], labels, and the public facts about them.

Every loader ends in `make`, which checks shapes, takes the requested part and fixes the normalisation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from selgrad.base import Batch, InputSpec
from selgrad.errors import DataError, UsageError

Normalisation: TypeAlias = Literal["none", "channel", "imagenet", "cifar10"]
KNOWN = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of each channel with which published weights were trained."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images in memory.

    Attributes:
      pixels: (N, H, W, C) float32 in [0, 1].
      labels: (N,) int32.
      spec: shape, classes and normalisation; `spec.normalise` is applied by `batch` and inverted before anything is measured.
    """

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: int, batch_size: int) -> Batch:
        """Returns batch `index`, which starts at sample index * batch_size, as the model reads it.

        Raises:
          UsageError: if the data set is too small.
        """
        start, stop = index * batch_size, (index + 1) * batch_size
        if stop > len(self):
            raise UsageError(f"batch {index} of {batch_size} samples needs {stop} samples and the data set holds {len(self)}; raise count")
        return self.rows(slice(start, stop))

    def rows(self, chosen: slice | npt.NDArray[np.int64]) -> Batch:
        """Returns samples by their numbers, as the model reads them."""
        return Batch(jnp.asarray(self.spec.normalise(self.pixels[chosen])), jnp.asarray(self.labels[chosen]))


def make(
    pixels: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    *,
    num_classes: int,
    count: int | None,
    offset: int,
    normalisation: Normalisation,
    source: str,
) -> Dataset:
    """Checks and wraps the data that a loader read.

    Args:
      pixels: (N, H, W, C) uint8, or float in [0, 1].
      labels: (N,) integers in [0, num_classes).
      num_classes: of the labels.
      count: samples to keep, None for all.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1], as DLG does; "channel" subtracts the mean and divides by the standard deviation of each channel over
        all samples, which are public, and not those of the few samples kept, which are not; "imagenet" and "cifar10" take the constants with which published
        weights were trained.
      source: name of the data in errors.

    Raises:
      DataError: if shapes do not match, labels are out of range, or pixels are neither uint8 nor floats in [0, 1].
      UsageError: if the requested part does not exist, or the normalisation has another number of channels.
    """
    if pixels.ndim != 4 or len(pixels) != len(labels):
        raise DataError(f"{source}: pixels of shape {pixels.shape} and {len(labels)} labels do not belong together")
    _require_range(pixels, source)
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(f"{source}: labels from {labels.min()} to {labels.max()} lie outside 0 .. {num_classes - 1}")
    available = len(labels)
    stop = available if count is None else offset + count
    if offset < 0 or (count is not None and count < 1) or stop > available or offset >= available:
        raise UsageError(f"{source}: offset={offset}, count={count} asks for samples {offset} .. {stop - 1}; there are {available}")
    whole, pixels, labels = pixels, pixels[offset:stop], labels[offset:stop]
    scaled = pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)
    channels = scaled.shape[-1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if normalisation == "channel":
        moments = [_moments(whole[..., channel]) for channel in range(channels)]
        mean, std = tuple(average for average, _ in moments), tuple(max(deviation, 1e-3) for _, deviation in moments)
    elif normalisation in KNOWN:
        mean, std = KNOWN[normalisation]
        if channels != len(mean):
            raise UsageError(f"{source}: normalisation={normalisation!r} is of {len(mean)} channels and these pictures have {channels}; take 'channel'")
    return Dataset(scaled, labels.astype(np.int32), InputSpec(scaled.shape[1:], num_classes, mean, std))


def _require_range(pixels: npt.NDArray[np.generic], source: str) -> None:
    """Refuses pixels whose type or values do not define black and white."""
    if pixels.dtype == np.uint8 or not pixels.size:
        return
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"{source}: pixels of type {pixels.dtype} have no known range; give uint8, or floats in [0, 1]")
    # A NaN also fails this test.
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError(f"{source}: pixels from {pixels.min():g} to {pixels.max():g} lie outside [0, 1]; give them before normalisation")


def _moments(values: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Returns the mean and standard deviation of pixels in [0, 1]."""
    if values.dtype != np.uint8:
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    # There are only 256 byte values, so the pixels need not be copied as floats.
    levels, counts = np.arange(256) / 255, np.bincount(values.reshape(-1), minlength=256)
    mean = float((levels * counts).sum() / counts.sum())
    return mean, float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))


def existing_file(folder: Path, *names: str) -> Path:
    """Returns the first of the names that exists in the folder.

    Raises:
      DataError: if the folder or every file is missing.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {str(folder)!r} does not exist; set dataset.path to the folder that holds {names[0]}")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"data folder {str(folder)!r} holds none of {', '.join(names)}; set dataset.path to the folder that does")
