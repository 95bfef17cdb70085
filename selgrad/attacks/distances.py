"""Distances between a dummy update and the observed one, over the entries that count.

Squared L2: Zhu et al. 2019 (zhu2019dlg), equation 3. Cosine: Geiping et al. 2020 (geiping2020inverting), equation 4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selgrad import trees
from selgrad.attacks.hidden import Target
from selgrad.base import Grads


def squared_l2(candidate: Grads, target: Target) -> Float[Array, ""]:
    """The sum over counted entries of (g'_i - g_i)^2."""
    error = jax.tree.map(lambda leaf, t, c: jnp.where(c, leaf - t, 0), candidate, target.grads, target.counted)
    return trees.dot(error, error) + _evidence(target)


def _evidence(target: Target) -> Float[Array, ""] | float:
    """The penalty of the mask in units of a squared gradient."""
    if isinstance(target.penalty, float):
        return target.penalty
    return target.penalty * trees.dot(target.grads, target.grads)


def _norm(tree: Grads) -> Float[Array, ""]:
    return trees.safe_sqrt(trees.dot(tree, tree))


def _cosine(candidate: Grads, target: Target, floor: Array | float) -> Float[Array, ""]:
    counted = jax.tree.map(lambda leaf, c: jnp.where(c, leaf, 0), candidate, target.counted)
    mine, theirs = _norm(counted), _norm(target.grads)
    known = (mine > 0) & (theirs > floor)
    # Divided one after the other: the square of a product of two small norms underflows in the derivative.
    similarity = trees.dot(counted, target.grads) / jnp.where(known, mine, 1) / jnp.where(known, theirs, 1)
    return 1 - jnp.where(known, similarity, 0)


def cosine(candidate: Grads, target: Target) -> Float[Array, ""]:
    """1 - cos of the angle between the counted entries, one angle over all leaves; 1 where either side is 0."""
    return _cosine(candidate, target, 0.0) + target.penalty


def mean_leaf_cosine(candidate: Grads, target: Target) -> Float[Array, ""]:
    """The mean over leaves of 1 - cos: LAMP's reading (balunovic2022lamp), which weighs a bias as much as a matrix.

    A leaf whose whole target lies below the rounding of the gradient counts as 0, hence as 1 - cos = 1: the gradient of an attention key's
    bias is 0 in exact arithmetic, and the direction of its rounding errors says nothing.
    """
    pairs = zip(jax.tree.leaves(candidate), jax.tree.leaves(target.grads), jax.tree.leaves(target.counted), strict=True)
    floor = _norm(target.grads)
    floor = floor * jnp.finfo(floor.dtype).eps
    return jnp.mean(jnp.stack([_cosine([leaf], Target([t], [c]), floor) for leaf, t, c in pairs])) + target.penalty


def l2_l1(candidate: Grads, target: Target, alpha: float) -> Float[Array, ""]:
    """The sum over counted entries of (g'_i - g_i)^2 + alpha |g'_i - g_i|: TAG's reading (deng2021tag), with one weight for all layers."""
    error = jax.tree.map(lambda leaf, t, c: jnp.where(c, leaf - t, 0), candidate, target.grads, target.counted)
    # |e| as e * sign(e), so that both sums take the same vectorised path.
    return _evidence(target) + trees.dot(error, error) + alpha * trees.dot(error, jax.tree.map(lambda e: jax.lax.stop_gradient(jnp.sign(e)), error))
