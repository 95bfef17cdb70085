"""MNIST and Fashion-MNIST from their original files: idx, plain or gzipped.

LeCun et al. 1998 (lecun1998mnist); Xiao, Rasul, Vollgraf 2017 (xiao2017fashion). The format: magic 0x0000TTDD, DD big-endian sizes, bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from selgrad.data.dataset import Dataset, Normalisation, existing_file, make
from selgrad.errors import DataError

LARGEST = 2**32
"""Largest number of bytes of one file's array; MNIST has 47 million."""


def read_idx(path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    """Reads the array of unsigned bytes in an idx file.

    Args:
      path: of the file; gzipped if its first bytes say so.
      ndim: number of dimensions that it must have.

    Raises:
      DataError: if the file is truncated or of another format.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            start = stream.read(4 + 4 * ndim)
            if len(start) < 4 + 4 * ndim or start[:4] != bytes((0, 0, 8, ndim)):
                raise DataError(f"{str(path)!r} is not an idx file of unsigned bytes with {ndim} dimensions (it begins {start[:4].hex() or 'empty'})")
            shape = struct.unpack(f">{ndim}I", start[4:])
            wanted = math.prod(shape)
            if wanted > LARGEST:
                raise DataError(f"{str(path)!r} announces {wanted:,} bytes, {shape}; at most {LARGEST:,} are read, so it is damaged, or split it")
            # Only as many bytes as the header states are unpacked: a megabyte may hold gigabytes.
            body = stream.read(wanted)
            rest = bool(stream.read(1))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{str(path)!r} is a truncated or damaged gzip file ({error}); fetch it again") from None
    if len(body) != wanted or rest:
        content = "more" if rest else f"{len(body)} bytes of data"
        raise DataError(f"{str(path)!r} holds {content} where its header says {shape}; it is {'damaged' if rest else 'truncated'}, fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _load(name: str, path: str, split: str, count: int | None, offset: int, normalisation: Normalisation) -> Dataset:
    stem, folder = {"train": "train", "test": "t10k"}[split], Path(path).expanduser()
    images, labels = (
        read_idx(existing_file(folder, *(f"{stem}-{kind}{end}" for kind in kinds for end in ("", ".gz"))), ndim)
        for kinds, ndim in ((("images-idx3-ubyte", "images.idx3-ubyte"), 3), (("labels-idx1-ubyte", "labels.idx1-ubyte"), 1))
    )
    return make(images[..., None], labels, num_classes=10, count=count, offset=offset, normalisation=normalisation, source=f"{name} in {path!r}")


def mnist(
    *,
    path: str,
    split: Literal["train", "test"] = "test",
    count: int | None = None,
    offset: int = 0,
    normalisation: Normalisation = "none",
) -> Dataset:
    """Loads 28x28x1 handwritten digits of 10 classes.

    Args:
      path: folder of `t10k-images-idx3-ubyte.gz` and its companions, gzipped or not.
      split: "train" or "test".
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    return _load("mnist", path, split, count, offset, normalisation)


def fashion_mnist(
    *,
    path: str,
    split: Literal["train", "test"] = "test",
    count: int | None = None,
    offset: int = 0,
    normalisation: Normalisation = "none",
) -> Dataset:
    """Loads 28x28x1 pictures of clothes of 10 classes.

    Args:
      path: folder of `t10k-images-idx3-ubyte.gz` and its companions, gzipped or not.
      split: "train" or "test".
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    return _load("fashion_mnist", path, split, count, offset, normalisation)
