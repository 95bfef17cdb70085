"""One interface to Flax Linen modules, NNX modules and plain functions: parameters, other collections, and the call.

Parameters are nested dicts of arrays, so that every leaf has a path; lists and tuples of a plain function's parameters become dicts by index.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from selgrad import trees
from selgrad.base import Key, Params
from selgrad.errors import UsageError

_TRAIN = ("train", "training", "is_training")
_NOT_TRAIN = ("deterministic", "use_running_average")


@runtime_checkable
class Network(Protocol):
    """The interface that an image classifier needs from a network; it hashes by value."""

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of the collections that are not parameters, such as `batch_stats`."""
        ...

    def init(self, key: Key) -> tuple[Params, Params]:
        """Returns fresh parameters, and the other collections by name."""
        ...

    def apply(self, params: Params, others: Params, inputs: Array, train: bool, key: Key | None) -> tuple[Array, Params]:
        """Returns logits (B, classes), and the other collections after the batch, which evaluation does not change."""
        ...


def mode_arguments(call: Callable[..., Any], train: bool) -> dict[str, Any]:
    """Returns the arguments that tell a call whether it trains, by the names that networks commonly use for them; empty where it has none."""
    parameters = inspect.signature(call).parameters
    return {**{name: train for name in _TRAIN if name in parameters}, **{name: not train for name in _NOT_TRAIN if name in parameters}}


@dataclasses.dataclass(frozen=True)
class LinenNetwork:
    """The interface to a Flax Linen module."""

    module: nn.Module
    shape: tuple[int, ...]

    def _variables(self, key: Key) -> Mapping[str, Any]:
        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        extra: dict[str, Any] = mode_arguments(type(self.module).__call__, False)
        return self.module.init(keys, jnp.zeros((1, *self.shape)), **extra)

    @functools.cached_property
    def collections(self) -> tuple[str, ...]:
        """Names of all collections except `params`."""
        shapes = jax.eval_shape(self._variables, jax.random.key(0))
        others = tuple(sorted(name for name in shapes if name != "params"))
        taken = [name for name in others if name in shapes.get("params", {})]
        if taken:
            raise UsageError(f"the network has a layer named {taken[0]!r}, like its collection of that name; give the layer another name")
        return others

    @functools.cached_property
    def _draw(self) -> Any:
        # Compiled once for all seeds; the compiler removes everything from the forward pass but the draws.
        return jax.jit(self._variables)

    def init(self, key: Key) -> tuple[Params, Params]:
        """Returns fresh variables, with parameters separate from the other collections."""
        variables = self._draw(key)
        return variables.get("params", {}), {name: variables[name] for name in self.collections}

    def _mode(self, train: bool) -> dict[str, Any]:
        return mode_arguments(type(self.module).__call__, train)

    def apply(self, params: Params, others: Params, inputs: Array, train: bool, key: Key | None) -> tuple[Array, Params]:
        """Calls the module; its other collections are mutable while it trains."""
        rngs = {"dropout": key} if train and key is not None else None
        variables = {"params": params, **others}
        if not (train and others):
            return self.module.apply(variables, inputs, rngs=rngs, **self._mode(train)), others  # type: ignore[return-value]
        logits, new = self.module.apply(variables, inputs, rngs=rngs, mutable=list(others), **self._mode(train))
        return logits, {**others, **new}


def by_path(tree: Any) -> dict[str, Any]:
    """Converts a pytree to nested dicts by the path of each leaf."""
    return nested(dict(zip(trees.paths(tree), jax.tree.leaves(tree), strict=True)))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Converts leaves by path to nested dicts."""
    result: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = result
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return result


def from_path(tree: Params, like: Any) -> Any:
    """Inverts `by_path` for the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [trees.subtree(tree, path) for path in trees.paths(like)])


@dataclasses.dataclass(frozen=True)
class NNXNetwork:
    """The interface to a Flax NNX module: an instance, whose weights it starts from, or a function of `rngs` that makes one for each seed.

    Attributes:
      make: rngs -> module, or None.
      module: the instance, or None.
    """

    make: Callable[..., Any] | None
    module: Any = dataclasses.field(default=None, compare=False)
    digest: str = ""

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        module = self.module if self.module is not None else nnx.eval_shape(lambda: self._make(nnx.Rngs(0)))
        parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        graph, params, keys, others = parts
        return graph, params, keys, others

    def _make(self, rngs: Any) -> Any:
        assert self.make is not None
        return self.make(rngs=rngs)

    @functools.cached_property
    def collections(self) -> tuple[str, ...]:
        """The collection `batch_stats`, where there is anything besides parameters and keys."""
        return ("batch_stats",) if jax.tree.leaves(self._parts[3]) else ()

    def ours(self, tree: Any) -> Params:
        """Converts a module, a state, or a gradient by one to nested dicts by path; nested dicts stay unchanged."""
        if isinstance(tree, nnx.Module):
            parts: Any = nnx.split(tree, nnx.Param, nnx.RngState, ...)
            _, params, _, others = parts
            return {**by_path(_values(params)), **({"batch_stats": by_path(_values(others))} if self.collections else {})}
        return by_path(_values(tree)) if isinstance(tree, nnx.State) else tree

    def init(self, key: Key) -> tuple[Params, Params]:
        """Returns the instance's own weights, or fresh ones."""
        if self.make is None:
            _, params, _, others = self._parts
        else:
            parts: Any = nnx.split(self._make(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
            _, params, _, others = parts
        return by_path(_values(params)), {"batch_stats": by_path(_values(others))} if self.collections else {}

    def apply(self, params: Params, others: Params, inputs: Array, train: bool, key: Key | None) -> tuple[Array, Params]:
        """Calls a module merged from the weights, in the given mode."""
        graph, like, keys, like_others = self._parts
        state = _with_values(like, from_path(params, _values(like)))
        rest = _with_values(like_others, from_path(others["batch_stats"], _values(like_others))) if self.collections else like_others
        drawn = nnx.split(nnx.Rngs(key if key is not None else 0), nnx.RngState)[1]
        module = nnx.merge(graph, state, _keys_like(keys, drawn), rest)
        (module.train if train else module.eval)()
        logits = module(inputs, **mode_arguments(type(module).__call__, train))
        if not (train and self.collections):
            return logits, others
        after: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return logits, {"batch_stats": by_path(_values(after[3]))}


def _values(state: Any) -> Any:
    """Returns a state's arrays as nested dicts."""
    return nnx.to_pure_dict(state)


def _with_values(state: Any, values: Any) -> Any:
    copy = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(copy, values)
    return copy


def _keys_like(keys: Any, drawn: Any) -> Any:
    """Returns the module's own streams of keys, restarted from one key."""
    first = next((leaf for leaf in jax.tree.leaves(drawn) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)), None)

    def restarted(index: int, leaf: Any) -> Any:
        assert first is not None
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(first, index)
        return jnp.zeros(leaf.shape, leaf.dtype)

    leaves, treedef = jax.tree.flatten(keys)
    return jax.tree.unflatten(treedef, [restarted(i, leaf) for i, leaf in enumerate(leaves)])


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """The interface to a pair of plain functions.

    A matrix is taken as the kernel of a dense layer and a vector of its width in the same folder as the bias, and both get those names: `w` and `b` of
    shapes (m, n) and (n,) become `w/kernel` and `w/bias`. Code that handles dense layers then handles these.

    Attributes:
      make: key -> parameters, any pytree of arrays.
      call: (parameters, inputs) -> logits.
    """

    make: Callable[..., Any]
    call: Callable[..., Any]

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of other collections, always empty."""
        return ()

    @functools.cached_property
    def _like(self) -> Any:
        return jax.eval_shape(self.make, jax.random.key(0))

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        shapes = {path: leaf.shape for path, leaf in zip(trees.paths(self._like), jax.tree.leaves(self._like), strict=True)}
        names = {path: path for path in shapes}
        free = [path for path, shape in shapes.items() if len(shape) == 1]
        for path, shape in shapes.items():
            if len(shape) != 2 or path.split("/")[-1] == "kernel":
                continue
            names[path] = f"{path}/kernel"
            folder = path.rpartition("/")[0]
            bias = next((vector for vector in free if vector.rpartition("/")[0] == folder and shapes[vector] == shape[1:]), None)
            if bias is not None:
                free.remove(bias)
                names[bias] = f"{path}/bias"
        return names

    def _rename(self, path: str) -> str:
        return self._names[path]

    def ours(self, tree: Any) -> Params:
        """Converts a tree like the functions' parameters to nested dicts by path."""
        return nested({self._rename(path): leaf for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True)})

    def theirs(self, tree: Params) -> Any:
        """Inverts `ours`."""
        leaves = [trees.subtree(tree, self._rename(path)) for path in trees.paths(self._like)]
        return jax.tree.unflatten(jax.tree.structure(self._like), leaves)

    def init(self, key: Key) -> tuple[Params, Params]:
        """Returns parameters by path."""
        return self.ours(self.make(key)), {}

    def apply(self, params: Params, others: Params, inputs: Array, train: bool, key: Key | None) -> tuple[Array, Params]:
        """Calls the function, with the mode and the key where it takes them."""
        whole = self.theirs(params)
        extra: dict[str, Any] = dict(mode_arguments(self.call, train))
        if "key" in inspect.signature(self.call).parameters:
            extra["key"] = key if train else None
        return self.call(whole, inputs, **extra), others


@functools.lru_cache(maxsize=256)
def _linen(module: nn.Module, shape: tuple[int, ...]) -> Network:
    return LinenNetwork(module, shape)


def as_network(network: Any, shape: tuple[int, ...]) -> Network:
    """Returns the interface to a network: a Linen module is wrapped, others stay unchanged."""
    return _linen(network, shape) if isinstance(network, nn.Module) else network
