"""CIFAR-10 and CIFAR-100 from their original files, the python (pickle) and the binary batches.

Krizhevsky 2009 (krizhevsky2009cifar). A record is 1 or 2 label bytes and 3,072 bytes of pixels, channel by channel.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from selgrad.data.dataset import Dataset, Normalisation, make
from selgrad.errors import DataError

_FILES = {
    ("cifar10", "train"): [f"data_batch_{i}" for i in range(1, 6)],
    ("cifar10", "test"): ["test_batch"],
    ("cifar100", "train"): ["train"],
    ("cifar100", "test"): ["test"],
}
_FOLDERS = {
    "cifar10": ("", "cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("", "cifar-100-python", "cifar-100-binary"),
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and plain containers and nothing else: a pickle from elsewhere may run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR batch does")


def _read_python(path: Path, label_key: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        data, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[label_key], np.int64)
        return data.reshape(-1, 3072), labels
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError, AttributeError, ImportError) as error:
        raise DataError(f"{str(path)!r} is no CIFAR python batch, or is truncated ({type(error).__name__}: {error})") from None


def _read_binary(path: Path, label_bytes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % (3072 + label_bytes):
        raise DataError(f"{str(path)!r} holds {raw.size} bytes, no multiple of {3072 + label_bytes}: truncated, or no CIFAR binary batch")
    records = raw.reshape(-1, 3072 + label_bytes)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _load(name: str, path: str, split: str, count: int | None, offset: int, normalisation: Normalisation) -> Dataset:
    root, stems = Path(path).expanduser(), _FILES[name, split]
    if not root.is_dir():
        raise DataError(f"data folder {str(root)!r} does not exist; set dataset.path to the folder that holds {stems[0]}")
    label_key, label_bytes, num_classes = {"cifar10": (b"labels", 1, 10), "cifar100": (b"fine_labels", 2, 100)}[name]
    for folder in (root / sub for sub in _FOLDERS[name]):
        python = [folder / stem for stem in stems if (folder / stem).is_file()]
        binary = [folder / f"{stem}.bin" for stem in stems if (folder / f"{stem}.bin").is_file()]
        if python or binary:
            parts = [_read_python(p, label_key) for p in python] or [_read_binary(p, label_bytes) for p in binary]
            pixels = np.concatenate([p for p, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = np.concatenate([y for _, y in parts])
            source = f"{name} in {str(folder)!r}"
            return make(pixels, labels, num_classes=num_classes, count=count, offset=offset, normalisation=normalisation, source=source)
    raise DataError(f"data folder {str(root)!r} holds neither {stems[0]} nor {stems[0]}.bin, also not in {', '.join(_FOLDERS[name][1:])}")


def cifar10(
    *,
    path: str,
    split: Literal["train", "test"] = "test",
    count: int | None = None,
    offset: int = 0,
    normalisation: Normalisation = "none",
) -> Dataset:
    """32x32x3 photographs, 10 classes.

    Args:
      path: folder of the batches, or of `cifar-10-batches-py` or `cifar-10-batches-bin`; train batches that are there are joined.
      split: "train" or "test".
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    return _load("cifar10", path, split, count, offset, normalisation)


def cifar100(
    *,
    path: str,
    split: Literal["train", "test"] = "test",
    count: int | None = None,
    offset: int = 0,
    normalisation: Normalisation = "none",
) -> Dataset:
    """32x32x3 photographs, 100 classes (the fine labels).

    Args:
      path: folder of the batches, or of `cifar-100-python` or `cifar-100-binary`.
      split: "train" or "test".
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    return _load("cifar100", path, split, count, offset, normalisation)
