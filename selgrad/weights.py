"""Stored weights in any common format, matched by the names of their leaves: Orbax, safetensors, msgpack, Hugging Face folders.

Names need not be ours: wrapper prefixes are removed, PyTorch's endings and layouts converted, and a leaf whose shape fits only one stored tensor takes that
one. An error lists what remains by name, with the argument that resolves it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from selgrad import checkpoints, trees
from selgrad.base import Key, Model, Params
from selgrad.errors import DataError, SelgradError, UsageError, did_you_mean
from selgrad.models.huggingface import read_safetensors, read_tensors
from selgrad.models.names import cleaned, fused, renamed, turned
from selgrad.registry import Spec

Tensors = dict[str, npt.NDArray[Any]]
_ENDINGS = {"weight": ("kernel", "scale", "embedding"), "bias": ("bias",), "running_mean": ("mean",), "running_var": ("var",)}
_FLAX = ("kernel", "scale", "embedding", "bias", "mean", "var")
_COUNTERS = re.compile(r"(^|[./])(num_batches_tracked|step|count|position_ids)$")
_COLLECTIONS = ("batch_stats",)


def read(path: str | Path) -> Tensors:
    """Reads every array of a checkpoint by name, with the parts of a name joined by `/` or `.`.

    Args:
      path: a `.safetensors` or `.msgpack` file, a folder with `model.safetensors`, or an Orbax checkpoint.

    Raises:
      SelgradError: if there is no checkpoint, or it cannot be read.
    """
    source = Path(path).expanduser()
    if source.is_file():
        if source.suffix == ".safetensors":
            return read_safetensors(source)
        if source.suffix in (".msgpack", ".flax"):
            return _msgpack(source)
        raise DataError(
            f"checkpoint {str(path)!r} is not a .safetensors or .msgpack file; PyTorch's own format runs code when it is read, so save it as safetensors"
        )
    if any((source / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return dict(read_tensors(str(source)))
    for name in ("flax_model.msgpack", "checkpoint.msgpack"):
        if (source / name).is_file():
            return _msgpack(source / name)
    return flat(checkpoints.restore(source, str(path)))


def _msgpack(file: Path) -> Tensors:
    from flax import serialization

    try:
        return flat(serialization.msgpack_restore(file.read_bytes()))
    except Exception as error:  # the unpacker raises errors of many types for a damaged file
        raise DataError(f"{str(file)!r} is damaged or is not a msgpack file ({type(error).__name__}); write it with flax.serialization") from None


def flat(tree: Any, prefix: str = "") -> Tensors:
    """The arrays of nested mappings and sequences by path."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {prefix: np.asarray(tree)} if hasattr(tree, "shape") or isinstance(tree, int | float) else {}
    arrays: Tensors = {}
    for name, part in items:
        arrays |= flat(part, f"{prefix}/{name}" if prefix else str(name))
    return arrays


def _unwrapped(tensors: Tensors) -> Tensors:
    """The weights without wrappers: the optimiser of a training state, the name `params` of Flax variables, and the name `value` of NNX."""
    unwrapped = dict(tensors)
    for wrapper in ("state/", "model/", "state_dict/", "target/"):
        if any(name.startswith(f"{wrapper}params/") for name in unwrapped):
            unwrapped = {name.removeprefix(wrapper): value for name, value in unwrapped.items() if name.startswith(wrapper)}
    if any(name.startswith("params/") for name in unwrapped):
        unwrapped = {name: value for name, value in unwrapped.items() if name.startswith(("params/", *(f"{c}/" for c in _COLLECTIONS)))}
        while any(name.startswith("params/") for name in unwrapped):
            unwrapped = {name.removeprefix("params/"): value for name, value in unwrapped.items()}
    return {name.removesuffix("/value"): value for name, value in unwrapped.items()}


def _key(name: str) -> tuple[str, str]:
    """The layer of a name, with unified separators, and its ending."""
    *layer, ending = re.split(r"[./]", re.sub(r"^batch_stats[./]", "", name))
    return re.sub(r"[._/]+", "_", "_".join(layer)), ending


def _endings(ending: str) -> tuple[str, ...]:
    return _ENDINGS.get(ending, (ending,))


def _fit(name: str, value: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """A stored tensor in the wanted shape, transposed if its name says that PyTorch wrote it; None if it does not fit."""
    from_torch = name.rsplit(".", 1)[-1] == "weight" or name.rsplit("/", 1)[-1] == "weight"
    if from_torch and value.ndim > 1:
        moved = turned(value, shape)
        if moved is not None:
            return moved
    if value.shape == shape:
        return value
    return value.reshape(shape) if value.size == int(np.prod(shape)) and [n for n in value.shape if n != 1] == [n for n in shape if n != 1] else None


def _chosen(names: Sequence[str], path: str) -> str | None:
    """The stored name that `checkpoint_names` assigns to a leaf, with entries `ours=theirs` of leaves or of layers."""
    for entry in names:
        ours, equals, theirs = entry.partition("=")
        if not equals:
            raise UsageError(f"checkpoint_names: {entry!r} is not ours=theirs")
        if path == ours or path.startswith(f"{ours}/"):
            return theirs + path.removeprefix(ours)
    return None


def match(tensors: Tensors, like: Params, source: str, names: Sequence[str] = ()) -> Params:
    """Matches stored tensors to a model's leaves and returns them as its parameters.

    Args:
      tensors: by name.
      like: the model's parameters, or their shapes.
      source: name of the checkpoint in errors.
      names: entries `ours=theirs` of leaves or layers whose names differ too much to be matched.

    Raises:
      SelgradError: if no tensor fits a leaf, or several do and no name decides.
    """
    stored = {renamed(name): value for name, value in fused(cleaned(_unwrapped(tensors))).items() if not _COUNTERS.search(name)}
    wanted = dict(zip(trees.paths(like), jax.tree.leaves(like), strict=True))
    for entry in names:
        if not any(_chosen([entry], path) for path in wanted):
            raise UsageError(f"checkpoint_names: {entry!r} names no leaf of the model; {did_you_mean(entry.partition('=')[0], wanted)}")
    matched: dict[str, tuple[str, npt.NDArray[Any]]] = {}
    by_key: dict[tuple[str, str], str] = {}
    for name in stored:
        layer, ending = _key(name)
        for alias in _endings(ending):
            by_key.setdefault((layer, alias), name)
    for path, leaf in wanted.items():
        bare = path.removeprefix("batch_stats/")
        mapped = _chosen(names, path)
        layer, ending = _key(bare if mapped is None else mapped)
        candidates = [by_key.get((layer, alias)) for alias in (_endings(ending) if ending in _ENDINGS else (ending,))]
        for option in (mapped, path, bare, *candidates):
            if option is None or option not in stored:
                continue
            value = _fit(option, stored[option], leaf.shape)
            if value is not None:
                matched[path] = option, value
                break
        else:
            if mapped is not None:
                raise UsageError(f"checkpoint_names: {source!r} holds no {mapped!r} of shape {leaf.shape} for {path!r}; {did_you_mean(mapped, stored)}")
    _by_shape(stored, wanted, matched)
    missing = [path for path in wanted if path not in matched]
    if missing:
        free = [f"{name} {value.shape}" for name, value in stored.items() if name not in {used for used, _ in matched.values()}]
        shown = ", ".join(f"{path} {tuple(wanted[path].shape)}" for path in missing[:3])
        raise SelgradError(
            f"checkpoint {source!r}: {len(missing)} of {len(wanted)} leaves find no tensor of their name and shape, such as {shown}; "
            f"stored and unused are {', '.join(free[:4]) or 'none'}{', ...' if len(free) > 4 else ''}; name them with checkpoint_names ([ours=theirs])"
        )
    for path, leaf in wanted.items():
        name, value = matched[path]
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.issubdtype(value.dtype, jnp.floating):
            raise SelgradError(f"checkpoint {source!r}: {name!r} holds {value.dtype}, and {path!r} needs floats; store weights that are not quantised")
    unused = sorted(stored.keys() - {name for name, _ in matched.values()})
    if unused:
        shown = ", ".join(unused[:3])
        warnings.warn(f"checkpoint {source!r}: {len(unused)} tensors have no place in the model, such as {shown}; is it of a larger model?", stacklevel=3)
    leaves = [np.asarray(matched[path][1], leaf.dtype) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _by_shape(stored: Tensors, wanted: Mapping[str, Any], matched: dict[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """Assigns to each unmatched leaf the unused tensor with its ending and shape, if there is exactly one and no other leaf could take it."""
    used = {name for name, _ in matched.values()}
    free = {name: value for name, value in stored.items() if name not in used}
    options: dict[str, list[tuple[str, npt.NDArray[Any]]]] = {}
    for path, leaf in wanted.items():
        if path in matched:
            continue
        ending = path.rsplit("/", 1)[-1]
        options[path] = []
        for name, value in free.items():
            theirs = _endings(_key(name)[1])
            moved = _fit(name, value, leaf.shape) if ending in theirs or (ending not in _FLAX) else None
            if moved is not None:
                options[path].append((name, moved))
    for path, choices in options.items():
        rivals = [other for other, theirs in options.items() if other != path and any(name in {n for n, _ in theirs} for name, _ in choices)]
        if len(choices) == 1 and not rivals:
            matched[path] = choices[0]


def load(path: str | Path, like: Params, names: Sequence[str] = ()) -> Params:
    """Loads a model's parameters from a checkpoint.

    Args:
      path: as for `read`.
      like: the model's parameters, or their shapes.
      names: as for `match`.

    Raises:
      SelgradError: as for `read` and `match`, or if a value is not finite.
    """
    tensors = read(path)
    if checkpoints.is_numbered(tensors):
        # Numbered leaves in tree order, as earlier sweeps wrote them.
        paths = trees.paths(like)
        if len(tensors) != len(paths):
            raise SelgradError(f"checkpoint {str(path)!r} holds {len(tensors)} leaves by number and {len(paths)} are needed; it is of another model")
        tensors = dict(zip(paths, (tensors[name] for name in sorted(tensors)), strict=True))
    params = jax.tree.map(jnp.asarray, match(tensors, like, str(path), names))
    trees.require_finite(params, f"checkpoint {str(path)!r}")
    return params


def initial(model: Model, spec: Spec, key: Key) -> Params:
    """A model's initial parameters: from the checkpoint that its spec names, or fresh ones.

    Raises:
      SelgradError: as for `load`.
    """
    params = model.init(key)
    stored = spec.get("checkpoint")
    return params if stored is None else load(stored, params, spec.get("checkpoint_names") or ())
