"""Intervals of means over samples and weight draws.

Two cells of one sample share the sample and two of one seed share the weights, so neither are independent; nothing here imports JAX.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd


def two_way_interval(cells: pd.DataFrame, column: str, *, num_resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """A bootstrap interval of a mean over both samples and seeds: each draw takes as many of either, with replacement, and every cell they share.

    Owen 2007 (owen2007pigeonhole): it never understates the variance of the mean, as a bootstrap over cells or over one of the two does.

    Args:
      cells: with the columns `sample` and `seed`.
      column: of which the mean is meant; NaN counts as not there.
      num_resamples: draws.
      level: of confidence, two-sided.

    Returns:
      The ends; NaN where there is one sample alone.
    """
    table = cells[["sample", "seed", column]].dropna()
    if table["sample"].nunique() < 2:
        return float("nan"), float("nan")
    grid = table.astype({column: float}).pivot_table(index="sample", columns="seed", values=column, aggfunc=["sum", "count"], fill_value=0)
    sums, counts = grid["sum"].to_numpy(float), grid["count"].to_numpy(float)
    generator = np.random.default_rng(0)

    def weights(size: int) -> npt.NDArray[np.int64]:
        return generator.multinomial(size, np.full(size, 1 / size), size=num_resamples)

    rows, columns = weights(sums.shape[0]), weights(sums.shape[1])
    total, number = (np.einsum("ns,sk,nk->n", rows, part, columns) for part in (sums, counts))
    low, high = np.quantile(total[number > 0] / number[number > 0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
