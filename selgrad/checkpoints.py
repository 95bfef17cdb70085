"""Orbax checkpoints: model parameters by seed, and the state of long attacks.

Orbax writes under a temporary name and renames. A series keeps the last two checkpoints: the older one is there where the newer one turns out to be damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from selgrad import files, trees
from selgrad.errors import SelgradError

_PLAIN = re.compile(r"[A-Za-z0-9/._ =,+-]*")
"""Paths that mean the same to Orbax and Tensorstore as they do to the file system."""


def save(path: str | Path, tree: Any) -> None:
    """Writes a pytree of arrays with numbered leaves, replacing any checkpoint at the path.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    _write(path, {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))})


def save_params(path: str | Path, params: Any) -> None:
    """Writes nested dicts of arrays under their own names, as `orbax.checkpoint.PyTreeCheckpointer` does, replacing any checkpoint at the path.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    _write(path, jax.tree.map(np.asarray, params))


def _write(path: str | Path, host: Any) -> None:
    """Writes a checkpoint and its `SHA256SUMS`, since most damage reads as different numbers, which Orbax does not detect."""
    import orbax.checkpoint as ocp

    target = Path(path).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _plainly_named(target.parent) as parent, _silent(), ocp.PyTreeCheckpointer() as checkpointer:
            name = target.name if _PLAIN.fullmatch(target.name) else hashlib.sha256(target.name.encode()).hexdigest()[:16]
            checkpointer.save(parent / name, host, force=True)
            if name != target.name:
                shutil.rmtree(target, ignore_errors=True)
                (target.parent / name).rename(target)
    except Exception as error:  # a full disk is an OSError or, from tensorstore, a ValueError
        if isinstance(error, UnicodeError):
            raise SelgradError(
                f"cannot write checkpoint {str(target)!a}: the locale has no such characters; set PYTHONUTF8=1, or choose another --out"
            ) from None
        raise SelgradError(f"cannot write checkpoint {str(target)!r}: {_reason(error)}; make room and run the same command") from None
    files.seal(target)


@contextlib.contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """Yields a path of plain characters to the same folder: Orbax takes paths for patterns, and Tensorstore reads them as URLs."""
    if _PLAIN.fullmatch(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / "folder"
        link.symlink_to(path, target_is_directory=True)
        yield link


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps Orbax's threads from printing the tracebacks of errors that Orbax raises as well."""
    logger = logging.getLogger("absl")
    hide = lambda record: record.exc_info is None
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)


def _reason(error: Exception) -> str:
    """Puts into words why nothing could be written."""
    text = str(error) or type(error).__name__
    of_system = re.search(r"\[OS error \d+: \w+ ([^]]+)\]", text)
    return getattr(error, "strerror", None) or (of_system.group(1) if of_system else text.splitlines()[0])


def restore(path: str | Path, shown: str | None = None) -> Any:
    """Reads everything that an Orbax checkpoint holds, as nested dicts of arrays.

    It accepts what `PyTreeCheckpointer`, `StandardCheckpointer` and `CheckpointManager` write, and takes the newest step of a manager's folder.

    Raises:
      SelgradError: if there is no checkpoint, or it cannot be read.
    """
    import orbax.checkpoint as ocp

    source, shown = Path(path).expanduser().absolute(), str(path) if shown is None else shown
    if not source.is_dir():
        raise SelgradError(f"there is no checkpoint at {shown!r}; give the folder of one")
    steps = sorted((int(child.name), child) for child in source.iterdir() if child.name.isdigit() and child.is_dir())
    if not (source / "_METADATA").exists() and steps:
        source = steps[-1][1]
    if (source / "default" / "_METADATA").exists():
        source = source / "default"
    files.require_sealed(source)
    try:
        # Orbax warns that arrays are restored to the devices that they were saved from, or to one device; they are copied to the host here.
        with _plainly_named(source) as plain, _silent(), ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            restored = checkpointer.restore(plain)
    except Exception as error:  # orbax and tensorstore raise errors of many kinds for a damaged folder
        raise SelgradError(f"checkpoint {shown!r} cannot be read ({type(error).__name__}); it is damaged or is not an Orbax checkpoint") from None
    return restored


def is_numbered(names: Iterable[str]) -> bool:
    """Whether leaves are named as `save` names them, from "0000" on."""
    ordered = sorted(names)
    return ordered == [f"{i:04d}" for i in range(len(ordered))]


def load(path: str | Path, like: Any) -> Any:
    """Reads what `save` wrote, as arrays of the tree, shapes and dtypes of `like`.

    Raises:
      SelgradError: if there is no checkpoint, it cannot be read, or it holds another tree.
    """
    host = restore(path)
    leaves, treedef = jax.tree.flatten(like)
    stored_leaves = [host[name] for name in sorted(host)] if isinstance(host, dict) else []
    names = trees.paths(like)
    if len(stored_leaves) != len(leaves):
        raise SelgradError(f"checkpoint {str(path)!r} holds {len(stored_leaves)} leaves and {len(leaves)} are needed; it is of another state")
    for name, leaf, like_leaf in zip(names, stored_leaves, leaves, strict=True):
        if np.shape(leaf) != np.shape(like_leaf):
            raise SelgradError(f"checkpoint {str(path)!r}: leaf {name!r} has shape {np.shape(leaf)}, not {np.shape(like_leaf)}; it is of another state")
    return jax.tree.unflatten(treedef, [np.asarray(leaf, like_leaf.dtype) for leaf, like_leaf in zip(stored_leaves, leaves, strict=True)])


class Stored(NamedTuple):
    """One checkpoint of a series.

    Attributes:
      done: steps that were done.
      arrays: the state after them.
      notes: text that belongs to the state.
    """

    done: int
    arrays: Any
    notes: tuple[str, ...]


class Series:
    """The last two checkpoints of one long attack, one folder per number of steps done; a process killed at any moment leaves a complete one.

    Args:
      folder: of the series.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())

    def _notes(self, step: int) -> Path:
        return self._folder / f"{step}.json"

    def save(self, done: int, arrays: Any, notes: Sequence[str] = ()) -> None:
        """Keeps the state after `done` steps and the one before it, and removes older ones.

        Raises:
          SelgradError: if the disk is full or not writable; what was kept before stays.
        """
        older = self._steps()
        if notes:
            # Written before the arrays, whose folder marks the checkpoint as complete.
            files.write_json(self._notes(done), {"notes": list(notes)})
        save(self._folder / str(done), arrays)
        for step in older[:-1]:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
            self._notes(step).unlink(missing_ok=True)

    def newest(self, like: Any) -> Stored | None:
        """The last checkpoint that can be read, or None: the attack then starts again. A damaged one is passed over with a warning."""
        for step in reversed(self._steps()):
            try:
                arrays = load(self._folder / str(step), like)
                notes = files.read_json(self._notes(step))["notes"] if self._notes(step).exists() else []
                return Stored(step, arrays, tuple(map(str, notes)))
            except (SelgradError, KeyError, TypeError) as error:
                warnings.warn(f"passed over for the checkpoint before it, if there is one: {error}", stacklevel=2)
        return None

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, readable or not."""
        return bool(self._steps())

    def remove(self) -> None:
        """Removes the whole series."""
        shutil.rmtree(self._folder, ignore_errors=True)


class DiskCache:
    """Caches what attackers train, one Orbax checkpoint each: called with an identity, a function that makes the tree and one that gives its shapes.

    Args:
      folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, identity: str, make: Callable[[], Any], shapes: Callable[[], Any]) -> Any:
        """The tree stored under the identity, or the result of `make`, which is then stored; a damaged checkpoint is made again.

        Raises:
          SelgradError: if the disk is full or not writable.
        """
        path = self._folder / identity
        if path.is_dir():
            with contextlib.suppress(SelgradError):
                return load(path, shapes())
        tree = make()
        save(path, tree)
        return tree
