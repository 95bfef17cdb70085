"""Minimisers in fixed-step form: one evaluation of the objective's gradient per step, so that lanes under `vmap` never wait.

A line search inside `vmap` runs until the slowest lane ends. Here a rejected trial point only shortens the lane's next step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PyTree

from selgrad.errors import UsageError

Objective: TypeAlias = Callable[[PyTree], Array]
RUN_AWAY = 1e4
"""Magnitude beyond which a point has run away, although a saturated network gives it a finite objective; starts are N(0, 1) and pixels of order 1."""


class Minimiser(NamedTuple):
    """`init(point) -> state`, which evaluates nothing, and `step(objective, state) -> state`.

    A state has `point`, the objective's `value` there (inf before the first step) and `done`. `evaluations` maps a number of coordinates to the cost of a
    step in evaluations of the objective's gradient. `value` is the function that is minimised, in the unit of a state's value: the objective, unless the
    minimiser adds to it.
    """

    init: Callable[[PyTree], Any]
    step: Callable[[Any, Any], Any]
    evaluations: Callable[[int], int] = lambda size: 1
    value: Callable[[Any, PyTree], Array] = lambda objective, point: objective(point)


class LBFGSState(NamedTuple):
    """The accepted point with its value and slope, the trial direction and length, and the curvature pairs in a ring.

    `order` numbers the pairs by age (-1 marks an empty row), `products` holds S Y' and Y Y', all of which the compact form reads.
    """

    point: Array
    value: Array
    done: Array
    slope: Array
    direction: Array
    length: Array
    steps: Array
    differences: Array
    steps_differences: Array
    differences_differences: Array
    order: Array


def _quasi_newton(state: LBFGSState, s_slope: Array, y_slope: Array) -> Array:
    """Returns -H g in the compact form of Byrd, Nocedal and Schnabel (byrd1994compact), equation 3.14 with H_0 = (s'y / y'y) I.

    Given S g and Y g, this takes two more matrix-vector products instead of the two-loop recursion's 4 m dependent vector operations.
    """
    slope, valid = state.slope, state.order >= 0
    memory = valid.size
    pair = valid[:, None] & valid[None, :]
    identity = jnp.eye(memory, dtype=slope.dtype)
    newest = jnp.argmax(jnp.where(valid, state.order, -1))
    sy, yy = state.steps_differences, jnp.where(pair, state.differences_differences, 0)
    curvature = jnp.where(valid, jnp.diagonal(sy), 1)
    gamma = jnp.where(valid.any(), curvature[newest] / jnp.where(valid.any(), yy[newest, newest], 1), 1)
    # R holds s_i'y_j for i not newer than j; sorted by age it is upper triangular.
    age = jnp.argsort(jnp.where(valid, state.order, -1))
    upper = jnp.where(pair & (state.order[:, None] <= state.order[None, :]), sy, 0) + jnp.where(valid, 0, 1) * identity
    upper = upper[age][:, age]
    s_slope, y_slope = (jnp.where(valid, product, 0) for product in (s_slope, y_slope))
    u = jax.scipy.linalg.solve_triangular(upper, s_slope[age])
    w = jnp.where(valid, curvature, 0)[age] * u + gamma * (yy[age][:, age] @ u) - gamma * y_slope[age]
    back = jnp.argsort(age)
    first = jax.scipy.linalg.solve_triangular(upper, w, trans=1)[back]
    first, second = jnp.where(valid, first, 0), jnp.where(valid, u[back], 0)
    return -(gamma * slope + first @ state.steps - gamma * (second @ state.differences))


def lbfgs(*, memory: int = 100, max_step: float = 0.1, tolerance: float = 1e-14) -> Minimiser:
    """Returns L-BFGS whose backtracking is spread over steps.

    Each step evaluates one trial point. If it decreases the objective enough (Armijo, 1e-4) it is accepted and the next direction is
    computed; else the trial length shrinks by quadratic interpolation. A non-finite trial is a rejected one, so a lane cannot diverge
    from a finite start.

    Args:
      memory: curvature pairs kept.
      max_step: root mean square by which a trial may move the variables. Without a bound a long first quasi-Newton step can decrease the
        objective into the region where every sigmoid is saturated, from where no gradient leads back.
      tolerance: a lane is done when its objective, which distances measure relative to the visible entries, falls below this, or its trial length underflows
        along the steepest descent.

    Raises:
      UsageError: if `memory` or `max_step` is not positive.
    """
    if memory < 1:
        raise UsageError(f"memory={memory} must be at least 1")
    if not max_step > 0:
        raise UsageError(f"max_step={max_step} must be positive")

    def steepest_descent(slope: Array) -> Array:
        # Along the steepest descent a step moves by 1 in L1 norm: torch's bound, whatever the unit of the objective.
        return -slope / jnp.maximum(jnp.abs(slope).sum(), jnp.finfo(slope.dtype).tiny)

    def longest_length(direction: Array) -> Array:
        return jnp.minimum(1.0, max_step / jnp.maximum(jnp.sqrt(jnp.mean(direction**2)), 1e-30))

    def init(point: Array) -> LBFGSState:
        # The first trial is the start itself: any finite value is below inf, and a step of length 0 gives no pair.
        zero = jnp.zeros((), point.dtype)
        rows = jnp.zeros((memory, point.size), point.dtype)
        square = jnp.zeros((memory, memory), point.dtype)
        return LBFGSState(
            point=point,
            value=zero + jnp.inf,
            done=jnp.zeros((), bool),
            slope=jnp.zeros_like(point),
            direction=jnp.zeros_like(point),
            length=zero,
            steps=rows,
            differences=rows,
            steps_differences=square,
            differences_differences=square,
            order=jnp.full(memory, -1, jnp.int32),
        )

    def step(objective: Objective, state: LBFGSState) -> LBFGSState:
        descent = jnp.vdot(state.slope, state.direction)
        trial = state.point + state.length * state.direction
        value, slope = jax.value_and_grad(objective)(trial)
        finite = jnp.isfinite(value) & jnp.isfinite(slope).all()
        accepted = finite & (value <= state.value + 1e-4 * state.length * descent) & ~state.done

        # The oldest row (or the first empty one) is replaced; where nothing is stored it is written back unchanged, in place.
        s, y = trial - state.point, slope - state.slope
        curvature = jnp.vdot(s, y)
        # A product below its own rounding says nothing about curvature.
        stored = accepted & (curvature > jnp.finfo(s.dtype).eps * jnp.linalg.norm(s) * jnp.linalg.norm(y))
        row = jnp.argmin(state.order)
        steps = state.steps.at[row].set(jnp.where(stored, s, state.steps[row]))
        differences = state.differences.at[row].set(jnp.where(stored, y, state.differences[row]))
        new_y, new_slope = jnp.where(stored, y, 0), jnp.where(accepted, slope, state.slope)
        # Reading the pairs dominates the cost of a step. One product with two columns would read them once, but is slower because XLA packs them for it.
        sy, s_slope = steps @ new_y, steps @ new_slope
        yy, y_slope = differences @ new_y, differences @ new_slope
        is_new = (jnp.arange(memory) == row) & stored
        # Only s_i'y_j with i not newer than j is ever read, so a new pair needs its column alone.
        products = jnp.where(is_new[None, :], sy[:, None], state.steps_differences)
        squares = jnp.where(is_new[None, :] | is_new[:, None], jnp.where(is_new[None, :], yy[:, None], yy[None, :]), state.differences_differences)
        moved = state._replace(
            point=jnp.where(accepted, trial, state.point),
            value=jnp.where(accepted, value, state.value),
            slope=new_slope,
            steps=steps,
            differences=differences,
            steps_differences=products,
            differences_differences=squares,
            order=jnp.where(is_new, state.order.max() + 1, state.order),
        )
        direction = _quasi_newton(moved, s_slope, y_slope)
        downhill = jnp.vdot(direction, moved.slope) < 0

        # The minimum of the parabola through value, descent and the trial value, kept within [0.1, 0.5] of the rejected length.
        parabola = -descent * state.length / (2 * (value - state.value - state.length * descent))
        shrink = jnp.where(finite, jnp.clip(jnp.nan_to_num(parabola, nan=0.1), 0.1, 0.5), 0.1)
        shorter = state.length * shrink
        stuck = ~accepted & (shorter < 1e-7 * longest_length(state.direction))
        fresh = accepted | stuck
        # Without a pair nothing says how far the slope reaches.
        steepest = fresh & (stuck | ~downhill | (moved.order < 0).all())
        # Stuck right after a restart along the steepest descent: the float type holds no better point.
        hopeless = stuck & (state.order < 0).all()
        # A start that is not finite leaves value at inf and cannot be mended by shorter steps.
        hopeless = hopeless | ~jnp.isfinite(moved.value)
        chosen = jnp.where(steepest, steepest_descent(moved.slope), direction)
        return moved._replace(
            direction=jnp.where(fresh, chosen, state.direction),
            length=jnp.where(fresh, longest_length(chosen), shorter),
            order=jnp.where(steepest, -1, moved.order),
            done=state.done | hopeless | (moved.value < tolerance),
        )

    return Minimiser(init, step)


class FirstOrderState(NamedTuple):
    """The best point so far with its value, whether the lane is done, whether the point is better than the start, the next point, and optax's state."""

    point: PyTree
    value: Array
    done: Array
    improved: Array
    upcoming: PyTree
    inner: Any


def first_order(transformation: optax.GradientTransformation, *, project: Callable[[PyTree], PyTree] = lambda x: x) -> Minimiser:
    """Returns an optax transformation with a projection after every step; a lane stops when its values are no longer finite.

    At a constant learning rate the last point is rarely the best one, so the best is kept, as in LAMP's loop (balunovic2022lamp), unless it has
    run away. A lane that is lost before it improves on its start has the value inf.
    """

    def init(point: PyTree) -> FirstOrderState:
        return FirstOrderState(point, jnp.float32(jnp.inf), jnp.zeros((), bool), jnp.zeros((), bool), point, transformation.init(point))

    def step(objective: Objective, state: FirstOrderState) -> FirstOrderState:
        value, slope = jax.value_and_grad(objective)(state.upcoming)
        updates, inner = transformation.update(slope, state.inner, state.upcoming)
        upcoming = project(optax.apply_updates(state.upcoming, updates))
        bounded = jnp.stack([(jnp.abs(leaf) < RUN_AWAY).all() for leaf in jax.tree.leaves(state.upcoming)]).all()
        better = (value < state.value) & bounded
        improved = state.improved | (better & jnp.isfinite(state.value))
        # A lane that never improved on its start before it was lost has diverged, and its start is not a result.
        lost = (~jnp.isfinite(value) | ~bounded) & ~improved
        point = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.upcoming, state.point)
        best = jnp.where(lost, jnp.inf, jnp.where(better, value, state.value))
        moved = FirstOrderState(point, best, lost | ~jnp.isfinite(value), improved, upcoming, inner)
        return jax.tree.map(lambda new, old: jnp.where(state.done, old, new), moved, state)

    return Minimiser(init, step)
