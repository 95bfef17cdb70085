"""Distances between a dummy update and the observed one, over the entries that count.

Squared L2: Zhu et al. 2019 (zhu2019dlg), equation 3. Cosine: Geiping et al. 2020 (geiping2020inverting), equation 4. All are relative to the norm of the
visible entries, so that neither the scale of a loss nor hidden large entries push an attack's objective below what its float type or tolerance resolves.
A leaf of the dummy update may be an `Outer`; each distance takes as few passes over it as its terms allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selgrad import trees
from selgrad.attacks.hidden import Target
from selgrad.attacks.outer import Outer, is_outer


@jax.custom_jvp
def _error(leaf: Array, target: Array, counted: Array, slope: Array | None) -> Array:
    """Sums e^2 + slope |e|, with e = leaf - target, over counted entries in one pass; e^2 alone where there is no slope."""

    def penalised(g: Array, t: Array, c: Array) -> Array:
        error = jnp.where(c, g - t, 0)
        return error * error if slope is None else error * error + slope * jnp.abs(error)

    return trees.total(penalised, leaf, target, counted)


@_error.defjvp
def _(values: Any, tangents: Any) -> tuple[Array, Array]:
    leaf, target, counted, slope = values
    error = jnp.where(counted, leaf - target, 0)
    derivative = 2 * error if slope is None else 2 * error + slope * jnp.sign(error)
    return _error(*values), (derivative * (tangents[0] - tangents[1])).sum()


@jax.custom_jvp
def _square(leaf: Array, counted: Array) -> Array:
    """Sums the squares of counted entries in one pass."""
    return trees.total(lambda g, c: jnp.where(c, g * g, 0), leaf, counted)


@_square.defjvp
def _(values: Any, tangents: Any) -> tuple[Array, Array]:
    leaf, counted = values
    return _square(leaf, counted), (2 * jnp.where(counted, leaf, 0) * tangents[0]).sum()


def _pairs(candidate: Any, target: Target) -> list[tuple[Any, Array, Array]]:
    """Pairs the leaves of the dummy update with those of the target and with the entries that count."""
    leaves = jax.tree.leaves(candidate, is_leaf=is_outer)
    return list(zip(leaves, jax.tree.leaves(target.grads), jax.tree.leaves(target.counted), strict=True))


def _sum(parts: Sequence[Array]) -> Array:
    return jnp.stack(parts).sum()


def _written(leaf: Array | Outer) -> Array:
    return leaf.dense() if isinstance(leaf, Outer) else leaf


def squared_l2(candidate: Any, target: Target) -> Float[Array, ""]:
    """Returns the sum over counted entries of (g'_i - g_i)^2, divided by |g|^2: 1 for a dummy whose update is 0."""
    return l2_l1(candidate, target, 0.0)


def _inner_and_squares(candidate: Any, target: Target) -> tuple[Float[Array, " leaves"], Float[Array, " leaves"]]:
    """Returns, for each leaf, <g', g> over its counted entries (g is 0 on the others) and the squared norm of g' over them."""
    leaves, targets, counted = zip(*_pairs(candidate, target), strict=True)
    inner = lambda leaf, t: leaf.inner(t) if isinstance(leaf, Outer) else trees.dot(leaf, t)
    square = lambda leaf, c: leaf.square(c) if isinstance(leaf, Outer) else _square(leaf, c)
    return trees.by_leaf(inner, leaves, targets), trees.by_leaf(square, leaves, counted)


def _cosine(inner: Array, square: Array, target: Array, floor: Array | float) -> Float[Array, "*leaves"]:
    """Returns 1 - cos from inner products, squared norms of dummy updates and norms of targets; 1 where a target's norm does not exceed the floor."""
    norm, target_norm = trees.safe_sqrt(square), target
    known = (norm > 0) & (target_norm > floor)
    # The two divisions are separate because the square of a product of two small norms underflows in the derivative.
    similarity = inner / jnp.where(known, norm, 1) / jnp.where(known, target_norm, 1)
    return 1 - jnp.where(known, similarity, 0)


def cosine(candidate: Any, target: Target) -> Float[Array, ""]:
    """Returns 1 - cos of the angle between the counted entries, one angle over all leaves; 1 where either side is 0."""
    inner, square = _inner_and_squares(candidate, target)
    return _cosine(inner.sum(), square.sum(), 1 / target.inverse, 0.0) + target.penalty


def mean_leaf_cosine(candidate: Any, target: Target) -> Float[Array, ""]:
    """Returns the mean over leaves of 1 - cos: LAMP's variant (balunovic2022lamp), which weights a bias as much as a matrix.

    A leaf whose whole target lies below the rounding of the gradient counts as 0, hence as 1 - cos = 1: the gradient of an attention key's
    bias is 0 in exact arithmetic, and the direction of its rounding errors says nothing.
    """
    floor = jnp.finfo(target.norms.dtype).eps / target.inverse
    return jnp.mean(_cosine(*_inner_and_squares(candidate, target), target.norms, floor)) + target.penalty


def l2_l1(candidate: Any, target: Target, alpha: float) -> Float[Array, ""]:
    """Returns the sum over counted entries of e_i^2 + alpha |e_i|, e = (g' - g) / |g|: TAG's variant (deng2021tag), with one weight for all layers.

    In units of the norm of the visible entries, the published balance of the two terms is that of a gradient of norm 1, whatever is hidden and however the
    loss is scaled. The difference is taken entry by entry for every leaf: where the two are close, their squares and their product would cancel.
    """
    pairs = [(_written(leaf), t, c) for leaf, t, c in _pairs(candidate, target)]
    vectors, others = [pair for pair in pairs if pair[0].ndim < 2], [pair for pair in pairs if pair[0].ndim > 1]
    if vectors:
        others.append(tuple(jnp.concatenate([part.reshape(-1) for part in parts]) for parts in zip(*vectors, strict=True)))  # type: ignore[arg-type]
    slope = alpha / target.inverse if alpha else None
    return target.penalty + target.inverse * _sum([_error(*pair, slope) for pair in others]) * target.inverse


def leaf_weights(target: Target) -> Float[Array, " leaves"]:
    """Returns 1 over each leaf's norm; 0 for a leaf whose whole target lies below the rounding of the gradient."""
    known = target.norms > jnp.finfo(target.norms.dtype).eps / target.inverse
    return jnp.where(known, 1 / jnp.where(known, target.norms, 1), 0)


def leaf_l2(candidate: Any, target: Target) -> Float[Array, ""]:
    """Returns the sum over leaves of the counted entries' |g' - g|^2 / |g|^2: every leaf has equal weight, however small its gradient."""
    pairs = [(_written(leaf), t, c) for leaf, t, c in _pairs(candidate, target)]
    return target.penalty + _sum([weight * _error(*pair, None) * weight for pair, weight in zip(pairs, leaf_weights(target), strict=True)])


def leaf_residuals(candidate: Any, target: Target) -> Float[Array, " n"]:
    """Returns the entries whose squares `leaf_l2` sums, in flattening order; 0 where they do not count."""
    parts = [
        jnp.where(c, weight * (_written(leaf) - t), 0).reshape(-1) for (leaf, t, c), weight in zip(_pairs(candidate, target), leaf_weights(target), strict=True)
    ]
    return jnp.concatenate(parts)
