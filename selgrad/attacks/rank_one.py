"""Recovers inputs in closed form from a first dense layer, whose gradient is [x; 1] delta': of rank 1 for one input and of the batch's rank for several.

Local steps read the same inputs, so their sum has that rank too.

Batch 1: x is a column of the kernel's gradient over the bias's (Phong et al. 2018, phong2018privacy). Batches through sparse relu gradients after Dimitrov
et al. 2024 (dimitrov2024spear), and through independent components after Kariyappa et al. 2023 (kariyappa2023cocktail). Hidden entries are completed first.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jaxtyping import PyTree

from selgrad import trees
from selgrad.attacks.completion import low_rank, stack
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import on_host
from selgrad.attacks.spaces import image_spec
from selgrad.attacks.starts import draw
from selgrad.base import Attack, InputSpec, Key, Model, Observation, Params, Reconstruction, Update
from selgrad.errors import UsageError

Matrix = npt.NDArray[np.float64]

_ZERO = 1e-4
"""Magnitude below which an input's delta counts as 0 on a unit whose column has length 1."""

_EXPLAINED = 0.05
"""Share of the visible update that the right inputs may leave unexplained, for rounding and noise; wrong inputs leave most of it."""

_AT_ONCE = 400
"""Starts of the search for sparse directions between two checks of its results."""


def pixel_layer(tree: PyTree, spec: InputSpec) -> str | None:
    """Returns the path of the first dense kernel with one row per input coordinate, in a tree like the update; None where there is none."""
    size = int(np.prod(spec.shape))
    dense = (
        path for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True) if path.endswith("kernel") and leaf.ndim == 2 and len(leaf) == size
    )
    return next(dense, None)


def first_dense_layer(observation: Observation) -> str:
    """Returns the path of the dense layer that reads the pixels.

    Raises:
      UsageError: if the model has none.
    """
    path = pixel_layer(observation.visible, image_spec(observation))
    if path is not None:
        return path
    raise UsageError(
        "attack 'rank_one' reads the gradient of a dense layer whose inputs are the pixels, and this model has none; choose mlp, or another attack"
    )


def first_layer_seen(observation: Observation) -> tuple[str, Matrix, npt.NDArray[np.bool_]]:
    """Returns the path of the dense layer that reads the pixels, its visible gradient with the bias as the last row, and its mask.

    The inputs are the same in every round, so the kernels are placed side by side like those of one wider layer.

    Raises:
      UsageError: if the model has no such layer.
    """
    path = first_dense_layer(observation)
    matrix, mask = (np.concatenate(parts, axis=1) for parts in zip(*(stack(view, [path]) for view in observation.rounds), strict=True))
    return path, matrix, mask


def sparse_directions(right: Matrix, num_starts: int, rng: np.random.Generator) -> Matrix:
    """Finds rows q with many zeros in q R: in a relu network each input's delta is such a q R (dimitrov2024spear, section 4).

    R (B, units) has rank B, and the zeros of a delta are units that lie in one hyperplane, among others that do not; q is its normal. SPEAR draws B - 1
    units until all lie in one such plane, which one set in 2^(B - 1) does. This search starts from the normal of a few units and fits a plane to ever nearer
    ones, by least squares with weights 1 / (e^2 + (q r)^2) and e falling (Daubechies et al. 2010, daubechies2010irls). At 25 inputs one start in ten ends in
    such a plane.

    Args:
      right: R, its columns of length 1, in coordinates in which they spread equally in every direction.
      num_starts: number of starts of the fit.
      rng: of the starts.
    """
    rank, units = right.shape
    # Which planes the fit finds depends on how many units the first plane passes through.
    few = min(rank - 1, int(rng.choice([4, 8, rank - 1])))
    starts = right[:, np.stack([rng.choice(units, few, replace=False) for _ in range(num_starts)])]
    q = np.linalg.eigh(np.einsum("asj,bsj->sab", starts, starts))[1][:, :, 0]
    products = (right[:, None] * right[None]).reshape(rank * rank, units).T
    for e in np.geomspace(0.5, _ZERO / 100, 100):
        normal = ((1 / (e * e + (q @ right) ** 2)) @ products).reshape(num_starts, rank, rank)
        # One step of inverse iteration towards the normal that minimises the weighted squares.
        q = np.linalg.solve(normal, q[..., None])[..., 0]
        q /= np.linalg.norm(q, axis=1, keepdims=True)
    return q


def _without_others(rows: Matrix, right: Matrix) -> Matrix:
    """Subtracts from each row the multiple of each other row that leaves the most zeros: two inputs of one class have deltas that nearly cancel."""
    differences = []
    values = rows @ right
    for row, value in zip(rows, values, strict=True):
        for other, divisor in zip(rows, values, strict=True):
            ratios = np.sort(value[np.abs(divisor) > _ZERO] / divisor[np.abs(divisor) > _ZERO])
            if other is not row and len(ratios) > 2 * len(rows):
                # The narrowest interval of `len(rows)` ratios, where many are equal.
                width = ratios[len(rows) :] - ratios[: -len(rows)]
                start = int(width.argmin())
                differences.append(row - ratios[start + len(rows) // 2] * other)
    left = np.asarray(differences).reshape(-1, rows.shape[1])
    return left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-300)


def _sparsest(rows: Matrix, right: Matrix) -> tuple[Matrix, int]:
    """Returns the sparsest basis among the rows, linearly independent and those with the most zeros in q R first, and the number of its zeros."""
    rank = len(right)
    zeros = (np.abs(rows @ right) < _ZERO).sum(axis=1)
    kept: list[int] = []
    left = rows.copy()
    for index in np.argsort(-zeros, kind="stable"):
        # A plane through any `rank - 1` units has that many zeros; sigmoid networks have no others.
        if zeros[index] < 2 * rank or len(kept) == rank:
            break
        # The part of the row that no kept row explains.
        size = np.linalg.norm(left[index])
        if size > 1e-3:
            kept.append(int(index))
            left -= np.outer(left @ left[index], left[index]) / size**2
    return rows[kept], int(zeros[kept].sum())


def separate(left: Matrix, right: Matrix, rng: np.random.Generator, num_starts: int, accepted: Callable[[Matrix], bool] = lambda _: True) -> tuple[Matrix, str]:
    """Returns the inputs (B, d + 1), each up to a factor, from the factors L (d + 1, B) and R (B, units) of the gradient, and how they were separated.

    Args:
      left, right: the factors.
      rng: of the starts.
      num_starts: largest number of starts of the search for sparse directions.
      accepted: says whether inputs explain the whole update; the search goes on until they do.
    """
    rank = len(right)
    if rank == 1:
        return left.T, "rank one"
    size = np.linalg.norm(right, axis=0)
    alive = size > 1e-9 * np.linalg.norm(right)
    points = right[:, alive] / size[alive]
    if points.shape[1] > rank:
        # Inputs have different weights; in these coordinates no direction is larger than another.
        values, vectors = np.linalg.eigh(points @ points.T)
        whitener = (vectors / np.sqrt(np.maximum(values, 1e-300))) @ vectors.T
        points = whitener @ points
        points /= np.linalg.norm(points, axis=0)
        directions: Matrix = np.zeros((0, rank))
        zeros = 0
        for first in range(0, num_starts, _AT_ONCE):
            before = zeros
            directions, zeros = _sparsest(np.concatenate([directions, sparse_directions(points, min(_AT_ONCE, num_starts - first), rng)]), points)
            directions, zeros = _sparsest(np.concatenate([directions, _without_others(directions, points)]), points)
            if not len(directions) and first >= 4 * _AT_ONCE:
                break
            if len(directions) == rank and zeros > before:
                # delta = Q R, so the inputs are the columns of L Q^-1.
                inputs = (left @ np.linalg.inv(directions @ whitener)).T
                if accepted(inputs):
                    return inputs, "sparse relu gradients"
        if len(directions) == rank:
            return inputs, "sparse relu gradients that do not explain the update"
    from sklearn.decomposition import FastICA

    pixels = left[:-1]
    method = FastICA(rank, whiten="unit-variance", max_iter=2000, tol=1e-6, random_state=0)
    with warnings.catch_warnings():
        # A result that did not converge is scored like any other.
        warnings.simplefilter("ignore")
        method.fit(pixels)
    return np.asarray((left @ method.components_.T).T), "independent components"


def rank_one(*, hidden: Hidden = "complete", num_starts: int = 20_000) -> Attack:
    """Completes the first dense layer's gradient at the batch's rank and reads the inputs off it; no optimisation.

    The bias is the last row of [x; 1] delta', so it gives each input's scale; where it is hidden, inputs are scaled so that the largest pixel is 1. It runs
    on the host in float64.

    Args:
      hidden: how encrypted entries are treated: `zero` and `average` put 0 or the mean in their place, the others complete them at low rank where that
        predicts held-out entries.
      num_starts: of the search that separates the inputs of a batch; it stops early once the inputs reproduce the update.

    Raises:
      UsageError: if no dense layer reads the pixels, or `num_starts` is not positive.
    """
    if num_starts < 1:
        raise UsageError(f"num_starts={num_starts} must be at least 1")

    def reconstruct(key: Key, observation: Observation) -> Reconstruction:
        path, matrix, mask = first_layer_seen(observation)
        spec, size = image_spec(observation), observation.update.batch_size
        completion = "nothing hidden"
        if hidden == "average" and mask.any() and not mask.all():
            matrix = np.where(mask, matrix[~mask].mean(), matrix)
        if hidden in ("zero", "average"):
            mask = np.zeros_like(mask)
        if mask.any():
            matrix, mask, completion = low_rank(matrix, mask, size)
        rows, columns = _visible_block(mask)
        inputs = draw("normal", key, size, spec)
        block = matrix[rows][:, columns]
        report: dict[str, Any] = {"used": [], "unused": [f"{path} ({completion})"]}
        if min(block.shape, default=0) >= size and (block != 0).any():
            u, s, vt = np.linalg.svd(block, full_matrices=False)
            pictures = lambda separated: jnp.asarray(_scaled(separated, rows, len(matrix), spec).reshape(size, *spec.shape), jnp.float32)
            accepted = lambda separated: explained(observation, pictures(separated))[1] < _EXPLAINED
            separated, how = separate(u[:, :size] * s[:size], vt[:size], np.random.default_rng(0), num_starts, accepted)
            inputs = pictures(separated)
            report = {"used": [f"{path} ({completion}; {how})"], "unused": []}
        labels, unexplained = explained(observation, inputs)
        return Reconstruction.single(inputs, labels, jnp.float32(unexplained), report=json.dumps(report), moved=bool(report["used"]))

    return on_host(reconstruct, rung=hidden)


def _visible_block(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the rows and columns of a block without hidden entries, chosen greedily: the lines with the most visible entries are dropped last."""
    rows, columns = np.arange(mask.shape[0]), np.arange(mask.shape[1])
    while mask[np.ix_(rows, columns)].any():
        part = mask[np.ix_(rows, columns)]
        by_row, by_column = part.mean(axis=1), part.mean(axis=0)
        # All lines that hide as much as the worst one are dropped at a time.
        if by_row.max() >= by_column.max():
            rows = rows[by_row < max(by_row.max(), 1e-12)]
        else:
            columns = columns[by_column < max(by_column.max(), 1e-12)]
    return rows, columns


def _scaled(separated: Matrix, rows: npt.NDArray[np.int64], height: int, spec: InputSpec) -> Matrix:
    """Scales inputs (B, d + 1), known up to factors, to (B, d) by the last coordinate, which is 1, or by the largest pixel; unknown coordinates are black."""
    whole = np.full((len(separated), height), np.nan)
    whole[:, rows] = separated
    images, last = whole[:, :-1], whole[:, -1]
    by_bias = np.abs(last) > 1e-9 * np.nanmax(np.abs(separated), axis=1)
    low, high = float(np.mean(spec.low)), float(np.mean(spec.high))
    with np.errstate(all="ignore"):
        peak = np.nan_to_num(np.abs(images)).max(axis=1)
        sign = np.sign(np.nansum(images, axis=1))
        scaled = images / np.where(np.isfinite(last) & by_bias, last, np.where(peak > 0, peak * np.where(sign == 0, 1, sign) / max(high, 1e-12), 1))[:, None]
    return np.nan_to_num(scaled, nan=low, posinf=high, neginf=low)


@partial(jax.jit, static_argnames=("model", "update"))
def _updates_by_label(model: Model, update: Update, params: Params, inputs: Array, chosen: Array) -> Array:
    """Returns chosen entries of the updates of inputs when a single input has a single label and the others have none, (B * classes, entries)."""
    size, num_classes = len(inputs), model.input_spec.num_classes

    def alone(index: Array) -> Array:
        labels = jax.nn.one_hot(index, size * num_classes).reshape(size, num_classes)
        return trees.ravel(update(model, params, inputs, labels))[chosen]

    with jax.default_matmul_precision("highest"):
        updates: Array = jax.lax.map(alone, jnp.arange(size * num_classes))
    return updates


@partial(jax.jit, static_argnames=("model", "update"))
def _update(model: Model, update: Update, params: Params, inputs: Array, labels: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        entries: Array = trees.ravel(update(model, params, inputs, jax.nn.one_hot(labels, model.input_spec.num_classes)))
    return entries


def explained(observation: Observation, inputs: Any) -> tuple[Any, float]:
    """Returns labels (B,) int32 of known inputs, by `labels_of`, and the share of the visible update's norm that inputs and labels do not explain."""
    labels = labels_of(observation, inputs)
    predicted = _update(observation.model, observation.update, observation.params, inputs, labels)
    visible, hidden = (np.asarray(trees.ravel(tree)) for tree in (observation.visible, observation.mask))
    apart, size = (np.linalg.norm(np.where(hidden, 0.0, value).astype(np.float64)) for value in (np.asarray(predicted) - visible, visible))
    return labels, float(apart / size) if size > 0 and np.isfinite(apart) else 1.0


def labels_of(observation: Observation, inputs: Any) -> Any:
    """Returns labels (B,) int32 of known inputs: as given, or those whose update is nearest to the visible entries.

    A client's update of cross-entropy is linear in the labels: the sum over k and c of y_kc times the update of input k labelled c alone. y solves least
    squares on the largest visible entries, at most 4,096.
    """
    if observation.labels is not None:
        return observation.labels
    size, num_classes = observation.update.batch_size, observation.model.input_spec.num_classes
    visible, hidden = (np.asarray(trees.ravel(tree)) for tree in (observation.visible, observation.mask))
    chosen = np.argsort(np.where(hidden, np.inf, -np.abs(visible)), kind="stable")[: min(4096, int((~hidden).sum()))]
    if not len(chosen):
        return jnp.zeros(size, jnp.int32)

    basis = np.asarray(_updates_by_label(observation.model, observation.update, observation.params, inputs, chosen), np.float64)
    weights = np.linalg.lstsq(basis.T, visible[chosen].astype(np.float64), rcond=1e-6)[0]
    return jnp.asarray(weights.reshape(size, num_classes).argmax(axis=1), jnp.int32)
