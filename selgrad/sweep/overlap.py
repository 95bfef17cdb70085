"""How alike the masks of two metrics are, by leaf and for the whole tree.

Two metrics whose masks are the same are one metric under two names, which tables then say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pandas as pd

from selgrad import trees
from selgrad.config import SweepConfig
from selgrad.experiment import Setting

COLUMNS = ("setting", "title", "selector", "ratio", "metric_a", "metric_b", "leaf", "jaccard", "identical")


def overlap(a: Any, b: Any, counts: tuple[int, ...]) -> tuple[Any, Any]:
    """Entries in both masks and in either, for each number of selected entries: (counts, samples, 1 + leaves), the whole tree first.

    Args:
      a, b: ranks, a leading axis (samples,) on each leaf.
      counts: of selected entries.
    """
    both, either = [], []
    for count in counts:
        pairs = [(np.asarray(x) < count, np.asarray(y) < count) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
        sums = [[op(x, y).reshape(len(x), -1).sum(axis=1) for x, y in pairs] for op in (np.logical_and, np.logical_or)]
        shared, whole = (np.stack([np.sum(part, axis=0), *part], axis=1) for part in sums)
        both.append(shared)
        either.append(whole)
    return np.asarray(both), np.asarray(either)


def equivalence(config: SweepConfig, settings: Iterable[tuple[int, Setting]]) -> pd.DataFrame:
    """How alike the masks of every two metrics are.

    Args:
      config: the axes.
      settings: each with its index.

    Returns:
      Columns `setting`, `title`, `selector`, `ratio`, `metric_a`, `metric_b`, `leaf` ("" for the whole tree), `jaccard` (mean over samples and seeds; NaN
      where neither mask has an entry of the leaf) and `identical` (whether the masks are the same for every sample and seed).
    """
    rows = []
    for index, setting in settings:
        for selector, (a, b) in itertools.product(config.selector, itertools.combinations(config.metric, 2)):
            counts = {ratio: setting.num_selected(ratio) for ratio in config.ratio if 0 < ratio < 1}
            found = [overlap(setting.ranks(a, selector, seed)[0], setting.ranks(b, selector, seed)[0], tuple(counts.values())) for seed in config.seeds]
            names = ["", *trees.paths(setting.ranks(a, selector, config.seeds[0])[0])]
            for k, ratio in enumerate(counts):
                both, either = (np.concatenate([part[which][k] for part in found]) for which in (0, 1))
                for j, leaf in enumerate(names):
                    seen = either[:, j] > 0
                    rows.append(
                        {
                            "setting": index, "title": setting.title, "selector": selector.label, "ratio": ratio, "metric_a": a.label,
                            "metric_b": b.label, "leaf": leaf, "jaccard": float((both[seen, j] / either[seen, j]).mean()) if seen.any() else math.nan,
                            "identical": bool((both[:, j] == either[:, j]).all()),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
