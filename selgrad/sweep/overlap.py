"""The similarity of two metrics' masks, by leaf and for the whole tree.

Two metrics whose masks are the same are one metric under two names, and tables say so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad import trees
from selgrad.config import SweepConfig
from selgrad.experiment import Setting
from selgrad.topk import counts

COLUMNS = ("setting", "title", "selector", "ratio", "metric_a", "metric_b", "leaf", "jaccard", "identical")


def overlap(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], sizes: Sequence[int]) -> tuple[Any, Any]:
    """Counts the entries in both masks and in either, by sample: (samples, 1 + leaves), the whole tree first.

    Args:
      a, b: masks, (samples, ceil(n / 8)), as `numpy.packbits` returns them.
      sizes: sizes of the leaves.
    """

    def by_leaf(packed: npt.NDArray[np.uint8]) -> Any:
        per_leaf = np.stack([counts(row, sizes) for row in packed])
        return np.concatenate([per_leaf.sum(axis=1, keepdims=True), per_leaf], axis=1)

    return by_leaf(a & b), by_leaf(a | b)


def equivalence(config: SweepConfig, settings: Iterable[tuple[int, Setting]]) -> pd.DataFrame:
    """Measures how similar the masks of every two metrics are.

    Args:
      config: the axes.
      settings: each setting with its index.

    Returns:
      Columns `setting`, `title`, `selector`, `ratio`, `metric_a`, `metric_b`, `leaf` ("" for the whole tree), `jaccard` (mean over samples and seeds; NaN
      where neither mask has an entry of the leaf) and `identical` (whether the masks are the same for every sample and seed).
    """
    rows = []
    for index, setting in settings:
        for selector, (a, b) in itertools.product(config.selector, itertools.combinations(config.metric, 2)):
            names, sizes = ["", *trees.paths(setting.shapes)], [math.prod(leaf.shape) for leaf in jax.tree.leaves(setting.shapes)]
            for ratio in [ratio for ratio in config.ratio if 0 < ratio < 1]:
                pages = list(itertools.product(config.seeds, range(setting.num_pages)))
                masks = [(setting.masks(a, selector, seed, ratio, page), setting.masks(b, selector, seed, ratio, page)) for seed, page in pages]
                both, either = (np.concatenate(parts) for parts in zip(*(overlap(mine, theirs, sizes) for mine, theirs in masks), strict=True))
                for j, leaf in enumerate(names):
                    occurs = either[:, j] > 0
                    rows.append(
                        {
                            "setting": index, "title": setting.title, "selector": selector.label, "ratio": ratio, "metric_a": a.label,
                            "metric_b": b.label, "leaf": leaf, "jaccard": float((both[occurs, j] / either[occurs, j]).mean()) if occurs.any() else math.nan,
                            "identical": bool((both[:, j] == either[:, j]).all()),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
