"""Intervals against what is known of the variance of a mean over two crossed factors."""

import numpy as np
import pandas as pd
import pytest

from selgrad.report.statistics import two_way_interval


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
