"""Completes hidden entries that structure gives away: dense layers' gradients have low rank, and a softmax layer's sum to zero over the classes.

This is the rung `complete` of the attacker ladder: entries that can be determined are filled in, and the attack ignores the rest (docs/theory.md, section 6).
Low-rank completion is by alternating least squares, Jain et al. 2013 (jain2013lowrank); selective encryption was not evaluated against it before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.csgraph

from selgrad import trees
from selgrad.attacks import row_space
from selgrad.base import Cache, Observation, no_cache

_HELD_OUT = 0.1
_FEWEST_HELD_OUT = 5
_AGREEMENT = 1e-3


def tokens_at_most(observation: Observation) -> int:
    """Returns the largest number of rows that a dense layer can have read in one client update: tokens, or images, times local steps."""
    spec, size = observation.model.input_spec, observation.update.batch_size
    steps = observation.update.num_steps
    if observation.valid is not None:
        return int(np.asarray(observation.valid).sum()) * steps
    # A vision transformer reads many tokens of one input.
    return size * steps * int(getattr(observation.model, "tokens_per_input", spec.shape[0] if len(spec.shape) == 1 else 1))


def sum_to_zero(matrix: npt.NDArray[Any], hidden: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Fills the single hidden entry of rows whose sum is known to be 0: over the classes, p - y sums to 0, and so does every multiple of it."""
    alone = hidden.sum(axis=1) == 1
    filled, left = np.where(hidden, 0.0, matrix), hidden.copy()
    columns = hidden[alone].argmax(axis=1)
    filled[np.flatnonzero(alone), columns] = -filled[alone].sum(axis=1)
    left[alone] = False
    return filled, left


def _outer_product(matrix: npt.NDArray[Any], visible: npt.NDArray[np.bool_], rank: int) -> npt.NDArray[Any]:
    """Completes X delta' from some of its entries, NaN where they do not determine it: along a spanning tree of visible non-zero entries, then least squares.

    An entry is determined if its row and its column are joined by a chain of visible non-zero entries, however few they are.
    """
    height, width = matrix.shape
    row, column = np.nonzero(visible & (matrix != 0))
    graph = scipy.sparse.coo_matrix((np.ones(len(row)), (row, column + height)), shape=(height + width, height + width)).tocsr()
    label = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    largest = np.bincount(label[row]).argmax()
    order, parent = scipy.sparse.csgraph.breadth_first_order(graph, int(np.flatnonzero(label == largest)[0]), directed=False)
    factor = np.full(height + width, np.nan)
    factor[order[0]] = 1.0
    for node in order[1:]:
        before = parent[node]
        i, j = min(node, before), max(node, before) - height
        factor[node] = matrix[i, j] / factor[before]
    x, delta = factor[:height], factor[height:]
    inside, across = np.isfinite(x), np.isfinite(delta)
    values, weights = np.where(visible, matrix, 0.0)[inside][:, across], visible[inside][:, across].astype(np.float64)
    u, v = x[inside], delta[across]
    for _ in range(20):
        # Each line is weighted by the size of the other factor: small entries have the same relative accuracy as large ones.
        v = (values / np.abs(u)[:, None]).T @ np.sign(u) / np.maximum(weights.sum(axis=0), 1)
        u = (values / np.abs(v)) @ np.sign(v) / np.maximum(weights.sum(axis=1), 1)
    x[inside], delta[across] = u, v
    return np.outer(x, delta)


def _fit(matrix: npt.NDArray[Any], visible: npt.NDArray[np.bool_], rank: int) -> npt.NDArray[Any]:
    """Completes a matrix at most at this rank, NaN where that determines nothing: outwards from a wholly visible block, or without a start if there is none.

    A mask by magnitude leaves the small rows and columns visible, and from their block each line with enough visible entries follows by least squares;
    alternating least squares without such a start does not find its way along such a staircase.
    """
    start = _block(visible, rank)
    if start is None:
        basis: Any = np.linalg.qr(row_space.complete_low_rank(matrix, visible, rank))[0]
        return basis @ _solve(basis, matrix, visible, rank).T  # type: ignore[no-any-return]
    rows, columns = start
    size = lambda axis: np.sqrt((np.where(visible, matrix, 0.0) ** 2).sum(axis=axis) / np.maximum(visible.sum(axis=axis), 1))
    down, across = np.maximum(size(1), 1e-300), np.maximum(size(0), 1e-300)
    scaled = matrix / down[:, None]
    block = scaled[np.ix_(rows, columns)] / across[columns]
    _, singular, vt = np.linalg.svd(block, full_matrices=False)
    # A singular value below float32's rounding is not a direction of its own.
    rank = min(rank, int((singular > 3e-7 * singular[0]).sum()))
    right: Any = np.full((matrix.shape[1], rank), np.nan)
    right[columns] = vt[:rank].T * across[columns, None]
    left: Any = np.full((matrix.shape[0], rank), np.nan)
    for _ in range(30):
        before = np.isfinite(left[:, 0]).sum() + np.isfinite(right[:, 0]).sum()
        left = _solve(right, scaled.T, visible.T, rank)
        known = np.isfinite(left[:, 0])
        if known.sum() < rank:
            break
        left[known] = np.linalg.qr(left[known])[0]
        right = _solve(left, scaled, visible, rank)
        if np.isfinite(left[:, 0]).sum() + np.isfinite(right[:, 0]).sum() == before:
            break
    completed: npt.NDArray[Any] = left @ right.T * down[:, None]
    return completed


def _block(visible: npt.NDArray[np.bool_], rank: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Returns rows and columns of a wholly visible block, as square as possible and at least 2 rank + 2 either way; None where there is none."""
    order = np.argsort(-visible.sum(axis=0), kind="stable")
    best: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
    count = 2 * rank + 2
    while count <= visible.shape[1]:
        columns = order[:count]
        rows = np.flatnonzero(visible[:, columns].all(axis=1))
        if len(rows) < 2 * rank + 2:
            break
        if best is None or min(len(rows), count) > best[0]:
            best = min(len(rows), count), rows, columns
        count *= 2
    return None if best is None else best[1:]


def _solve(factor: npt.NDArray[Any], matrix: npt.NDArray[Any], visible: npt.NDArray[np.bool_], rank: int) -> npt.NDArray[Any]:
    """Returns each column's coefficients on the factor's known and visible rows, (columns, rank); NaN where these are too few or too similar."""
    known = np.isfinite(factor[:, 0])
    scale = np.where(known, np.linalg.norm(np.nan_to_num(factor), axis=1), 1.0)
    weight = 1 / np.maximum(scale, 1e-300)
    result = np.full((matrix.shape[1], factor.shape[1]), np.nan)
    for j in np.flatnonzero((visible & known[:, None]).sum(axis=0) >= rank + 1):
        rows = np.flatnonzero(visible[:, j] & known)
        # Entries have the same relative accuracy at every size; the few hundred best conditioned rows suffice.
        rows = rows if len(rows) <= 512 else rows[np.argsort(-scale[rows], kind="stable")[:512]]
        a = factor[rows] * weight[rows, None]
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        if s[-1] > 1e-6 * s[0]:
            result[j] = vt.T @ ((u.T @ (matrix[rows, j] * weight[rows])) / s)
    return result


def low_rank(matrix: npt.NDArray[Any], hidden: npt.NDArray[np.bool_], rank: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], str]:
    """Fills the entries that a completion of at most this rank determines.

    It is fitted twice, once without a tenth of the visible entries. An entry is filled where both fits agree and its row and column show at least
    `rank` entries; nothing is filled where the held-out entries are not predicted.

    Args:
      matrix: (rows, columns), hidden entries are not read.
      hidden: of the same shape.
      rank: largest rank of the completion.

    Returns:
      The filled matrix, the mask of entries that are still hidden, and a description of the outcome.
    """
    if not hidden.any() or hidden.all():
        return matrix, hidden, "hidden whole" if hidden.all() else "nothing hidden"
    if 2 * rank >= min(matrix.shape):
        return matrix, hidden, f"rank {rank} of {min(matrix.shape)}: no redundancy"
    visible = ~hidden
    rows: Any = ((matrix != 0) & visible).any(axis=1)
    columns: Any = ((matrix != 0) & visible).any(axis=0)
    blank_rows, blank_columns = ~rows, ~columns
    for _ in range(50):
        inside = visible & rows[:, None] & columns
        fewer_rows, fewer_columns = rows & (inside.sum(axis=1) >= rank), columns & (inside.sum(axis=0) >= rank)
        if (fewer_rows == rows).all() and (fewer_columns == columns).all():
            break
        rows, columns = fewer_rows, fewer_columns
    part, shown = matrix[rows][:, columns].astype(np.float64), visible[rows][:, columns]
    if not part.size or not (part[shown] != 0).any():
        return matrix, hidden, "too little visible"
    held_out = np.random.default_rng(0).random(part.shape) < _HELD_OUT
    held_out &= shown & (shown.sum(axis=1) > 2 * rank)[:, None] & (shown.sum(axis=0) > 2 * rank)
    fit = _outer_product if rank == 1 else _fit
    fits = [fit(part, entries, rank) for entries in (shown, shown & ~held_out)]
    scale = float(np.abs(part[shown]).max())
    test = held_out & np.isfinite(fits[1]) & (part != 0)
    if test.sum() < _FEWEST_HELD_OUT:
        # A fit that nothing checks always agrees with what it was fitted to.
        return matrix, hidden, f"too little visible: {test.sum()} held-out entries can be predicted, and {_FEWEST_HELD_OUT} are needed to trust a fit"
    wrong = float(np.linalg.norm((fits[1] - part)[test])) / max(float(np.linalg.norm(part[test])), 1e-300)
    if wrong > 1e-2:
        return matrix, hidden, f"rank {rank} does not predict held-out entries (relative error {wrong:.1e})"
    agree = np.abs(fits[0] - fits[1]) <= _AGREEMENT * np.abs(fits[0]) + 1e-9 * scale
    filled, still_hidden = np.where(hidden, 0.0, matrix).astype(np.float64), hidden.copy()
    block_index = np.ix_(rows, columns)
    block, mask = filled[block_index], still_hidden[block_index]
    block[mask & agree] = fits[0][mask & agree]
    filled[block_index], still_hidden[block_index] = block, mask & ~agree
    # A line whose visible entries are all 0, and which crosses enough lines that are not 0, is 0 itself: a black pixel, or a unit that is off.
    zero_rows = blank_rows & (visible[:, columns].sum(axis=1) >= 2 * rank)
    zero_columns = blank_columns & (visible[rows].sum(axis=0) >= 2 * rank)
    still_hidden &= ~(zero_rows[:, None] | zero_columns)
    return filled, still_hidden, f"{hidden.sum() - still_hidden.sum()} of {hidden.sum()} hidden entries completed at rank {rank}"


def _groups(observation: Observation) -> list[tuple[str, ...]]:
    """Groups the paths of dense kernels that read the same input: query, key and value of a layer together, and every other kernel alone."""
    leaves = zip(trees.paths(observation.visible), jax.tree.leaves(observation.visible), strict=True)
    kernels = [path for path, leaf in leaves if path.endswith("kernel") and leaf.ndim == 2]
    together = [tuple(p for p in group if p in kernels) for group in getattr(observation.model, "attention_kernels", ())]
    grouped = {p for group in together for p in group}
    return [g for g in together if g] + [(p,) for p in kernels if p not in grouped]


def stack(observation: Observation, group: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Returns the kernels of a group side by side, with their biases as the last row, since a bias reads an input of 1, and their masks."""
    matrices, masks = [], []
    sent = set(trees.paths(observation.visible))
    for path in group:
        module = path.rsplit("/", 1)[0]
        value, mask = np.asarray(trees.subtree(observation.visible, path), np.float64), np.asarray(trees.subtree(observation.mask, path))
        bias: tuple[Any, Any] = np.zeros(value.shape[1]), np.ones(value.shape[1], bool)
        if f"{module}/bias" in sent:
            bias = np.asarray(trees.subtree(observation.visible, f"{module}/bias"), np.float64), np.asarray(trees.subtree(observation.mask, f"{module}/bias"))
        matrices.append(np.concatenate([value, bias[0][None]]))
        masks.append(np.concatenate([mask, bias[1][None]]))
    return np.concatenate(matrices, axis=1), np.concatenate(masks, axis=1)


def fill_hidden(observation: Observation, cache: Cache = no_cache) -> tuple[Observation, str]:
    """Fills in the hidden entries that structure determines, on the host in float64.

    In dense layers, [x; 1] delta' summed over the batch has at most the rank of the batch (of its tokens); biases are its last row, and query, key and
    value of one layer share x. The last layer sums to zero over the classes. Convolutions are also tried at the batch's rank, which holds where a kernel
    covers its whole input, and are left unchanged where that does not predict held-out entries.

    Returns:
      The observation with the filled entries marked as visible, and a JSON report: leaves used, and leaves not used, each with the reason.
    """
    if len(observation.sent) > 1:
        completed = [fill_hidden(view, cache) for view in observation.rounds]
        rounds, newly = tuple(view.sent[0] for view, _ in completed), tuple(newly_visible for view, _ in completed for newly_visible in view.completed or ())
        return dataclasses.replace(observation, sent=rounds, completed=newly), completed[0][1]
    filled = dict(zip(trees.paths(observation.visible), map(np.asarray, jax.tree.leaves(observation.visible)), strict=True))
    masks = dict(zip(trees.paths(observation.mask), map(np.asarray, jax.tree.leaves(observation.mask)), strict=True))
    rank = tokens_at_most(observation)
    used: list[str] = []
    unused: list[str] = []
    for group in _groups(observation):
        matrix, hidden = stack(observation, group)
        if not hidden[:-1].any():
            continue
        head = observation.model.head == group[0].rsplit("/", 1)[0]
        if head:
            matrix, hidden = sum_to_zero(matrix, hidden)
        before = int(hidden[:-1].sum())
        matrix, hidden, outcome = low_rank(matrix, hidden, rank)
        if head:
            matrix, hidden = sum_to_zero(matrix, hidden)
        column = gained = 0
        for path in group:
            module, width = path.rsplit("/", 1)[0], masks[path].shape[1]
            columns = slice(column, column + width)
            column += width
            for name, rows in ((path, slice(0, -1)), (f"{module}/bias", slice(-1, None))):
                if name in masks:
                    still = hidden[rows, columns].reshape(masks[name].shape)
                    gained += int(masks[name].sum() - still.sum())
                    filled[name] = np.where(masks[name] & ~still, matrix[rows, columns].reshape(masks[name].shape), filled[name]).astype(filled[name].dtype)
                    masks[name] = still
        (used if gained else unused).append(f"{', '.join(group)} ({outcome if not gained else f'{gained} entries completed, {before} were hidden'})")
    for path, mask in masks.items():
        if path.endswith("kernel") and mask.ndim == 4 and mask.any():
            shape = (-1, mask.shape[-1])
            matrix, hidden, outcome = low_rank(filled[path].reshape(shape), mask.reshape(shape), rank)
            gained = int(mask.sum() - hidden.sum())
            (used if gained else unused).append(f"{path} ({outcome})")
            filled[path], masks[path] = matrix.reshape(mask.shape).astype(filled[path].dtype), hidden.reshape(mask.shape)
    treedef = jax.tree.structure(observation.visible)
    names = trees.paths(observation.visible)
    visible = jax.tree.unflatten(treedef, [np.where(masks[n], 0, filled[n]).astype(filled[n].dtype) for n in names])
    mask = jax.tree.unflatten(treedef, [masks[n] for n in names])
    new = jax.tree.map(lambda before, after: np.asarray(before) & ~after, observation.mask, mask)
    completed_observation = dataclasses.replace(observation.with_first(visible=visible, mask=mask), completed=(new,))
    return completed_observation, json.dumps({"used": used, "unused": unused})
