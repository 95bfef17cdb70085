"""Certificates: what a mask leaves identifiable, computed from the Jacobian J of the update by the input before any attack has run.

They use linear algebra on the rows of J that stay visible, in float64 on the host (docs/theory.md, sections 3 to 5): the inversion influence function of Zhang
et al. 2023 (zhang2023inversion), the Bayesian Cramer-Rao bound of van Trees 1968 (vantrees1968), and the Laplace posterior of Balunovic et al. 2022
(balunovic2022bayesian).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The quantities certified for one mask. MSE is per input coordinate, in the units that the model reads.

    Attributes:
      num_inputs: d, coordinates that the attacker does not know.
      num_visible: number of entries in the clear.
      rank: of J_vis, by eigenvalues of its Gram matrix above its rounding (relative 1e-14 or d * 2.2e-16).
      sigma_min, sigma_max: smallest and largest singular value of J_vis; sigma_min is 0 where the rank is below d.
      log_det: log det(J_vis'J_vis), natural; -inf where the rank is below d.
      condition: sigma_max / sigma_min; inf where the rank is below d.
      influence_mse: |(J'J + eps I)^-1 J'(M g)|^2 / d, the error to first order of an attacker who takes hidden entries as 0.
      influence_bound: its lower bound, |J'(M g)|^2 / (lambda_max + eps)^2 / d.
      posterior_mse: tr(J_vis' Sigma^-1 J_vis + Lambda)^-1 / d, the error to first order of the best attacker who ignores hidden entries: its Laplace
        posterior, and at the truth the Cramer-Rao bound with the prior's information Lambda. It never falls when more is hidden.
      identified: share of input directions whose posterior variance is below 1 % of their prior variance.
      verdict: the same in words.
    """

    num_inputs: int
    num_visible: int
    rank: int
    sigma_min: float
    sigma_max: float
    log_det: float
    condition: float
    influence_mse: float
    influence_bound: float
    posterior_mse: float
    identified: float
    verdict: str


def float32_noise(grads: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Returns the standard deviation of each entry's rounding in float32: 2^-24 / sqrt(3) of the entry or of its leaf's root mean square.

    Rounding to nearest is uniform within half a unit in the last place; an entry much smaller than its leaf is a sum of larger terms and carries theirs.
    """
    parts = []
    for leaf in grads:
        flat = np.abs(np.asarray(leaf, np.float64)).reshape(-1)
        parts.append(np.maximum(flat, math.sqrt(float((flat**2).mean()))))
    largest: Any = np.concatenate(parts)
    return np.maximum(largest, 1e-30) * 2.0**-24 / math.sqrt(3)


def gaussian_prior(inputs: npt.NDArray[Any], shrinkage: float = 0.1) -> npt.NDArray[Any]:
    """Returns the precision (d, d) of a Gaussian fitted to public inputs (count, ...), its covariance shrunk towards the mean variance.

    Args:
      inputs: of public data; d is the size of one.
      shrinkage: weight of the mean variance, in (0, 1]; 1 is the isotropic prior.
    """
    flat = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    size = flat.shape[1]
    covariance = np.cov(flat, rowvar=False).reshape(size, size) if len(flat) > 1 else np.eye(size)
    variance = max(float(np.trace(covariance)) / size, 1e-12)
    return np.linalg.inv((1 - shrinkage) * covariance + shrinkage * variance * np.eye(size))


def grams(jacobian: npt.NDArray[Any], ranks: npt.NDArray[Any], counts: Sequence[int], weights: npt.NDArray[Any] | None = None) -> Iterator[Matrix]:
    """Computes J_vis' W J_vis for each number of hidden entries in one pass over the rows, since masks of one ranking are nested.

    Args:
      jacobian: (n, d).
      ranks: (n,), 0 is hidden first.
      counts: numbers of hidden entries, ascending.
      weights: (n,), 1 / sigma_i^2 for Fisher information; None means 1.
    """
    size = jacobian.shape[1]
    order = np.argsort(ranks, kind="stable")
    ends = [*counts, len(ranks)]
    parts = []
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        total: Any = np.zeros((size, size))
        for first in range(start, stop, _ROWS):
            rows = order[first : min(stop, first + _ROWS)]
            block = np.asarray(jacobian[rows], np.float64)
            total += (block if weights is None else block * weights[rows, None]).T @ block
        parts.append(total)
    visible: Any = np.zeros((size, size))
    cumulative = []
    for part in reversed(parts):
        visible = visible + part
        cumulative.append(visible)
    return reversed(cumulative)


def certify(
    jacobian: npt.NDArray[Any], grads: npt.NDArray[Any], ranks: npt.NDArray[Any], counts: Sequence[int], *,
    noise: npt.NDArray[Any] | float, prior: npt.NDArray[Any] | float, epsilon: float = 1e-3, informations: Sequence[Matrix] | None = None,
) -> list[Certificate]:  # fmt: skip
    """Computes the certificates of nested masks.

    Args:
      jacobian: (n, d), of the update by those inputs that the attacker does not know.
      grads: (n,) the update.
      ranks: (n,), 0 is hidden first.
      counts: number of hidden entries of each mask, ascending.
      noise: standard deviation of a visible entry, () or (n,): rounding (`float32_noise`), a quantisation grid's step / sqrt(12), DP noise; independent
        sources add in squares.
      prior: precision of the attacker's Gaussian prior: (d, d), or one number for all coordinates, 1 / variance.
      epsilon: of the influence function, relative to the mean eigenvalue of J'J.
      informations: J_vis' Sigma^-1 J_vis of each mask, as returned by `grams`, where they are already known.
    """
    total, size = jacobian.shape
    if informations is None:
        informations = list(grams(jacobian, ranks, counts, 1 / np.broadcast_to(np.asarray(noise, np.float64) ** 2, (total,))))
    precision = np.asarray(prior, np.float64) * np.eye(size) if np.ndim(prior) == 0 else np.asarray(prior, np.float64)
    root = np.linalg.cholesky(precision)
    whole = next(iter(grams(jacobian, ranks, [0])))
    shift = epsilon * float(np.trace(whole)) / size
    largest = float(np.linalg.eigvalsh(whole)[-1]) if size else 0.0
    result = []
    for count, gram, information in zip(counts, grams(jacobian, ranks, counts), informations, strict=True):
        values = np.linalg.eigvalsh(gram)
        rank = int((values > max(1e-14, size * 2.2e-16) * max(values[-1], 0)).sum()) if count < total else 0
        full = rank == size
        moved = jacobian.T @ np.where(ranks < count, grads, 0)
        influence = np.linalg.solve(whole + max(shift, 1e-300) * np.eye(size), moved)
        # In coordinates where the prior is white, directions are comparable: posterior over prior variance is 1 / (1 + eigenvalue).
        white = np.linalg.solve(root, np.linalg.solve(root, information).T)
        gain, directions = np.linalg.eigh((white + white.T) / 2)
        shrunk = np.linalg.solve(root.T, directions)
        posterior = float(((shrunk**2).sum(axis=0) / (1 + np.maximum(gain, 0))).sum()) / size
        sigma_max = math.sqrt(max(float(values[-1]), 0.0)) if count < total else 0.0
        sigma_min = math.sqrt(float(values[0])) if full else 0.0
        identified = float((gain > 99).mean())
        result.append(
            Certificate(
                num_inputs=size,
                num_visible=total - count,
                rank=rank,
                sigma_min=sigma_min,
                sigma_max=sigma_max,
                log_det=float(np.log(values).sum()) if full else -math.inf,
                condition=sigma_max / sigma_min if full else math.inf,
                influence_mse=float(influence @ influence) / size,
                influence_bound=float(moved @ moved) / (largest + shift) ** 2 / size if largest > 0 else 0.0,
                posterior_mse=posterior,
                identified=identified,
                verdict=verdict(size, rank, count, total, identified),
            )
        )
    return result


def verdict(size: int, rank: int, count: int, total: int, identified: float) -> str:
    """Says in one sentence what rank and noise imply about a mask of `count` of `total` entries."""
    mask = f"a mask of {count / total:.1%}"
    if count == total:
        return f"{mask}: nothing is visible, the attacker has its prior alone"
    if rank == 0:
        return f"{mask}: nothing that is visible depends on the input, the attacker has its prior alone"
    if rank < size:
        return f"{mask}: {size - rank} of {size} input directions leave no trace in what is visible"
    if identified < 1:
        return f"{mask}: full rank {size}, but the noise hides {1 - identified:.0%} of the directions"
    return f"{mask}: still full rank {size}, every direction stands out of the noise; the attack is only harder to optimise"


def van_trees(informations: Sequence[npt.NDArray[Any]], prior: npt.NDArray[Any] | float) -> float:
    """Returns the Bayesian Cramer-Rao bound on the MSE, averaged over the data: tr(E[J_vis' Sigma^-1 J_vis] + Lambda)^-1 / d.

    It holds for every attacker if Lambda is the information of the data's own density, and if nothing but the values of the visible entries is known. With a
    Gaussian of the data's covariance, whose information is the least of all densities with that covariance, attackers who know the data better can err less.

    Args:
      informations: J_vis' Sigma^-1 J_vis at draws from the data, each (d, d), as returned by `grams`.
      prior: Lambda, the prior's own Fisher information: (d, d) or one number; a Gaussian's is its precision.
    """
    mean = np.mean(np.asarray(informations), axis=0)
    precision = np.asarray(prior) * np.eye(len(mean)) if np.ndim(prior) == 0 else np.asarray(prior)
    return float(np.trace(np.linalg.inv(mean + precision))) / len(mean)
