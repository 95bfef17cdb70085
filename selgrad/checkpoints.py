"""Orbax checkpoints: model parameters by seed, and the state of long attacks.

Orbax writes under another name and renames, and a series removes an older checkpoint only after a newer one is whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selgrad import trees
from selgrad.base import Params
from selgrad.errors import SelgradError


def save(path: str | Path, tree: Any) -> None:
    """Writes a pytree of arrays, replacing what is there.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    import orbax.checkpoint as ocp

    target = Path(path).absolute()
    leaves, _ = jax.tree.flatten(tree)
    host = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(target, host, force=True)
    except OSError as error:
        raise SelgradError(f"cannot write checkpoint {str(target)!r}: {error.strerror or error}; make room and run the same command") from None


def load(path: str | Path, like: Any) -> Any:
    """Reads what `save` wrote, as arrays of the tree, shapes and dtypes of `like`.

    Raises:
      SelgradError: if there is none, it cannot be read, or it is of another tree.
    """
    import orbax.checkpoint as ocp

    source = Path(path).expanduser().absolute()
    if not source.is_dir():
        raise SelgradError(f"there is no checkpoint at {str(path)!r}; give the folder of one")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            host = checkpointer.restore(source)
    except Exception as error:  # orbax and tensorstore raise errors of many kinds for a damaged folder
        raise SelgradError(f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}); it is damaged or no Orbax checkpoint") from None
    leaves, treedef = jax.tree.flatten(like)
    found = [host[name] for name in sorted(host)] if isinstance(host, dict) else []
    names = trees.paths(like)
    if len(found) != len(leaves):
        raise SelgradError(f"checkpoint {str(path)!r} holds {len(found)} leaves and {len(leaves)} are needed; it is of another model or attack")
    for name, leaf, want in zip(names, found, leaves, strict=True):
        if np.shape(leaf) != np.shape(want):
            raise SelgradError(f"checkpoint {str(path)!r}: leaf {name!r} has shape {np.shape(leaf)}, not {np.shape(want)}; it is of another model or attack")
    return jax.tree.unflatten(treedef, [np.asarray(leaf, want.dtype) for leaf, want in zip(found, leaves, strict=True)])


def load_params(path: str | Path, like: Params) -> Params:
    """Model parameters, from an Orbax checkpoint.

    Raises:
      SelgradError: as `load`, or if a value is not finite.
    """
    params = jax.tree.map(jax.numpy.asarray, load(path, like))
    trees.require_finite(params, f"checkpoint {str(path)!r}")
    return params


class Series:
    """The checkpoints of one long attack, one folder per number of steps done; a kill at any moment leaves a whole one.

    Args:
      folder: of the series.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())

    def save(self, done: int, state: Any) -> None:
        """Keeps the state after `done` steps and removes older ones.

        Raises:
          SelgradError: if the disk is full or not writable; what was kept before stays.
        """
        older = self._steps()
        save(self._folder / str(done), state)
        for step in older:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def newest(self, like: Any) -> tuple[int, Any]:
        """Steps done and the state, or (0, None) where no checkpoint can be read: the attack starts again and nothing finished is lost."""
        for step in reversed(self._steps()):
            try:
                return step, load(self._folder / str(step), like)
            except SelgradError:
                continue
        return 0, None

    def remove(self) -> None:
        """Removes the whole series."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Kept:
    """What attackers train, one Orbax checkpoint each: called with an identity, how to make it and how to get its shapes, it makes it once.

    Args:
      folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, identity: str, make: Callable[[], Any], shapes: Callable[[], Any]) -> Any:
        """What was kept under the identity, or what `make` gives, which is kept; a damaged checkpoint is made anew.

        Raises:
          SelgradError: if the disk is full or not writable.
        """
        path = self._folder / identity
        if path.is_dir():
            with contextlib.suppress(SelgradError):
                return load(path, shapes())
        made = make()
        save(path, made)
        return made
