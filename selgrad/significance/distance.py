"""Distance-based significance: how hiding an entry changes the attacker's gradient distance (D1) and its distance from the data (D2).

This is our interpretation of the framework of Gu et al., arXiv 2508.04155 (gu2025selective), of which only the abstract was read. D2 is built on the inversion
influence function of Zhang et al., NeurIPS 2023 (zhang2023inversion); formulas, proofs and tests: docs/theory.md, sections 1 to 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.scipy.sparse.linalg import cg

from selgrad import trees
from selgrad.base import Batch, GradientContext, Grads, Metric, Scores
from selgrad.errors import UsageError
from selgrad.jacobian import EXACT_INPUTS, JacobianOperator, gaussian_probes, gram, input_jacobian, mean_eigenvalue, regularised, row_norms, unit_vectors

Reading: TypeAlias = Literal["gradient_l2", "gradient_cosine", "proxy", "solved", "leverage", "posterior"]
Over: TypeAlias = Literal["batch", "samples", "public", "public_class"]


def distance(
    *,
    reading: Reading = "solved",
    over: Over = "batch",
    epsilon: float = 1e-3,
    num_probes: int | None = None,
    num_blocks: int = 1,
    precision: Literal["float32", "float64"] = "float32",
) -> Metric:
    """Scores an entry by a distance that hiding it changes; J is the Jacobian of the update by the inputs and C = (J'J + eps I)^-1.

    - `gradient_l2` (D1): g_i^2, the term that leaves the squared distance. `gradient_cosine` (D1): 1 - sqrt(1 - g_i^2 / |g|^2), how far the direction of
      the visible gradient turns. Both have magnitude's mask.
    - `proxy` (D2): |g_i| |J_i|. `solved` (D2): |g_i| |C J_i|, how far taking the entry as 0 moves the first-order reconstruction.
    - `leverage`: J_i' C J_i, in [0, 1], for an attacker who ignores the entry: hiding it divides det(J'J + eps I) by 1 / (1 - leverage).
    - `posterior`: |C J_i|^2 / (1 - leverage), the amount that hiding it adds to the trace of that attacker's posterior covariance.

    Args:
      reading: which of these.
      over: the private data by which J is taken: the whole batch; each of its samples alone, the others held fixed, and the mean over samples;
        public data in place of the client's own, so that the mask depends on no private data (`public_class`: the public batches that share the most
        labels with the client's, so that it depends on the labels alone).
      epsilon: sets eps, relative to the mean eigenvalue of J'J.
      num_probes: number of Gaussian probes; None is exact up to 4,096 input coordinates and uses 32 beyond that, 0 asks for exact. With probes, squares of
        norms have the relative standard error sqrt(2 / num_probes), and C is applied by conjugate gradients.
      num_blocks: 1 scores all entries at once; more hide that many blocks one after the other and score again after each: `solved` by the amount that the
        entry adds to the distance already moved, `leverage` and `posterior` with J of the entries still visible.
      precision: float64 doubles the digits and the time; a Gram matrix squares the condition of J.

    Raises:
      UsageError: for an epsilon or a number that is not positive, a Gram matrix that is too large, or missing public data.
    """
    if not 0 < epsilon < float("inf"):
        raise UsageError(f"epsilon={epsilon} must be positive, such as 1e-3")
    if num_probes is not None and num_probes < 0:
        raise UsageError(f"num_probes={num_probes} must be 0 (exact) or more")
    if num_blocks < 1:
        raise UsageError(f"num_blocks={num_blocks} must be at least 1")
    if num_blocks > 1 and reading not in ("solved", "leverage", "posterior"):
        raise UsageError(f"num_blocks={num_blocks}: the score of reading={reading!r} does not depend on what is hidden already; leave it at 1")

    def probes_for(num_inputs: int) -> int:
        return num_probes if num_probes is not None else (0 if num_inputs <= EXACT_INPUTS else 32)

    def of_linear(linear: JacobianOperator, grads: Grads, key: Array) -> Scores:
        probes = probes_for(linear.point.size)
        if reading == "proxy":
            norms = _norms(linear, key, probes)
            return jax.tree.map(lambda g, n: jnp.abs(g) * n, grads, norms)
        method = _exact(linear) if probes == 0 else _matrix_free(linear, key, probes)
        shift = epsilon * method.mean_eigenvalue()
        if num_blocks == 1:
            return _from_inverse(reading, grads, method.inverse(None, shift))
        return _by_blocks(linear, grads, num_blocks, _rescorer(reading, linear, grads, method, shift))

    def of_client(context: GradientContext) -> Scores:
        if reading in ("gradient_l2", "gradient_cosine"):
            return _of_gradient(context.grads, reading)
        if over != "samples":
            return of_linear(input_jacobian(context), context.grads, context.key)
        samples = jnp.arange(len(context.batch.inputs))
        return _mean(lambda k: of_linear(input_jacobian(context, k), context.grads, jax.random.fold_in(context.key, k)), samples, context.grads)

    def score(context: GradientContext) -> Scores:
        if over not in ("public", "public_class"):
            return of_client(context)
        if context.public is None:
            raise UsageError(f"metric distance with over={over!r} needs public data; name a data set under `public`")
        targets = context.model.targets(context.batch)

        def weighted_scores(item: tuple[Batch, Array]) -> Scores:
            batch, weight = item
            labels = jax.nn.one_hot(context.model.targets(batch), context.model.input_spec.num_classes)
            grads = context.update.client(context.model, context.params, batch, labels)
            scores = of_client(dataclasses.replace(context, batch=batch, grads=grads))
            return jax.tree.map(lambda leaf: weight * leaf, scores)

        public = context.public
        weights = jnp.ones(len(public.labels))
        if over == "public_class":
            public_targets = jax.vmap(context.model.targets)(public)
            counts = jax.vmap(lambda t: _shared_labels(targets, t, context.model.input_spec.num_classes))(public_targets)
            weights = (counts == counts.max()).astype(weights.dtype)
        return _mean(weighted_scores, (public, weights / weights.mean()), context.grads)

    def probes_used(num_inputs: int, batch_size: int) -> int:
        if reading in ("gradient_l2", "gradient_cosine"):
            return 0
        return probes_for(num_inputs // batch_size if over == "samples" else num_inputs)

    return Metric(score, probes_used, precision, draws=num_probes != 0 and reading not in ("gradient_l2", "gradient_cosine"))


def _mean(function: Callable[[Any], Scores], items: Any, like: Grads) -> Scores:
    """Returns the mean of a function over the leading axis of its argument, evaluated one item at a time."""
    count = len(jax.tree.leaves(items)[0])

    def add(total: Scores, item: Any) -> tuple[Scores, None]:
        return jax.tree.map(lambda t, f: t + f / count, total, function(item)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), items)[0]


def _shared_labels(mine: Array, theirs: Array, num_classes: int) -> Array:
    """Counts the labels that two batches have in common, as multisets."""
    counts = lambda labels: jnp.bincount(labels.reshape(-1), length=num_classes)
    return jnp.minimum(counts(mine), counts(theirs)).sum()


def _of_gradient(grads: Grads, reading: str) -> Scores:
    if reading == "gradient_l2":
        return jax.tree.map(jnp.square, grads)
    whole = trees.dot(grads, grads)
    # 1 - sqrt(1 - q) without cancellation for the small q of most entries.
    share = jax.tree.map(lambda g: g**2 / jnp.where(whole > 0, whole, 1), grads)
    return jax.tree.map(lambda q: q / (1 + jnp.sqrt(jnp.maximum(1 - q, 0))), share)


class _Inverse(NamedTuple):
    """The quantities that C = (J' W J + shift I)^-1 gives: |C J_i|, the square root of leverage, and v -> C v."""

    solved: Callable[[], Scores]
    root_leverage: Callable[[], Scores]
    apply: Callable[[Array], Array]


class _Method(NamedTuple):
    """An exact or matrix-free method: the mean eigenvalue of J'J, and (weights, shift) -> `_Inverse`."""

    mean_eigenvalue: Callable[[], Array]
    inverse: Callable[[Grads | None, Array], _Inverse]


def _norms(linear: JacobianOperator, key: Array, probes: int) -> Scores:
    if probes == 0:
        return row_norms(linear, unit_vectors(linear), linear.point.size)
    return row_norms(linear, gaussian_probes(linear, key, probes), probes)


def _exact(linear: JacobianOperator) -> _Method:
    """Returns the exact method, by a Gram matrix and its Cholesky factor."""
    whole, size = gram(linear), linear.point.size

    def inverse(weights: Grads | None, shift: Array) -> _Inverse:
        matrix = whole if weights is None else gram(linear, weights)
        # The shift never falls so low that the matrix's own rounding would make it indefinite.
        shift = jnp.maximum(shift, size * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix).max())
        eye = jnp.eye(size, dtype=matrix.dtype)
        lower = jnp.linalg.cholesky(matrix + jnp.where(shift > 0, shift, 1) * eye)
        root = solve_triangular(lower, eye, lower=True)
        full = root.T @ root
        return _Inverse(
            lambda: row_norms(linear, lambda k: full[:, k], size),
            lambda: row_norms(linear, lambda k: root[k], size),
            lambda v: full @ v,
        )

    return _Method(lambda: jnp.trace(whole) / size, inverse)


def _matrix_free(linear: JacobianOperator, key: Array, probes: int) -> _Method:
    """Returns a method with probes instead of columns: C z for |C J_i|, and C (J' W^1/2 u + sqrt(shift) w), whose covariance is C, for leverage."""
    size, dtype = linear.point.size, linear.point.dtype
    plain = gaussian_probes(linear, jax.random.fold_in(key, 1), probes)

    def inverse(weights: Grads | None, shift: Array) -> _Inverse:
        shift = jnp.where(shift > 0, shift, 1)
        operator = regularised(linear, weights, shift)
        apply = lambda v: cg(operator, v, tol=1e-4, maxiter=100)[0]

        def coloured(index: Array) -> Array:
            draws = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 2), index))
            noise = trees.unravel(jax.random.normal(draws[0], (linear.num_entries,), dtype), jax.eval_shape(linear.apply, linear.point))
            if weights is not None:
                noise = jax.tree.map(lambda z, w: z * jnp.sqrt(w.astype(z.dtype)), noise, weights)
            right = linear.transpose(noise).reshape(-1) + jnp.sqrt(shift) * jax.random.normal(draws[1], (size,), dtype)
            return apply(right) * jnp.asarray(probes, dtype) ** -0.5

        return _Inverse(lambda: row_norms(linear, lambda k: apply(plain(k)), probes), lambda: row_norms(linear, coloured, probes), apply)

    return _Method(lambda: mean_eigenvalue(linear, jax.random.fold_in(key, 0)), inverse)


def _from_inverse(reading: str, grads: Grads, inverse: _Inverse) -> Scores:
    if reading == "leverage":
        return jax.tree.map(jnp.square, inverse.root_leverage())
    solved = inverse.solved()
    if reading == "solved":
        return jax.tree.map(lambda g, s: jnp.abs(g) * s, grads, solved)
    # The shift keeps leverage below 1; an estimate of it may exceed 1.
    return jax.tree.map(lambda s, r: s**2 / jnp.maximum(1 - r**2, 1e-3), solved, inverse.root_leverage())


def _rescorer(reading: str, linear: JacobianOperator, grads: Grads, method: _Method, shift: Array) -> Callable[[Grads], Scores]:
    """Returns a function from the entries hidden so far (a tree of bool) to scores of the others.

    The shift stays as it was with everything visible: it stands for the attacker's knowledge apart from the gradient.
    """
    if reading != "solved":
        visible = lambda hidden: jax.tree.map(lambda h, g: (~h).astype(g.dtype), hidden, grads)
        return lambda hidden: _from_inverse(reading, grads, method.inverse(visible(hidden), shift))
    inverse = method.inverse(None, shift)
    norms = inverse.solved()

    def rescore(hidden: Grads) -> Scores:
        # |C J'(M g) + g_i C J_i|^2 - |C J'(M g)|^2
        taken = jax.tree.map(lambda h, g: jnp.where(h, g, 0), hidden, grads)
        moved = inverse.apply(linear.transpose(taken).reshape(-1))
        across = linear.apply(inverse.apply(moved).reshape(linear.point.shape))
        return jax.tree.map(lambda g, s, a: (g * s) ** 2 + 2 * g * a, grads, norms, across)

    return rescore


def _by_blocks(linear: JacobianOperator, grads: Grads, num_blocks: int, rescore: Callable[[Grads], Scores]) -> Scores:
    """Hides n / num_blocks entries at a time; earlier blocks score higher, and entries in a block are ordered by their score when it was hidden."""
    total = linear.num_entries

    def body(block: Array, carry: tuple[Grads, Scores]) -> tuple[Grads, Scores]:
        hidden, result = carry
        scores = trees.ravel(rescore(hidden))
        open_scores = jnp.where(trees.ravel(hidden), -jnp.inf, scores)
        ranks = trees.descending_ranks(open_scores)
        before, after = block * total // num_blocks, (block + 1) * total // num_blocks
        taken = ranks < after - before
        # A score in (num_blocks - block - 1, num_blocks - block], falling with the rank inside the block.
        placed = (num_blocks - block) - ranks / (after - before + 1)
        flat_hidden, flat = trees.ravel(hidden), trees.ravel(result)
        flat = jnp.where(taken, placed.astype(flat.dtype), flat)
        return trees.unravel(flat_hidden | taken, hidden), trees.unravel(flat, result)

    nothing = jax.tree.map(lambda g: jnp.zeros(g.shape, bool), grads)
    _, result = jax.lax.fori_loop(0, num_blocks, body, (nothing, jax.tree.map(jnp.zeros_like, grads)))
    return result
