"""The fixed-step L-BFGS on problems with known answers, and what it does with hopeless ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from selgrad.attacks.minimisers import first_order, lbfgs


def run(objective, start, num_steps, **arguments):
    method = lbfgs(max_step=1e9, **arguments)
    return jax.jit(lambda x: jax.lax.fori_loop(0, num_steps, lambda _, s: method.step(objective, s), method.init(x)))(start)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("memory", [5, 20, 100])
def test_rosenbrock(x64, memory):
    state = run(rosenbrock, jnp.full(10, -1.0), 300, memory=memory, tolerance=1e-20)
    np.testing.assert_allclose(state.point, np.ones(10), atol=1e-6)


def test_about_as_many_evaluations_as_scipy(x64):
    start = np.random.default_rng(0).normal(size=30)
    scipys = scipy.optimize.minimize(lambda x: np.asarray(rosenbrock(x)), start, jac=jax.grad(rosenbrock), method="L-BFGS-B", options={"maxcor": 20})
    ours = run(rosenbrock, jnp.asarray(start), 2 * scipys.nfev, memory=20, tolerance=0.0)
    assert ours.value < 1e-8


def test_quadratic_direction_is_newtons_once_memory_spans_the_space(x64):
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    hessian = jnp.asarray(matrix @ matrix.T + np.eye(6))
    state = run(lambda x: x @ hessian @ x / 2, jnp.ones(6), 40, memory=20, tolerance=0.0)
    assert state.value < 1e-20


def test_the_objective_never_rises():
    values = []
    method, objective = lbfgs(), rosenbrock
    state = method.init(jnp.full(6, 3.0))
    step = jax.jit(lambda s: method.step(objective, s))
    for _ in range(60):
        state = step(state)
        values.append(float(state.value))
    assert all(b <= a for a, b in zip(values, values[1:], strict=False)) and values[-1] < values[0]


def test_non_finite_trials_are_rejected_and_a_non_finite_start_is_given_up():
    state = run(lambda x: jnp.sum(jnp.where(x > 0, x - jnp.log(x), jnp.nan)), jnp.full(4, 3.0), 60)
    np.testing.assert_allclose(state.point, 1.0, atol=1e-3)
    hopeless = run(lambda x: jnp.sum(x) * jnp.nan, jnp.ones(3), 5)
    assert hopeless.done and not jnp.isfinite(hopeless.value)


def test_the_step_bound_holds():
    method = lbfgs(max_step=0.1)
    state = method.init(jnp.full(50, 5.0))
    for _ in range(20):
        previous = state.point
        state = method.step(lambda x: jnp.sum(x**2) * 1e-3, state)
        assert float(jnp.sqrt(jnp.mean((state.point - previous) ** 2))) <= 0.1 * 1.0001 or float(jnp.abs(state.point - previous).sum()) <= 1.0001


def test_a_finished_lane_stays_as_it_is_beside_an_unfinished_one():
    starts = jnp.stack([jnp.full(4, 1e-9), jnp.full(4, 3.0)])
    state = jax.vmap(lambda x: run(lambda y: jnp.sum(y**4 + y**2), x, 3))(starts)
    assert state.done[0] and not state.done[1]
    np.testing.assert_array_equal(state.point[0], starts[0])


def test_a_first_order_minimiser_keeps_its_best_point_and_survives_a_bad_one():
    def objective(x):
        return jnp.where(x[0] < -2, jnp.nan, jnp.sum((x - 1) ** 2))

    method = first_order(optax.sgd(lambda count: 0.3 * (count + 1)))  # nears the minimum, then steps over it, farther each time
    state, seen = method.init(jnp.full(2, 1.5)), []
    for _ in range(12):
        seen.append(float(objective(state.upcoming)))
        state = method.step(objective, state)
    assert np.isnan(seen).any() and state.done and 0 < np.nanargmin(seen) < np.argmax(np.isnan(seen)) - 1
    assert state.value == np.nanmin(seen) == float(objective(state.point))
