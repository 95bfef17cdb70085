"""The space that a layer's inputs span, from the visible gradients of the dense kernels that read them.

dL/dW = X' D for a kernel that multiplies X (tokens, width): its columns lie in the span of X's rows. Petrov et al. 2024 (petrov2024dager),
theorem 5.1. Hidden entries are completed as a low-rank matrix: alternating least squares, Jain et al. 2013 (jain2013lowrank).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from selgrad.attacks.hidden import Hidden

Matrix = npt.NDArray[np.float64]


CLOSE = 0.05
"""Distances below this are computed again in float64: in float32, cancellation leaves errors of 1e-3."""


class RowSpace(NamedTuple):
    """An orthonormal basis of the space that the inputs span.

    Attributes:
      basis: (num_rows, rank) float64, columns orthonormal; rank 0 where nothing can be said.
      rows: (num_rows,) the coordinates of the inputs that it covers; the others were wholly hidden.
      leaves: paths of the kernels that were used.
      unused: paths of the kernels that were not, each with the reason.
    """

    basis: Matrix
    rows: npt.NDArray[np.int64]
    leaves: tuple[str, ...]
    unused: tuple[str, ...]

    def distances(self, inputs: Any) -> npt.NDArray[np.float64]:
        """Returns ||x - projection of x|| / ||x|| over the covered coordinates, shape inputs.shape[:-1], in [0, 1]; 1 where nothing can be said."""
        x = np.asarray(inputs)[..., self.rows]
        if not self.basis.shape[1]:
            return np.ones(x.shape[:-1])
        x = x.astype(np.float32)
        inside = x @ self.basis.astype(np.float32)
        # Float32 is used for speed over a vocabulary; small distances are computed again in float64.
        whole = np.maximum((x**2).sum(axis=-1), 1e-30)
        ratios = np.sqrt(np.maximum(whole - (inside**2).sum(axis=-1), 0) / whole).astype(np.float64)
        close = ratios < CLOSE
        if close.any():
            ratios[close] = self.exactly(np.asarray(inputs)[close])
        return ratios

    def exactly(self, inputs: Any) -> npt.NDArray[np.float64]:
        """Returns the same distances in float64, for inputs (n, width)."""
        y = np.asarray(inputs)[..., self.rows].astype(np.float64)
        ratios: npt.NDArray[np.float64] = np.linalg.norm(y - (y @ self.basis) @ self.basis.T, axis=-1) / np.maximum(np.linalg.norm(y, axis=-1), 1e-30)
        return ratios


def complete_low_rank(matrix: Matrix, visible: npt.NDArray[np.bool_], rank: int, *, num_steps: int = 300, floor: float = 1e-7) -> Matrix:
    """Fits a factor (rows, rank or fewer) of the low-rank matrix that agrees with the visible entries, by alternating least squares.

    The rank grows from 1: gradients' singular values span six orders of magnitude, and a fit that starts with all of them never finds the small ones.
    Columns are scaled to the same size for the same reason.

    Args:
      matrix: hidden entries are not read.
      visible: of the same shape.
      rank: largest rank of the completion.
      num_steps: largest number of steps at the full rank; a tenth of that at each lower rank.
      floor: the relative residual on visible entries that ends the fit; float32 gradients leave 1e-7.
    """
    weights: Any = visible.astype(np.float64)
    values: Any = np.where(visible, matrix, 0.0)
    values = values / np.maximum(np.sqrt((values**2).sum(axis=0) / np.maximum(weights.sum(axis=0), 1)), 1e-300)
    scale = float(np.linalg.norm(values)) or 1.0

    def solve(factor: Matrix, wanted: Matrix, weight: Matrix) -> Matrix:
        """Returns each column's least-squares coefficients on its visible rows, (columns, rank)."""
        size = factor.shape[1]
        pairs = (factor[:, :, None] * factor[:, None, :]).reshape(len(factor), -1)
        normal: Any = (weight.T @ pairs).reshape(-1, size, size)
        normal += (1e-14 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-300) * np.eye(size)
        result: Any = np.linalg.solve(normal, ((wanted * weight).T @ factor)[..., None])[..., 0]
        return result

    growth = -(-rank // 64)
    left: Any = np.zeros((len(values), 0))
    residual: Any = values
    while left.shape[1] < rank:
        fresh = _leading(residual, min(growth, rank - left.shape[1]))
        left = np.linalg.qr(np.concatenate([left, fresh], axis=1))[0]
        previous = np.inf
        for _ in range(num_steps if left.shape[1] == rank else num_steps // 10):
            # An orthonormal factor keeps the normal equations as well conditioned as they can be.
            right: Any = np.linalg.qr(solve(left, values, weights))[0]
            factor = solve(right, values.T, weights.T)
            residual = weights * (values - factor @ right.T)
            error = float(np.linalg.norm(residual)) / scale
            left = np.linalg.qr(factor)[0]
            if error < floor or error > 0.999 * previous:
                break
            previous = error
        if error < floor:
            break
    return factor


def _leading(matrix: Matrix, count: int) -> Matrix:
    """Returns the left singular vectors of the largest singular values, (rows, count), from the smaller Gram matrix, which determines them well."""
    rows, columns = matrix.shape
    if rows <= columns:
        size, gram = rows, matrix @ matrix.T
    else:
        size, gram = columns, matrix.T @ matrix
    vectors: Any = scipy.linalg.eigh(gram, subset_by_index=(size - min(count, size), size - 1))[1][:, ::-1]
    return vectors if rows <= columns else np.linalg.qr(matrix @ vectors)[0]  # type: ignore[no-any-return]


def find(kernels: Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[np.bool_]]], *, hidden: Hidden, max_rank: int, rank_tolerance: float) -> RowSpace:
    """Finds the row space of a layer's inputs.

    Args:
      kernels: path, visible gradient (width, features) and mask of each kernel that reads them.
      hidden: `zero` and `average` replace hidden entries by 0 or the mean; `ignore` and the rungs above it leave out rows and columns that are wholly
        hidden and complete the rest.
      max_rank: tokens in the batch; the inputs span no more.
      rank_tolerance: singular values below this share of the largest are noise.
    """
    used, unused, parts, masks = [], [], [], []
    for path, grads, mask in kernels:
        if mask.all():
            unused.append(f"{path} (hidden whole)")
            continue
        if not grads[~mask].any():
            # For example an adapter's first factor while the second is still 0: its gradient spans nothing, whatever the inputs were.
            unused.append(f"{path} (0 in every visible entry)")
            continue
        values = np.asarray(grads, np.float64)
        if hidden == "average":
            values = np.where(mask, values[~mask].mean(), values)
        used.append(path)
        parts.append(values)
        masks.append(mask)
    if not used:
        return RowSpace(np.zeros((0, 0)), np.zeros(0, np.int64), (), tuple(unused))
    matrix, mask = np.concatenate(parts, axis=1), np.concatenate(masks, axis=1)
    rows = np.arange(len(matrix))
    if hidden not in ("zero", "average") and mask.any():
        # A wholly hidden row or column says nothing, and one with fewer visible entries than the rank is not determined by them.
        for _ in range(20):
            keep_rows = (~mask).sum(axis=1) >= min(max_rank, mask.shape[1])
            keep_columns = (~mask[keep_rows]).sum(axis=0) >= min(max_rank, keep_rows.sum()) if keep_rows.any() else np.zeros(mask.shape[1], bool)
            if keep_rows.all() and keep_columns.all():
                break
            matrix, mask, rows = matrix[keep_rows][:, keep_columns], mask[keep_rows][:, keep_columns], rows[keep_rows]
            if not matrix.size:
                return RowSpace(np.zeros((0, 0)), np.zeros(0, np.int64), (), (*unused, *(f"{path} (too little visible)" for path in used)))
        if mask.any() and max_rank < len(matrix):
            # There are many columns; those with the most visible entries, a few times the rank, determine the space as well as all of them.
            order = np.argsort(mask.sum(axis=0), kind="stable")
            order = order[: 4 * max_rank] if not mask[:, order[: 4 * max_rank]].any() else order[: max(512, 6 * max_rank)]
            if mask[:, order].any():
                factor = complete_low_rank(matrix[:, order], ~mask[:, order], max_rank)
                return RowSpace(np.linalg.qr(factor)[0], rows, tuple(used), tuple(unused))
            matrix = matrix[:, order]
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    rank = int((singular > rank_tolerance * singular[0]).sum()) if singular.size and singular[0] > 0 else 0
    rank = min(rank, max_rank)
    if rank >= len(matrix):
        # Everything lies in the whole space: no test can fail, and none says anything.
        return RowSpace(np.zeros((len(matrix), 0)), rows, (), (*unused, *(f"{path} (rank {rank} of {len(matrix)}: full)" for path in used)))
    return RowSpace(left[:, :rank], rows, tuple(used), tuple(unused))
