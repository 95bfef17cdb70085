"""Intervals of means over samples and weight draws, and tests between metrics on the same ones.

Two cells of one sample share the sample and two of one seed share the weights, so neither are independent; nothing here imports JAX.
"""

from __future__ import annotations

import functools
import itertools
import math

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


def upper_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """The upper end of the exact one-sided interval of a share (Clopper and Pearson 1934, clopper1934use); 1 where nothing was tried.

    >>> round(upper_bound(0, 59), 3), round(upper_bound(0, 73), 3)
    (0.05, 0.04)
    """
    from scipy.stats import beta

    return 1.0 if successes >= trials else float(beta.ppf(level, successes + 1, trials - successes))


@functools.lru_cache(maxsize=4096)
def evidence_above(successes: int, trials: int, rate: float) -> float:
    """By how much cells speak for a success rate above `rate`: a betting capital that starts at 1 and is not expected to grow where it is not so.

    The likelihood ratio of all larger rates, weighed alike, against `rate` itself: whoever stops when it passes 1 / error is wrong with a probability of at
    most `error`, however often they have looked (Ville's inequality; Ramdas et al. 2023, ramdas2023game).

    >>> round(evidence_above(2, 2, 0.05)), round(evidence_above(0, 0, 0.05), 6)
    (140, 1.0)
    """
    from scipy.special import betaln
    from scipy.stats import beta

    shape = successes + 1, trials - successes + 1
    log_mixture = float(betaln(*shape)) + float(beta.logsf(rate, *shape)) - math.log1p(-rate)
    return math.exp(min(log_mixture - successes * math.log(rate) - (trials - successes) * math.log1p(-rate), 700.0))


def evidence_below(successes: int, trials: int, rate: float, expected: float) -> float:
    """The same for a success rate below `rate`: the likelihood ratio of the rate that one expects against it (Wald 1945, wald1945sequential).

    >>> round(evidence_below(0, 86, 0.05, 0.005)), round(evidence_below(1, 136, 0.05, 0.005))
    (54, 52)
    """
    log = successes * math.log(expected / rate) + (trials - successes) * (math.log1p(-expected) - math.log1p(-rate))
    return math.exp(min(log, 700.0))


def cells_needed(rate: float, expected: float, error: float, successes: int = 0) -> int:
    """How many cells with so many successes show that a success rate lies below `rate`, by `evidence_below`.

    >>> cells_needed(0.05, 0.005, 0.025), cells_needed(0.05, 0.005, 0.01875), cells_needed(0.05, 0.005, 0.01875, 1)
    (80, 86, 137)
    """
    each = math.log1p(-expected) - math.log1p(-rate)
    return successes + max(1, math.ceil((successes * math.log(rate / expected) - math.log(error)) / each))


def anytime_bound(successes: int, trials: int, rate: float, expected: float, error: float) -> float:
    """The smallest rate below which cells show a success rate to lie, wherever they stopped, where `rate` and `expected` were chosen before; 1 where none is.

    What is expected of a rate is the same share of it.
    """
    from scipy.optimize import brentq

    short = lambda at: math.log(evidence_below(successes, trials, at, at * expected / rate)) + math.log(error)
    most = 1 - 1e-9
    return 1.0 if trials == 0 or short(most) < 0 else float(brentq(short, max(successes / trials, 1e-9), most))


def paired(records: pd.DataFrame, by: str = "curve", column: str = "success") -> pd.DataFrame:
    """Every pair of metrics, say, compared on the cells that they have in common: McNemar's exact test (mcnemar1947note), corrected for the number of pairs.

    A pair of cells that agree says nothing of which metric is better, so what is tested is whether those that differ go one way more often than a coin.

    Args:
      records: cells of one attack and ratio, with `sample` and `seed`.
      by: the column of what is compared.
      column: of bool.

    Returns:
      Columns `first`, `second`, `only_first` and `only_second` (cells where it holds for one alone), `num_pairs`, `p` and `p_corrected` (Holm 1979,
      holm1979simple).
    """
    from scipy.stats import binomtest

    grid = records.astype({column: bool}).pivot_table(index=["sample", "seed"], columns=by, values=column, aggfunc="any")
    rows = []
    for first, second in itertools.combinations(grid.columns, 2):
        both = grid[[first, second]].dropna().astype(bool)
        one, other = int((both[first] & ~both[second]).sum()), int((~both[first] & both[second]).sum())
        p = float(binomtest(one, one + other).pvalue) if one + other else 1.0
        rows.append({"first": first, "second": second, "only_first": one, "only_second": other, "num_pairs": len(both), "p": p})
    table = pd.DataFrame(rows, columns=["first", "second", "only_first", "only_second", "num_pairs", "p"])
    # Holm: the smallest p counts for all pairs, the next for one pair less, and none falls below one before it.
    order = np.argsort(table["p"].to_numpy(float), kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(table["p"].to_numpy(float)[order] * (len(table) - np.arange(len(table)))))
    corrected = np.empty(len(table))
    corrected[order] = stepped
    return table.assign(p_corrected=corrected)
