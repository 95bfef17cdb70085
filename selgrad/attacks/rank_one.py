"""Inputs in closed form from a first dense layer: its gradient is [x; 1] delta', of rank 1 for one input and of the batch's rank for several.

Batch 1: x is a column of the kernel's gradient over the bias's (Phong et al. 2018, phong2018privacy). Batches through sparse relu gradients after Dimitrov
et al. 2024 (dimitrov2024spear), and through independent components after Kariyappa et al. 2023 (kariyappa2023cocktail). Hidden entries are completed first.
"""

from __future__ import annotations

import json
import warnings
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


def reads_pixels(tree: PyTree, spec: InputSpec) -> str | None:
    """The path of the first dense kernel with one row for each input coordinate, in a tree like the update; None where there is none."""
    size = int(np.prod(spec.shape))
    dense = (
        path for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True) if path.endswith("kernel") and leaf.ndim == 2 and len(leaf) == size
    )
    return next(dense, None)


def first_dense_layer(observation: Observation) -> str:
    """The path of the dense layer that reads the pixels.

    Raises:
      UsageError: if the model has none.
    """
    path = reads_pixels(observation.visible, image_spec(observation))
    if path is not None:
        return path
    raise UsageError(
        "attack 'rank_one' reads the gradient of a dense layer whose inputs are the pixels, and this model has none; choose mlp, or another attack"
    )


def sparse_directions(right: Matrix, num_draws: int, rng: np.random.Generator) -> Matrix:
    """Rows q with many zeros in q R, the most first: in a relu network each input's delta is such a q R (dimitrov2024spear, section 4).

    R (B, units) has rank B. B - 1 units on which an input's delta is 0 determine its q; units are drawn at random until such sets have come up.
    """
    right = right[:, np.linalg.norm(right, axis=0) > 1e-9 * np.linalg.norm(right)]
    rank, units = right.shape
    if units < rank:
        return np.zeros((0, rank))
    scaled = right / np.maximum(np.linalg.norm(right, axis=0), 1e-300)
    draws = np.stack([rng.choice(units, rank - 1, replace=False) for _ in range(num_draws)])
    null = np.linalg.svd(np.swapaxes(scaled[:, draws], 0, 1).swapaxes(1, 2))[2][:, -1]
    zeros = (np.abs(null @ scaled) < 1e-4).sum(axis=1)
    found: list[npt.NDArray[Any]] = []
    for index in np.argsort(-zeros, kind="stable"):
        if zeros[index] < max(2 * rank, units // 10) or len(found) == 4 * rank:
            break
        if all(abs(float(null[index] @ other)) < 0.999 for other in found):
            found.append(null[index])
    return np.asarray(found).reshape(-1, rank)


def _independent(chosen: Matrix, rank: int) -> Matrix:
    """The first `rank` linearly independent rows."""
    kept: list[npt.NDArray[Any]] = []
    for row in chosen:
        if np.linalg.matrix_rank(np.asarray([*kept, row]), tol=1e-3) > len(kept):
            kept.append(row)
        if len(kept) == rank:
            break
    return np.asarray(kept).reshape(-1, rank)


def separate(left: Matrix, right: Matrix, rng: np.random.Generator, num_draws: int) -> tuple[Matrix, str]:
    """The inputs (B, d + 1), each up to a factor, from the factors L (d + 1, B) and R (B, units) of the gradient, and how they were told apart."""
    rank = len(right)
    if rank == 1:
        return left.T, "rank one"
    found = _independent(sparse_directions(right, num_draws, rng), rank)
    if len(found) == rank:
        # delta = Q R, so the inputs are the columns of L Q^-1.
        return (left @ np.linalg.inv(found)).T, "sparse relu gradients"
    from sklearn.decomposition import FastICA

    pixels = left[:-1]
    method = FastICA(rank, whiten="unit-variance", max_iter=2000, tol=1e-6, random_state=0)
    with warnings.catch_warnings():
        # What does not converge is measured like everything else.
        warnings.simplefilter("ignore")
        method.fit(pixels)
    return np.asarray((left @ method.components_.T).T), "independent components"


def rank_one(*, hidden: Hidden = "complete", num_draws: int = 20_000) -> Attack:
    """Completes the first dense layer's gradient at the batch's rank and reads the inputs off it; no optimisation.

    The bias is the last row of [x; 1] delta', so it gives each input's scale; where it is hidden the scale is such that the largest pixel is 1. It runs on
    the host in float64.

    Args:
      hidden: what becomes of encrypted entries: `zero` and `average` put that in their place, the others complete them at low rank where that predicts
        held-out entries.
      num_draws: sets of units tried to tell the inputs of a batch apart.

    Raises:
      UsageError: if no dense layer reads the pixels, or `num_draws` is not positive.
    """
    if num_draws < 1:
        raise UsageError(f"num_draws={num_draws} must be at least 1")

    def reconstruct(key: Key, observation: Observation) -> Reconstruction:
        path, spec, size = first_dense_layer(observation), image_spec(observation), observation.update.batch_size
        # The inputs are the same in every round, so the kernels stand side by side like those of one wider layer.
        rounds = [stack(seen, [path]) for seen in observation.rounds]
        matrix, mask = (np.concatenate(parts, axis=1) for parts in zip(*rounds, strict=True))
        said = "nothing hidden"
        if hidden == "average" and mask.any() and not mask.all():
            matrix = np.where(mask, matrix[~mask].mean(), matrix)
        if hidden in ("zero", "average"):
            mask = np.zeros_like(mask)
        if mask.any():
            matrix, mask, said = low_rank(matrix, mask, size)
        rows, columns = _visible_block(mask)
        images = np.asarray(draw("normal", key, size, spec), np.float64)
        block = matrix[rows][:, columns]
        report: dict[str, Any] = {"used": [], "unused": [f"{path} ({said})"]}
        objective = 1.0
        if min(block.shape, default=0) >= size and (block != 0).any():
            u, s, vt = np.linalg.svd(block, full_matrices=False)
            objective = float(np.linalg.norm(s[size:]) / np.linalg.norm(s))
            found, how = separate(u[:, :size] * s[:size], vt[:size], np.random.default_rng(0), num_draws)
            images = _scaled(found, rows, len(matrix), spec).reshape(size, *spec.shape)
            report = {"used": [f"{path} ({said}; {how})"], "unused": []}
        inputs = jnp.asarray(images, jnp.float32)
        return Reconstruction.single(inputs, labels_of(observation, inputs), jnp.float32(objective), report=json.dumps(report), moved=bool(report["used"]))

    return on_host(reconstruct, rung=hidden)


def _visible_block(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of a block without hidden entries: greedily, the fullest lines leave last."""
    rows, columns = np.arange(mask.shape[0]), np.arange(mask.shape[1])
    while mask[np.ix_(rows, columns)].any():
        part = mask[np.ix_(rows, columns)]
        by_row, by_column = part.mean(axis=1), part.mean(axis=0)
        # Whole batches of lines at a time: the emptiest half of those that are as bad as the worst.
        if by_row.max() >= by_column.max():
            rows = rows[by_row < max(by_row.max(), 1e-12)]
        else:
            columns = columns[by_column < max(by_column.max(), 1e-12)]
    return rows, columns


def _scaled(found: Matrix, rows: npt.NDArray[np.int64], height: int, spec: InputSpec) -> Matrix:
    """(B, d + 1) up to factors to (B, d): by the last coordinate, which is 1, or by the largest pixel; coordinates that are not known are black."""
    whole = np.full((len(found), height), np.nan)
    whole[:, rows] = found
    images, one = whole[:, :-1], whole[:, -1]
    by_bias = np.abs(one) > 1e-9 * np.nanmax(np.abs(found), axis=1)
    low, high = float(np.mean(spec.low)), float(np.mean(spec.high))
    with np.errstate(all="ignore"):
        peak = np.nan_to_num(np.abs(images)).max(axis=1)
        sign = np.sign(np.nansum(images, axis=1))
        scaled = images / np.where(np.isfinite(one) & by_bias, one, np.where(peak > 0, peak * np.where(sign == 0, 1, sign) / max(high, 1e-12), 1))[:, None]
    return np.nan_to_num(scaled, nan=low, posinf=high, neginf=low)


@partial(jax.jit, static_argnames=("model", "update"))
def _updates_by_label(model: Model, update: Update, params: Params, inputs: Array, chosen: Array) -> Array:
    """Chosen entries of the update of inputs of which one has one label and the others none, (B * classes, entries)."""
    size, num_classes = len(inputs), model.input_spec.num_classes

    def alone(index: Array) -> Array:
        labels = jax.nn.one_hot(index, size * num_classes).reshape(size, num_classes)
        return trees.concatenate(update(model, params, inputs, labels))[chosen]

    with jax.default_matmul_precision("highest"):
        found: Array = jax.lax.map(alone, jnp.arange(size * num_classes))
    return found


def labels_of(observation: Observation, inputs: Any) -> Any:
    """Labels (B,) int32 of known inputs: as given, or those whose update is nearest to what is visible.

    A client's update of cross-entropy is linear in the labels: the sum over k and c of y_kc times the update of input k labelled c alone. y is solved for by
    least squares on at most 4,096 visible entries, the largest.
    """
    if observation.labels is not None:
        return observation.labels
    size, num_classes = observation.update.batch_size, observation.model.input_spec.num_classes
    visible, hidden = (np.asarray(trees.concatenate(tree)) for tree in (observation.visible, observation.mask))
    chosen = np.argsort(np.where(hidden, np.inf, -np.abs(visible)), kind="stable")[: min(4096, int((~hidden).sum()))]
    if not len(chosen):
        return jnp.zeros(size, jnp.int32)

    basis = np.asarray(_updates_by_label(observation.model, observation.update, observation.params, inputs, chosen), np.float64)
    found = np.linalg.lstsq(basis.T, visible[chosen].astype(np.float64), rcond=1e-6)[0]
    return jnp.asarray(found.reshape(size, num_classes).argmax(axis=1), jnp.int32)
