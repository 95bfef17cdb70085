"""Intervals of means over samples and weight draws, and tests between metrics on the same cells.

Two cells of one sample share the sample and two of one seed share the weights, so neither pair is independent; nothing here imports JAX.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import numpy.typing as npt
import pandas as pd


def two_way_interval(cells: pd.DataFrame, column: str, *, num_resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Computes a bootstrap interval of a mean over both samples and seeds: each draw takes as many of each, with replacement, and every cell they share.

    With many of both it does not understate the variance of the mean (Owen 2007, owen2007pigeonhole), unlike a bootstrap over cells or over one of the two.
    With few it does: where weights matter most, the 95 % interval of 3 seeds covers the mean in about 70 % of cases, and one seed speaks of that seed alone.

    Args:
      cells: a table with the columns `sample` and `seed`.
      column: the column whose mean is meant; NaN counts as missing.
      num_resamples: number of draws.
      level: two-sided confidence level.

    Returns:
      The ends; NaN where there is only one sample.
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


def upper_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """Returns the upper end of the exact one-sided interval of a share (Clopper and Pearson 1934, clopper1934use); 1 where nothing was tried.

    >>> round(upper_bound(0, 59), 3), round(upper_bound(0, 73), 3)
    (0.05, 0.04)
    """
    from scipy.stats import beta

    return 1.0 if successes >= trials else float(beta.ppf(level, successes + 1, trials - successes))


@functools.lru_cache(maxsize=4096)
def evidence_above(successes: int, trials: int, rate: float) -> float:
    """Returns the evidence for a success rate above `rate`: a betting capital that starts at 1 and is not expected to grow where the rate is not above it.

    It is the likelihood ratio of all larger rates, weighted equally, against `rate` itself: whoever stops when it passes 1 / error is wrong with a probability
    of at most `error`, however often they have looked (Ville's inequality; Ramdas et al. 2023, ramdas2023game).

    >>> round(evidence_above(2, 2, 0.05)), round(evidence_above(0, 0, 0.05), 6)
    (140, 1.0)
    """
    from scipy.special import betaln
    from scipy.stats import beta

    shape = successes + 1, trials - successes + 1
    log_mixture = float(betaln(*shape)) + float(beta.logsf(rate, *shape)) - math.log1p(-rate)
    return math.exp(min(log_mixture - successes * math.log(rate) - (trials - successes) * math.log1p(-rate), 700.0))


def evidence_below(successes: int, trials: int, rate: float, expected: float) -> float:
    """Returns the evidence for a success rate below `rate`: the likelihood ratio of the expected rate against it (Wald 1945, wald1945sequential).

    >>> round(evidence_below(0, 86, 0.05, 0.005)), round(evidence_below(1, 136, 0.05, 0.005))
    (54, 52)
    """
    log = successes * math.log(expected / rate) + (trials - successes) * (math.log1p(-expected) - math.log1p(-rate))
    return math.exp(min(log, 700.0))


def cells_needed(rate: float, expected: float, error: float, successes: int = 0) -> int:
    """Returns how many cells, `successes` of them read, show that a success rate lies below `rate`, by `evidence_below`.

    >>> cells_needed(0.05, 0.005, 0.025), cells_needed(0.05, 0.005, 0.01875), cells_needed(0.05, 0.005, 0.01875, 1)
    (80, 86, 137)
    """
    each = math.log1p(-expected) - math.log1p(-rate)
    return successes + max(1, math.ceil((successes * math.log(rate / expected) - math.log(error)) / each))


def anytime_bound(successes: int, trials: int, rate: float, expected: float, error: float) -> float:
    """Returns the smallest bound that cells show for a success rate, wherever they stopped, if `rate` and `expected` were chosen before; 1 where there is none.

    For each candidate bound the expected rate is the same share of it as `expected` is of `rate`.
    """
    from scipy.optimize import brentq

    short = lambda candidate: math.log(evidence_below(successes, trials, candidate, candidate * expected / rate)) + math.log(error)
    most = 1 - 1e-9
    return 1.0 if trials == 0 or short(most) < 0 else float(brentq(short, max(successes / trials, 1e-9), most))


def paired(records: pd.DataFrame, by: str = "curve", column: str = "success") -> pd.DataFrame:
    """Compares every pair of metrics, say, on the cells that they share: McNemar's exact test (mcnemar1947note), corrected for the number of pairs.

    A pair of cells that agree says nothing about which metric is better, so the test is whether those that differ go one way more often than a coin would.

    Args:
      records: cells of one attack and ratio, with `sample` and `seed`.
      by: the column of what is compared.
      column: a column of bool.

    Returns:
      Columns `first`, `second`, `only_first` and `only_second` (cells where it holds for one alone), `num_pairs`, `p` and `p_corrected` (Holm 1979,
      holm1979simple).
    """
    from scipy.stats import binomtest

    grid = records.astype({column: bool}).pivot_table(index=["sample", "seed"], columns=by, values=column, aggfunc="any")
    rows = []
    for first, second in itertools.combinations(grid.columns, 2):
        both = grid[[first, second]].dropna().astype(bool)
        only_first, only_second = int((both[first] & ~both[second]).sum()), int((~both[first] & both[second]).sum())
        p = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
        rows.append({"first": first, "second": second, "only_first": only_first, "only_second": only_second, "num_pairs": len(both), "p": p})
    table = pd.DataFrame(rows, columns=["first", "second", "only_first", "only_second", "num_pairs", "p"])
    # Holm: the smallest p counts for all pairs, the next for one pair less, and none falls below one before it.
    order = np.argsort(table["p"].to_numpy(float), kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(table["p"].to_numpy(float)[order] * (len(table) - np.arange(len(table)))))
    corrected = np.empty(len(table))
    corrected[order] = stepped
    return table.assign(p_corrected=corrected)
