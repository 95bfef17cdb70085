"""Certificates against singular values, simulated estimators and properties that must hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad.evaluation.certificates import certify, float32_noise, gaussian_prior, grams, van_trees

RNG = np.random.default_rng(0)
N, D = 60, 7
J, G, RANKS = RNG.normal(size=(N, D)) * np.geomspace(1, 1e-3, D), RNG.normal(size=N), RNG.permutation(N)


def certified(counts, jacobian=J, noise=1e-2, prior=4.0):
    return certify(jacobian, G, RANKS, counts, noise=noise, prior=prior)


@pytest.mark.parametrize("count", [0, 20, 50])
def test_rank_singular_values_and_determinant_are_those_of_the_visible_rows(count):
    found = certified([count])[0]
    singular = np.linalg.svd(J[count <= RANKS], compute_uv=False)
    assert found.rank == np.linalg.matrix_rank(J[count <= RANKS]) == D
    assert found.sigma_min == pytest.approx(singular[-1], rel=1e-6) and found.sigma_max == pytest.approx(singular[0])
    assert found.log_det == pytest.approx(2 * np.log(singular).sum(), rel=1e-8)
    assert found.condition == pytest.approx(np.linalg.cond(J[count <= RANKS]), rel=1e-6)


def test_fewer_visible_entries_than_inputs_have_no_full_rank():
    few, none = certified([N - 3, N])
    assert (few.rank, few.sigma_min, few.log_det, few.condition) == (3, 0.0, -math.inf, math.inf)
    assert "4 of 7 input directions leave no trace" in few.verdict
    assert none.rank == 0 and none.posterior_mse == pytest.approx(1 / 4) and "nothing is visible" in none.verdict


def test_posterior_mse_is_what_the_best_linear_attacker_reaches():
    """100,000 draws from the prior, their noisy visible entries, and the posterior mean."""
    count, noise, prior = 30, 0.3, 4.0
    visible = J[count <= RANKS]
    x = RNG.normal(size=(100_000, D)) / np.sqrt(prior)
    y = x @ visible.T + noise * RNG.normal(size=(100_000, len(visible)))
    estimate = y @ np.linalg.solve(visible.T @ visible / noise**2 + prior * np.eye(D), visible.T / noise**2).T
    assert certified([count], noise=noise, prior=prior)[0].posterior_mse == pytest.approx(((estimate - x) ** 2).mean(), rel=0.01)


def test_van_trees_bounds_the_posterior_mean_averaged_over_jacobians():
    information = [np.diag(RNG.uniform(0, 100, D)) for _ in range(50)]
    each = np.mean([np.trace(np.linalg.inv(i + 4 * np.eye(D))) / D for i in information])
    assert van_trees(information, 4.0) <= each
    assert van_trees(information[:1], 4 * np.eye(D)) == pytest.approx(np.trace(np.linalg.inv(information[0] + 4 * np.eye(D))) / D)


def test_influence_is_the_least_squares_shift_and_above_its_bound():
    for found, count in zip(certified([5, 30]), (5, 30), strict=True):
        hidden = np.where(count > RANKS, G, 0)
        shift = 1e-3 * np.trace(J.T @ J) / D
        stacked = np.concatenate([J, np.sqrt(shift) * np.eye(D)])
        moved = np.linalg.lstsq(stacked, np.concatenate([hidden, np.zeros(D)]), rcond=None)[0]
        assert found.influence_mse == pytest.approx((moved**2).mean(), rel=1e-6)
        assert 0 < found.influence_bound <= found.influence_mse


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, N), min_size=2, max_size=5, unique=True))
def test_hiding_more_never_helps_the_attacker(seed, counts):
    """m inside m' implies every certificate of the mask-aware attacker is at least as bad for it."""
    rng = np.random.default_rng(seed)
    ranks = rng.permutation(N)
    found = certify(J, G, ranks, sorted(counts), noise=rng.uniform(0.01, 1, N), prior=1.0)
    for less, more in zip(found[:-1], found[1:], strict=True):
        assert more.posterior_mse >= less.posterior_mse * (1 - 1e-9)
        assert more.rank <= less.rank and more.identified <= less.identified
        assert more.log_det <= less.log_det + 1e-9 and more.sigma_min <= less.sigma_min * (1 + 1e-6) + 1e-12


def test_grams_of_nested_masks_are_sums_over_visible_rows():
    weights = RNG.uniform(1, 2, N)
    for count, found in zip([0, 10, 60], grams(J, RANKS, [0, 10, 60], weights), strict=True):
        rows = count <= RANKS
        np.testing.assert_allclose(found, J[rows].T @ (J[rows] * weights[rows, None]), atol=1e-12)


def test_float32_noise_is_what_rounding_leaves():
    values = RNG.normal(size=200_000)
    rounding = np.asarray(values, np.float32).astype(np.float64) - values
    assert 0.5 < rounding.std() / np.sqrt((float32_noise([values]) ** 2).mean()) < 1
    small = float32_noise([np.asarray([1.0, 1e-12])])
    assert small[1] == pytest.approx(2**-24 / np.sqrt(3) * np.sqrt(0.5)), "a small entry carries the rounding of its leaf"


def test_gaussian_prior_is_the_inverse_of_a_shrunk_covariance():
    x = RNG.normal(size=(5000, 3)) @ np.diag([1.0, 2.0, 3.0])
    covariance = np.linalg.inv(gaussian_prior(x, shrinkage=0.5))
    assert np.diag(covariance) == pytest.approx([0.5 * v + 0.5 * 14 / 3 for v in (1, 4, 9)], rel=0.1)
    assert np.isfinite(gaussian_prior(x[:2])).all()


def test_data_of_two_points_are_read_better_than_a_gaussian_of_their_variance():
    """-1 and 1 have variance 1, and noise of 0.5 tells them apart better than it tells the draws of a Gaussian of that variance."""
    rng = np.random.default_rng(1)
    noise, truth = 0.5, rng.choice([-1.0, 1.0], 100_000)
    seen = truth + noise * rng.normal(size=truth.size)
    bound = van_trees([np.eye(1) / noise**2], 1.0)
    linear, best = seen / (1 + noise**2), np.tanh(seen / noise**2)
    assert bound == pytest.approx(0.2) and ((linear - truth) ** 2).mean() == pytest.approx(bound, rel=0.02)
    assert ((best - truth) ** 2).mean() < bound / 2
