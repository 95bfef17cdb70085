"""Pytrees of gradient entries: leaves by path, exact top-k over all leaves, masked inner products.

Every function treats the tree as one long vector, in the order in which JAX flattens it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PyTree

from selgrad.base import Mask, Ranks, Scores
from selgrad.errors import GradientError, UsageError, require_ratio


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the name of a key path of `jax.tree_util`, such as `conv_0/kernel`."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def paths(tree: PyTree) -> list[str]:
    """Returns the path of each leaf, in flattening order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key by which `layer_10` comes after `layer_2`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def subtree(tree: PyTree, path: str) -> Any:
    """Returns the leaf or subtree at a path such as `encoder/layer_0/kernel` of nested dicts.

    Raises:
      KeyError: if there is none.
    """
    for part in path.split("/"):
        tree = tree[part]
    return tree


def partition(tree: PyTree, chosen: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Splits nested dicts in two by the paths of their leaves; `merge` puts them together again."""

    def walk(node: Any, path: str) -> tuple[Any, Any]:
        yes: dict[str, Any] = {}
        no: dict[str, Any] = {}
        for name, child in node.items():
            inner = f"{path}/{name}" if path else name
            if isinstance(child, dict):
                a, b = walk(child, inner)
                yes |= {name: a} if a else {}
                no |= {name: b} if b else {}
            elif chosen(inner):
                yes[name] = child
            else:
                no[name] = child
        return yes, no

    return walk(tree, "")


def merge(a: PyTree, b: PyTree) -> PyTree:
    """Inverts `partition`."""
    both = {name: merge(a[name], b[name]) for name in a.keys() & b.keys()}
    return {**a, **b, **both}


def size(tree: PyTree) -> int:
    """Counts the entries over all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def count(ratio: float, num_total: int) -> int:
    """Returns round(ratio * num_total), the exact number of encrypted entries.

    It is computed on the host in float64: in float32 the product is wrong from 2^24 entries on.

    Raises:
      UsageError: if the ratio lies outside [0, 1].

    >>> count(0.425, 85036)
    36140
    """
    require_ratio(ratio)
    return round(ratio * num_total)


def ravel(tree: PyTree) -> Array:
    """Concatenates all leaves to one vector, shape (n,)."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def unravel(vector: Array, like: PyTree) -> PyTree:
    """Inverts `ravel` for the tree and shapes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])
    parts = [part.reshape(leaf.shape) for part, leaf in zip(jnp.split(vector, ends[:-1]), leaves, strict=True)]
    return jax.tree.unflatten(treedef, parts)


def inverse_permutation(order: Int[Array, " n"]) -> Int[Array, " n"]:
    """Returns the inverse permutation: the position of each entry in an order, int32."""
    return jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32), unique_indices=True)


def descending_ranks(scores: Float[Array, " n"]) -> Array:
    """Returns the rank of each score, 0 for the largest, ties in index order; shape (n,), int32."""
    order = jnp.argsort(scores, stable=True, descending=True)
    return inverse_permutation(order)


def rank(scores: Scores) -> Ranks:
    """Ranks the entries of all leaves together, so that equal scores give equal masks."""
    return unravel(descending_ranks(ravel(scores)), scores)


def rank_first(ranks: Ranks, chosen: Iterable[bool]) -> Ranks:
    """Moves all entries of the chosen leaves before all others, in otherwise the same order."""
    flags = jnp.concatenate([jnp.full(leaf.size, not yes) for leaf, yes in zip(jax.tree.leaves(ranks), chosen, strict=True)])
    return unravel(inverse_permutation(jnp.lexsort((ravel(ranks), flags))), ranks)


def top(ranks: Ranks, num_selected: Any) -> Mask:
    """Returns the mask of exactly `num_selected` entries; the count may be traced."""
    return jax.tree.map(lambda leaf: leaf < num_selected, ranks)


def by_leaf(function: Callable[..., Array], *leaves: Sequence[Any]) -> Float[Array, " leaves"]:
    """Computes a scalar for each leaf, or for each group of corresponding leaves.

    Biases and scales are half the leaves of a network and almost none of its entries: vectors of one length are processed together, for the compiler's sake.
    """
    results: dict[int, Array] = {}
    by_shape: dict[tuple[int, ...], list[int]] = {}
    items = list(zip(*leaves, strict=True))
    for i, item in enumerate(items):
        if len(item[0].shape) > 1:
            results[i] = function(*item)
        else:
            by_shape.setdefault(item[0].shape, []).append(i)
    for indices in by_shape.values():
        values = jax.vmap(function)(*(jnp.stack(part) for part in zip(*(items[i] for i in indices), strict=True)))
        results.update({i: values[k] for k, i in enumerate(indices)})
    return jnp.stack([results[i] for i in range(len(items))])


def mapped(function: Callable[..., Any], in_axes: Sequence[int | None], size: int) -> Callable[..., Any]:
    """Maps like `jax.vmap` over axes of this size; an axis of one is removed and put back, which compiles faster than one more axis everywhere.

    Args:
      function: of arguments without the axis.
      in_axes: 0 for an argument whose first axis it is, None for one without it.
      size: of the axis.
    """
    if size > 1:
        return jax.vmap(function, tuple(in_axes))

    def unbatched(*arguments: Any) -> Any:
        first = [part if axis is None else jax.tree.map(lambda leaf: leaf[0], part) for part, axis in zip(arguments, in_axes, strict=True)]
        return jax.tree.map(lambda leaf: leaf[None], function(*first))

    return unbatched


def total(function: Callable[..., Array], *leaves: Array) -> Float[Array, ""]:
    """Sums an elementwise function of arrays of one shape over all entries; the arrays are read once, and nothing of their size is written.

    XLA's CPU compiler has no vectorised loop for a sum that it fuses with its summands, so slices are added to each other elementwise, which it does
    fuse, until the rest is small (measured in `benchmarks/engine.py`).
    """
    shape = leaves[0].shape
    if len(shape) < 2:
        return function(*leaves).sum()
    folded = _fold(function, *leaves)
    while len(folded) > 8 and (smaller := _fold(lambda part: part, folded)).shape != folded.shape:
        folded = smaller
    # Columns are summed last: a sum over leading axes is vectorised, and one over a flattened array is not.
    return folded.reshape(-1, shape[-1]).sum(axis=0).sum()


def _fold(function: Callable[..., Array], *leaves: Array) -> Array:
    """Adds up parts of an elementwise function of arrays along the first axis, to a quarter of the size where the length allows it."""
    length = len(leaves[0])
    parts = next((parts for parts in (4, 5, 3, 2) if length % parts == 0), 1)
    size = length // parts
    return functools.reduce(jnp.add, (function(*(leaf[k * size : (k + 1) * size] for leaf in leaves)) for k in range(parts)))


@jax.custom_jvp
def _dot(x: Array, y: Array) -> Array:
    return total(jnp.multiply, x, y)


@_dot.defjvp
def _(values: Any, tangents: Any) -> tuple[Array, Array]:
    # Derivatives by slices would be reassembled entry by entry.
    (x, y), (dx, dy) = values, tangents
    return _dot(x, y), (dx * y + x * dy).sum()


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Returns the inner product over all entries."""
    return sum((_dot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.float32(0))


def safe_sqrt(square: Array) -> Array:
    """Returns the square root, with the derivative at 0 set to 0: distances and metrics are differentiated by dummies."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def group_places(scores: Float[Array, " n"], group: Int[Array, " n"], num_groups: int) -> Array:
    """Returns the rank of each group by falling mean score, ties by number; (num_groups,) int32.

    Args:
      scores: of entries.
      group: the number of each entry's group, in [0, num_groups).
      num_groups: static.
    """
    sums = jnp.zeros(num_groups).at[group].add(scores)
    sizes = jnp.zeros(num_groups).at[group].add(1.0)
    return descending_ranks(sums / jnp.maximum(sizes, 1))


def hide(tree: PyTree, mask: Mask) -> PyTree:
    """Sets every encrypted entry of the tree to 0."""
    return jax.tree.map(lambda leaf, m: jnp.where(m, 0, leaf), tree, mask)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Says whether a leaf's path matches a shell pattern; `fc` and `fc/**` name everything below `fc`."""
    return any(fnmatch.fnmatchcase(path, p.replace("**", "*")) or path.startswith(p.rstrip("/") + "/") for p in patterns)


def matching_leaves(tree: PyTree, patterns: Iterable[str]) -> list[bool]:
    """Says for each leaf whether one of the patterns names it.

    Raises:
      UsageError: if a pattern names no leaf.
    """
    names = paths(tree)
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise UsageError(f"path pattern {pattern!r} names no leaf; the leaves are {', '.join(names)}")
    return [matches(name, patterns) for name in names]


def require_finite(tree: PyTree, what: str) -> None:
    """Raises GradientError with the first leaf that holds NaN or infinity (on the host, outside jit)."""
    for name, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True):
        bad = np.size(leaf) - int(np.isfinite(np.asarray(leaf)).sum())
        if bad:
            raise GradientError(
                f"{what} holds {bad} NaN or infinite entries in leaf {name!r}; "
                "lower the learning rate or check the input, a score or ciphertext of NaN means nothing"
            )


def require_same_tree(mask: PyTree, tree: PyTree) -> None:
    """Raises GradientError if a mask belongs to another tree."""
    ours = {name: leaf.shape for name, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True)}
    theirs = {name: leaf.shape for name, leaf in zip(paths(mask), jax.tree.leaves(mask), strict=True)}
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise GradientError(
                f"the mask is of another tree: leaf {name!r} has shape {ours.get(name)} in the gradient and "
                f"{theirs.get(name)} in the mask; make the mask from scores of this gradient"
            )
