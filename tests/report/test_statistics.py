"""Intervals against what is known of the variance of a mean over two crossed factors."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from selgrad.report.statistics import paired, two_way_interval, upper_bound


def crossed(samples, seeds, by_sample, by_seed, noise, draw=0):
    rng = np.random.default_rng(draw)
    value = by_sample * rng.normal(size=(samples, 1)) + by_seed * rng.normal(size=(1, seeds)) + noise * rng.normal(size=(samples, seeds))
    sample, seed = np.meshgrid(np.arange(samples), np.arange(seeds), indexing="ij")
    return pd.DataFrame({"sample": sample.ravel(), "seed": seed.ravel(), "psnr": value.ravel()})


@pytest.mark.parametrize(("by_sample", "by_seed", "noise"), [(1, 0, 0), (0, 1, 0), (1, 1, 0.3)])
def test_it_is_as_wide_as_the_means_standard_error(by_sample, by_seed, noise):
    widths = [np.diff(two_way_interval(crossed(40, 30, by_sample, by_seed, noise, draw), "psnr"))[0] for draw in range(10)]
    expected = 2 * 1.96 * np.sqrt(by_sample**2 / 40 + by_seed**2 / 30 + noise**2 / 1200)
    assert 0.85 < np.mean(widths) / expected < 1.15


def test_missing_cells_are_left_out_and_one_sample_says_nothing_of_others():
    table = crossed(10, 3, 1, 0, 0)
    table.loc[table.index[:4], "psnr"] = np.nan
    low, high = two_way_interval(table, "psnr")
    assert low < table["psnr"].mean() < high
    assert np.isnan(two_way_interval(table[table["sample"] == 5], "psnr")).all()


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 20), (72, 73)])
def test_the_bound_is_scipys(successes, trials):
    expected = scipy.stats.binomtest(successes, trials, alternative="less").proportion_ci(0.95, method="exact").high
    assert upper_bound(successes, trials) == pytest.approx(expected) and upper_bound(5, 5) == 1 == upper_bound(0, 0)


def cells(**columns):
    """One curve a keyword, its successes by sample."""
    rows = [{"curve": curve, "sample": sample, "seed": 0, "success": won} for curve, found in columns.items() for sample, won in enumerate(found)]
    return pd.DataFrame(rows)


def test_pairs_are_tested_on_the_cells_that_differ():
    table = paired(cells(a=[True] * 9 + [False] * 5, b=[False] * 8 + [True] * 2 + [False] * 4, c=[False] * 10))
    row = table.set_index(["first", "second"]).loc[("a", "b")]
    assert (row["only_first"], row["only_second"], row["num_pairs"]) == (8, 1, 14)
    # McNemar's exact test: a coin thrown nine times, eight or more of one kind.
    assert row["p"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert table.set_index(["first", "second"]).loc[("a", "c"), "num_pairs"] == 10
    p = table["p"].to_numpy()
    order = np.argsort(p)
    expected = np.minimum(1, np.maximum.accumulate(p[order] * [3, 2, 1]))
    np.testing.assert_allclose(table["p_corrected"].to_numpy()[order], expected)
    assert (paired(cells(a=[True, True], b=[True, True]))["p"] == 1).all()
