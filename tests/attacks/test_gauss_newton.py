"""Gauss-Newton against closed forms, and against the certificate of the masks that it reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad.attacks.gauss_newton import gauss_newton, gauss_newton_steps
from selgrad.attacks.kernel import Mismatch
from selgrad.attacks.priors import of_nature, of_public
from selgrad.base import Batch, InputSpec
from selgrad.errors import UsageError
from selgrad.experiment import Certifier, Lane, Setting
from selgrad.experiment.cell import run_lanes
from selgrad.registry import make_spec


def linear(rows, noise, seed=0):
    rng = np.random.default_rng(seed)
    # Singular values over three decades, as gradients have them.
    left = rng.normal(size=(rows, 12)) / np.sqrt(rows)
    matrix = left * np.logspace(0, -3, 12) @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    truth = rng.normal(size=12)
    return matrix.astype(np.float32), (matrix @ truth + noise * rng.normal(size=rows)).astype(np.float32)


@pytest.mark.parametrize(("rows", "exact"), [(20, 4096), (400, 4096), (400, 1)], ids=["few rows", "rows added up", "products alone"])
def test_a_linear_problem_has_the_posterior_mean_of_its_closed_form(rows, exact):
    noise = 1e-2
    matrix, seen = linear(rows, noise)
    value = lambda z: jnp.sum((matrix @ z - seen) ** 2)
    objective = Mismatch(value, lambda z: matrix @ z - seen, 0.0, value)
    method = gauss_newton_steps(first_noise=noise, last_noise=noise, halving=0.5, exact=exact, num_products=60)
    state = jax.jit(lambda z: jax.lax.fori_loop(0, 8, lambda _, s: method.step(objective, s), method.init(z)))(jnp.ones(12))
    wide = matrix.astype(np.float64)
    expected = np.linalg.solve(wide.T @ wide / noise**2 + np.eye(12), wide.T @ seen / noise**2)
    np.testing.assert_allclose(state.point, expected, atol=2e-3)
    residual = matrix @ expected - seen
    np.testing.assert_allclose(state.value, residual @ residual / noise**2 + expected @ expected, rtol=1e-3)
    np.testing.assert_allclose(method.value(objective, jnp.asarray(expected, jnp.float32)), state.value, rtol=1e-3)


def test_known_noise_is_added_to_what_entries_are_credited_with():
    matrix, seen = linear(40, 0.0)
    noise = np.where(np.arange(40) < 20, 10.0, 0.0).astype(np.float32)
    value = lambda z: jnp.sum((matrix @ z - seen) ** 2)
    objective = Mismatch(value, lambda z: matrix @ z - seen, noise, value)
    method = gauss_newton_steps(first_noise=1e-2, last_noise=1e-2, halving=0.5, exact=4096, num_products=60)
    state = jax.jit(lambda z: jax.lax.fori_loop(0, 8, lambda _, s: method.step(objective, s), method.init(z)))(jnp.zeros(12))
    weight = 1 / np.hypot(1e-2, noise.astype(np.float64))
    weighted = matrix * weight[:, None]
    expected = np.linalg.solve(weighted.T @ weighted + np.eye(12), weighted.T @ (seen * weight))
    np.testing.assert_allclose(state.point, expected, atol=2e-3)


SPEC = InputSpec((6, 5, 2), 3, (0.4, 0.6), (0.2, 0.5))


@pytest.mark.parametrize("public", [True, False])
def test_a_priors_inverse_is_one_and_its_root_has_the_deviation_it_says(public):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(300, 1, *SPEC.shape)) * np.linspace(0.5, 2, 60).reshape(SPEC.shape)
    prior = of_public(Batch(jnp.asarray(images, jnp.float32), jnp.zeros((300, 1), jnp.int32)), SPEC) if public else of_nature(SPEC)
    white = jnp.asarray(rng.normal(size=(7, *SPEC.shape)), jnp.float32)
    np.testing.assert_allclose(prior.inverse(prior.root(white)), white, atol=1e-4)
    root = np.asarray(prior.root(jnp.eye(60).reshape(60, *SPEC.shape))).reshape(60, 60)
    covariance = root @ root.T
    if public:
        flat = images.reshape(300, -1)
        expected = 0.9 * np.cov(flat, rowvar=False, bias=True) + 0.1 * flat.var(axis=0).mean() * np.eye(60)
        np.testing.assert_allclose(covariance, expected, atol=1e-3)
    else:
        deviations = np.sqrt(np.diag(covariance)).reshape(SPEC.shape) * np.asarray(SPEC.std)
        np.testing.assert_allclose(np.sqrt((deviations**2).mean()), 0.25, rtol=1e-3)
        assert covariance[0, 2] > 0.5 * covariance[0, 0] > 5 * abs(covariance[0, 1]), "neighbours are alike, and channels are apart"


def test_its_error_is_the_posterior_mse_of_the_certificate():
    """Digits and a sigmoid LeNet: with 95 % hidden at random the certificate leaves an attacker no error, and by magnitude it leaves the prior's."""
    public = make_spec("dataset", "digits", {"count": 400, "offset": 200})
    setting = Setting(
        make_spec("dataset", "digits", {"count": 4}), make_spec("model", "lenet", {"activation": "sigmoid"}), make_spec("update", "gradient"), public=public
    )
    selector, certifier = make_spec("selector", "global_top"), Certifier(setting)
    promised, lanes = {}, []
    for name, ratio in (("random", 0.0), ("random", 0.95), ("magnitude", 0.7), ("magnitude", 0.9)):
        metric = make_spec("metric", name)
        lanes += [Lane(0, sample, metric, selector, ratio) for sample in range(4)]
        certificates, _ = certifier.certificates(metric, selector, 0, (setting.num_selected(ratio),))
        promised[name, ratio] = np.asarray([one[0].posterior_mse for one in certificates])
    ran = run_lanes(setting, make_spec("attack", "gauss_newton", {"num_steps": 60}), lanes)
    every = np.asarray([one.measures["mse"] for one in ran.found]).reshape(4, 4)
    for (case, bound), found in zip(promised.items(), every, strict=True):
        assert found.mean() < 1.2 * bound.mean() + 1e-5, case
    np.testing.assert_allclose(every[-1].mean(), promised["magnitude", 0.9].mean(), rtol=0.2)
    assert all(one.measures["label_correct"] == 1 for one in ran.found[:12])
    converged = np.asarray([one.measures["converged"] for one in ran.found]).reshape(4, 4)
    assert converged[[0, 1, 3]].all(), "what it finds there explains all that is visible"


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="halving=0"):
        gauss_newton(halving=0.0)
    assert dataclasses.is_dataclass(gauss_newton())


def test_labels_behind_magnitude_are_told_apart_on_likely_images(data_folder):
    """Where any image may do, a wrong label matches what is visible of these two better than the right one for a thousand evaluations and more."""
    images = lambda **chosen: make_spec("dataset", "fashion_mnist", {"path": str(data_folder / "fashion-mnist"), **chosen})
    model = make_spec("model", "lenet", {"activation": "sigmoid"})
    setting = Setting(images(count=2), model, make_spec("update", "gradient"), public=images(count=500, offset=200))
    lanes = [Lane(0, sample, make_spec("metric", "magnitude"), make_spec("selector", "global_top"), 0.8) for sample in range(2)]
    ran = run_lanes(setting, make_spec("attack", "idlg", {"num_steps": 1, "evaluations_per_step": 1}), lanes)
    assert [one.measures["label_correct"] for one in ran.found] == [1, 1]
    # Two labels are left, so it took two trials.
    assert [one.measures["num_evaluations"] for one in ran.found] == [401, 401]


def test_no_label_is_tried_where_nothing_but_zeros_is_visible():
    """A relu network's gradient has enough of them to fill what 90 % by magnitude leave."""
    setting = Setting(make_spec("dataset", "digits", {"count": 2}), make_spec("model", "mlp"), make_spec("update", "gradient"))
    lanes = [Lane(0, sample, make_spec("metric", "magnitude"), make_spec("selector", "global_top"), 0.9) for sample in range(2)]
    assert not any(
        np.asarray(leaf)[~np.asarray(m)].any()
        for leaf, m in zip(jax.tree.leaves(setting.sent(0, 0, 0).grads), jax.tree.leaves(setting.mask(lanes[0])), strict=True)
    )
    ran = run_lanes(setting, make_spec("attack", "idlg", {"num_steps": 1, "evaluations_per_step": 1}), lanes)
    assert [one.measures["num_evaluations"] for one in ran.found] == [1, 1]
