"""The attacker that certificates assume: the posterior mode of the inputs by Gauss-Newton, with a Gaussian prior and the noise of the visible entries.

Levenberg-Marquardt (marquardt1963algorithm) on the visible entries, in coordinates in which the prior is white; the assumed noise of the entries falls step
by step, so that no step trusts the linear part of the update beyond where it holds. Near the truth the mode's mean squared error is the posterior MSE of
`selgrad.evaluation.certificates` (docs/theory.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from selgrad import jacobian
from selgrad.attacks.distances import leaf_l2
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import Mismatch, gradient_matching, iterate
from selgrad.attacks.labels import rule_for
from selgrad.attacks.minimisers import Minimiser
from selgrad.attacks.spaces import whitened
from selgrad.attacks.trials import likely_images
from selgrad.base import Attack
from selgrad.errors import UsageError

_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


class GaussNewtonState(NamedTuple):
    """The point, the objective there at the smallest noise, whether the search is done, the current noise, the damping, and the steps rejected in a row."""

    point: Array
    value: Array
    done: Array
    noise: Array
    damping: Array
    rejected: Array


def gauss_newton_steps(*, first_noise: float, last_noise: float, halving: float, exact: int, num_products: int) -> Minimiser:
    """Returns damped Gauss-Newton on |residuals / noise|^2 + |z|^2, with one Jacobian per step.

    The step solves (A'A + (1 + damping) I) p = -(A'r + z), A = J / noise, by conjugate gradients. Up to `exact` coordinates A is written out, and the
    triangular factor of its rows, added up to four times as many as there are columns, is the preconditioner: a dozen products then solve it to
    float32's precision without the square of A's condition that a Cholesky factor of A'A would have (Avron, Maymounkov and Toledo 2010, avron2010blendenpik).
    Beyond that, only products with J and J' are used, and the prior's coordinates are the preconditioner. The best of six lengths of the step is taken; where
    none lowers the objective, the damping rises.

    Args:
      first_noise, last_noise: standard deviation of an entry, in units of its leaf's norm, at the first step and as the lower limit.
      halving: the factor that it is multiplied by at each step.
      exact: coordinates up to which A is written out.
      num_products: products of conjugate gradients beyond that.
    """

    def posterior(residuals: Array, point: Array) -> Array:
        return jnp.vdot(residuals, residuals) + jnp.vdot(point, point)

    def value(objective: Mismatch, point: Array) -> Array:
        return posterior(objective.residuals(point) / jnp.hypot(last_noise, objective.noise), point)

    def init(point: Array) -> GaussNewtonState:
        zero = jnp.zeros((), point.dtype)
        return GaussNewtonState(point, zero + jnp.inf, jnp.zeros((), bool), zero + first_noise, zero + 1e-3, jnp.zeros((), jnp.int32))

    def step(objective: Mismatch, state: GaussNewtonState) -> GaussNewtonState:
        noise, residuals = state.noise, objective.residuals
        # Known noise of entries is added to their assumed noise.
        residual, linear = residuals(state.point), jacobian.linearise(residuals, state.point)
        weight = jnp.broadcast_to(1 / jnp.hypot(noise, objective.noise), residual.shape)

        def cost(point: Array, weight: Array) -> Array:
            return posterior(residuals(point) * weight, point)

        shift = 1 + state.damping
        if state.point.size <= exact:
            dense = jacobian.dense(linear) * weight[:, None]
            apply, transpose = (lambda v: dense @ v), (lambda u: u @ dense)
            precondition, products = _factored(dense, shift), 12
        else:
            apply, transpose = (lambda v: linear.apply(v) * weight), (lambda u: linear.transpose(u * weight))
            precondition, products = (lambda v: v), num_products
        slope = transpose(residual * weight) + state.point
        operator = lambda v: transpose(apply(v)) + shift * v
        direction = -jax.scipy.sparse.linalg.cg(operator, slope, M=precondition, maxiter=products, tol=1e-5)[0]
        direction = jnp.where(jnp.isfinite(direction).all(), direction, -slope / jnp.maximum(jnp.linalg.norm(slope), 1e-30))
        lengths = jnp.asarray(_LENGTHS, state.point.dtype)
        costs = jax.lax.map(lambda length: cost(state.point + length * direction, weight), lengths)
        best = jnp.nanargmin(jnp.where(jnp.isfinite(costs), costs, jnp.inf))
        better = costs[best] < cost(state.point, weight)
        point = jnp.where(better, state.point + lengths[best] * direction, state.point)
        rejected = jnp.where(better, 0, state.rejected + 1)
        # The noise falls only where the linear part of the update held for most of the step.
        held = better & (best < 2)
        moved = GaussNewtonState(
            point=point,
            value=value(objective, point),
            done=state.done | ((rejected > 4) & (noise <= last_noise)),
            noise=jnp.where(held, jnp.maximum(halving * noise, last_noise), noise),
            damping=jnp.clip(jnp.where(held, state.damping / 5, jnp.where(better, state.damping, state.damping * 10)), 1e-6, 1e9),
            rejected=rejected,
        )
        return jax.tree.map(lambda new, old: jnp.where(state.done, old, new), moved, state)

    def evaluations(size: int) -> int:
        # A product with J or J' costs about as much as a gradient of the objective's half.
        return 2 * len(_LENGTHS) + (size + 24 if size <= exact else 2 * num_products)

    return Minimiser(init, step, evaluations, value)


def _factored(dense: Array, shift: Array) -> Callable[[Array], Array]:
    """Returns the map v -> (R'R)^-1 v with R'R about A'A + shift I: R is the factor of A's rows, added up with random signs to four times A's columns."""
    rows, columns = dense.shape
    groups = -(-rows // (4 * columns))
    if groups > 1:
        signs = jax.random.rademacher(jax.random.key(0), (rows,), dense.dtype)
        # Row i is added to row i mod (4 d), so that neighbours, which are similar, are not added up.
        padded = jnp.pad(dense * signs[:, None], ((0, groups * 4 * columns - rows), (0, 0)))
        dense = padded.reshape(groups, 4 * columns, columns).sum(axis=0)
    stacked = jnp.concatenate([dense, jnp.sqrt(shift) * jnp.eye(columns, dtype=dense.dtype)])
    upper = jnp.linalg.qr(stacked, mode="r")

    def solve(v: Array) -> Array:
        half = jax.scipy.linalg.solve_triangular(upper, v, trans=1)
        return jax.scipy.linalg.solve_triangular(upper, half)

    return solve


def gauss_newton(
    *,
    num_steps: int = 120,
    num_restarts: int = 1,
    hidden: Hidden = "ignore",
    first_noise: float = 0.3,
    last_noise: float = 1e-6,
    halving: float = 0.5,
    shrinkage: float = 0.1,
    exact: int = 4096,
    num_products: int = 100,
) -> Attack:
    """Runs Levenberg-Marquardt to the posterior mode, with a Gaussian prior from public images, or that of photographs where there are none.

    Args:
      num_steps: number of steps, each with one Jacobian.
      num_restarts: independent starts near the prior's mean, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      first_noise: assumed standard deviation of an entry at the first step, in units of its leaf's norm.
      last_noise: its lower limit; a protection's noise is added to it.
      halving: the factor that it is multiplied by at each step.
      shrinkage: weight of the mean variance in the prior's covariance.
      exact: input coordinates up to which the Jacobian is written out; beyond that, only products with it are computed.
      num_products: products of conjugate gradients beyond that.

    Raises:
      UsageError: if a number is not positive.
    """
    numbers = {"first_noise": first_noise, "last_noise": last_noise, "halving": halving, "shrinkage": shrinkage, "num_products": num_products}
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"{name}={value} must be positive")
    method = gauss_newton_steps(first_noise=first_noise, last_noise=last_noise, halving=halving, exact=exact, num_products=num_products)
    kernel = gradient_matching(
        distance=leaf_l2, minimiser=lambda _: method, hidden=hidden, space=whitened(shrinkage), label_rule=rule_for(hidden), trial=likely_images()
    )
    return iterate(kernel, num_steps=num_steps, num_restarts=num_restarts)
