"""CIFAR-10 and CIFAR-100 from their original files, the python (pickle) and the binary batches.

Krizhevsky 2009 (krizhevsky2009cifar). A record is 1 or 2 label bytes and 3,072 bytes of pixels, channel by channel.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from selgrad.data.dataset import Dataset, Normalisation, make
from selgrad.errors import DataError, first_line

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


class _Bytes:
    """An array in a pickle: the shape and the bytes of unsigned 8-bit integers, which is all that a CIFAR batch holds."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, raw = state
        if not isinstance(dtype, _Type) or by_columns or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("its array is not one of bytes, row by row")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


class _Type:
    """NumPy's type of unsigned 8-bit integers, as a pickle names it."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        pass


class _Named:
    """Stands for a name in a pickle: it can be called, and nothing else."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)


def _type(name: Any, *_: Any) -> _Type:
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"its array is of type {name!r}, and pixels are u1")
    return _Type()


def _encoded(text: Any, encoding: Any) -> bytes:
    """Decodes bytes in the form in which Python 3 writes them for Python 2."""
    if encoding not in ("latin1", b"latin1") or not isinstance(text, str | bytes):
        raise pickle.UnpicklingError("it encodes something else than bytes")
    return text.encode("latin1") if isinstance(text, str) else text


_NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Named(lambda *_: _Bytes()) for core in ("core", "_core")},
    ("numpy", "ndarray"): _Named(lambda *_: _Bytes()),
    ("numpy", "dtype"): _Named(_type),
    ("_codecs", "encode"): _Named(_encoded),
}


_CODES = (
    pickle.APPEND + pickle.APPENDS + pickle.BINBYTES + pickle.BINFLOAT + pickle.BINGET + pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.BINPUT +
    pickle.BINSTRING + pickle.BINUNICODE + pickle.DICT + pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.EMPTY_TUPLE + pickle.FLOAT + pickle.FRAME +
    pickle.GET + pickle.GLOBAL + pickle.INT + pickle.LIST + pickle.LONG + pickle.LONG1 + pickle.LONG_BINGET + pickle.LONG_BINPUT + pickle.MARK +
    pickle.MEMOIZE + pickle.NEWFALSE + pickle.NEWTRUE + pickle.NONE + pickle.PROTO + pickle.PUT + pickle.REDUCE + pickle.SETITEM + pickle.SETITEMS +
    pickle.SHORT_BINBYTES + pickle.SHORT_BINSTRING + pickle.SHORT_BINUNICODE + pickle.STACK_GLOBAL + pickle.STOP + pickle.STRING + pickle.TUPLE +
    pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3 + pickle.UNICODE
)  # fmt: skip
"""The instructions in pickles of strings, numbers, lists, dictionaries and arrays, up to protocol 4; that of a bytearray allocates what its length says."""


class _BatchUnpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Builds strings, numbers, lists, dictionaries and arrays of bytes without calling NumPy, whose own reader of pickles follows pointers.

    It is based on the unpickler in Python, whose memo is a dictionary: the one in C allocates as much as a pickle's counter says.
    """

    def load_build(self: Any) -> None:
        # The original sets any attribute of any object; here only our own arrays and types take a state.
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Bytes | _Type):
            raise pickle.UnpicklingError("it gives a state to something else than an array")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {  # type: ignore[misc]
        **{code: pickle._Unpickler.dispatch[code] for code in _CODES},  # type: ignore[attr-defined]
        pickle.BUILD[0]: load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR batch does")
        return _NAMES[module, name]


def _read_python(path: Path, label_key: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    raw = path.read_bytes()
    try:
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
        data, labels = batch[b"data"], batch[label_key]
        if not isinstance(data, _Bytes) or not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise pickle.UnpicklingError("its data are not an array of bytes, or its labels no list of integers")
        return data.values.reshape(-1, 3072), np.asarray(labels, np.int64)
    except Exception as error:  # a damaged pickle can cause any error
        reason = first_line(error)
        raise DataError(f"{str(path)!r} is not a CIFAR python batch, or is truncated ({type(error).__name__}: {reason})") from None


def _read_binary(path: Path, label_bytes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % (3072 + label_bytes):
        raise DataError(
            f"{str(path)!r} holds {raw.size} bytes, which is not a multiple of {3072 + label_bytes}: it is truncated, or is not a CIFAR binary batch"
        )
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
    """Loads 32x32x3 photographs of 10 classes.

    Args:
      path: folder of the batches, or of `cifar-10-batches-py` or `cifar-10-batches-bin`; the train batches that exist are joined.
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
    """Loads 32x32x3 photographs of 100 classes (the fine labels).

    Args:
      path: folder of the batches, or of `cifar-100-python` or `cifar-100-binary`.
      split: "train" or "test".
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    return _load("cifar100", path, split, count, offset, normalisation)
