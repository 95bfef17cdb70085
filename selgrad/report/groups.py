"""Groups of cells that share one configuration, and their description in flat scalars: what a dashboard filters by, and what it compares.

A group is the cells of one data set, model, update, protection, metric, selector, ratio and attack (with what it makes of encrypted entries): averages are
taken over samples and seeds. All of it comes from record files; nothing here imports JAX.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from selgrad import measures
from selgrad.measures import LEVELS
from selgrad.report.tables import SETTING, metric_label, setting_title, share_interval
from selgrad.report.verdicts import OUTCOMES, with_outcomes

KINDS = ("dataset", "model", "update", "protection", "metric", "selector", "attack")
"""The kinds of component that a cell is made of, each with a name and arguments."""

COLUMNS = [*(f"{kind}{ending}" for kind in KINDS for ending in ("", "_arguments")), "ratio"]
"""The columns of the records in which the cells of a group agree and two groups differ."""

_MEANS = (
    "label_correct", "moved", "converged", "better_than_prior", "num_selected", "num_total", "num_visible", "visible_per_unknown", "plain_bytes",
    "num_ciphertexts", "ciphertext_bytes", "index_bytes",
    "score_seconds", "mask_seconds", "encrypt_seconds", "add_seconds", "decrypt_seconds", "attack_seconds",
)  # fmt: skip


Key = tuple[Any, ...]
"""A group's values of `COLUMNS`."""


class Groups:
    """Collects groups as they become complete while a sweep runs.

    What a cell says about a defence (`outcome`) depends on what the same attack does with nothing encrypted, so a group is complete once those cells are too.

    Args:
      sizes: how many cells each group has in the end.
    """

    def __init__(self, sizes: Mapping[Key, int]) -> None:
        self._left = dict(sizes)
        self._cells: dict[Key, list[pd.DataFrame]] = defaultdict(list)
        self._plain: dict[Key, list[Key]] = defaultdict(list)
        self._waiting = dict.fromkeys(sizes)
        for key in sizes:
            if key[-1] == 0:
                self._plain[_attacked(key)].append(key)

    def add(self, records: pd.DataFrame) -> Iterator[tuple[Key, pd.DataFrame]]:
        """Takes finished cells and yields the groups that are now complete, with the column `outcome`."""
        for key, cells in records.groupby(COLUMNS, sort=False, observed=True):
            if key in self._left:
                self._cells[key].append(cells)
                self._left[key] -= len(cells)
        for key in list(self._waiting):
            needed = [key, *(other for other in self._plain[_attacked(key)] if other != key)]
            if all(self._left[other] <= 0 for other in needed):
                del self._waiting[key]
                own, *others = (pd.concat(self._cells[other], ignore_index=True) for other in needed)
                yield key, judged(own, others)


def judged(cells: pd.DataFrame, others: Iterable[pd.DataFrame] = ()) -> pd.DataFrame:
    """Returns the cells with the column `outcome`, or as they are where the attack was not tried with nothing encrypted and nothing is known.

    Args:
      cells: to be judged.
      others: further cells of the same attacks on the same samples, among them those with nothing encrypted.
    """
    together = pd.concat([cells, *others], ignore_index=True)
    return with_outcomes(together).iloc[: len(cells)] if (together["ratio"] == 0).any() else cells


def _attacked(key: Key) -> Key:
    """Returns what groups with one attack on one setting have in common: everything but metric, selector and ratio."""
    own = {COLUMNS.index(name) for name in COLUMNS if name.startswith(("metric", "selector")) or name == "ratio"}
    return tuple(value for i, value in enumerate(key) if i not in own)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to dotted keys, with lists as text, since a dashboard neither filters nor groups by a list.

    >>> flat({"encryption": {"profile": "exact"}, "seeds": [0, 1]})
    {'encryption.profile': 'exact', 'seeds': '0, 1'}
    """
    flattened: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flattened[f"{prefix}{key}"] = ", ".join(part if isinstance(part, str) else json.dumps(part) for part in value)
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened


def description(cells: pd.DataFrame) -> dict[str, Any]:
    """Returns what the cells of a group have in common, flattened: `metric`, `metric.target`, `ratio`, `rung` and so on."""
    first = cells.iloc[0]
    described: dict[str, Any] = {}
    for kind in KINDS:
        described[kind] = str(first[kind])
        described |= flat(json.loads(first[f"{kind}_arguments"]), f"{kind}.")
    described |= {"rung": str(first["hidden"]), "ratio": float(first["ratio"])}
    for name, plain in {"known_labels": bool, "known_padding": bool, "num_rounds": int, "embedding": str, "success_rule": str, "suite": str}.items():
        if name in cells and pd.notna(first[name]):
            described[name] = plain(first[name])
    return described


def sizes_of(records: pd.DataFrame) -> dict[Key, int]:
    """Counts the cells of each group in the records."""
    return {key: int(count) for key, count in records.groupby(COLUMNS, sort=False, observed=True).size().items()}


def shown_as(cells: pd.DataFrame) -> dict[str, Any]:
    """Returns the titles under which reconstructions of a group are kept (`selgrad.report.gallery`)."""
    first = cells.iloc[0]
    return {
        "title": setting_title(cells.head(1)).iloc[0],
        **{kind: str(first[f"{kind}_label"]) for kind in ("metric", "selector", "attack")},
        "ratio": float(first["ratio"]),
    }


def title(cells: pd.DataFrame) -> str:
    """Returns a short name of a group, such as `magnitude 10 %, idlg, ignore`."""
    first = cells.iloc[0]
    parts = [f"{first['metric_label']} {100 * first['ratio']:g} %", str(first["attack"]), str(first["hidden"])]
    return ", ".join([*parts, *([str(first["protection_label"])] if first["protection_label"] != "none" else [])])


def common_description(cells: pd.DataFrame) -> dict[str, Any]:
    """Returns those entries of `description` in which all groups of the records agree."""
    descriptions = [description(group) for _, group in cells.groupby(COLUMNS, sort=False, observed=True)]
    return {key: value for key, value in descriptions[0].items() if all(key in other and other[key] == value for other in descriptions)}


def curves(cells: pd.DataFrame) -> Iterator[dict[str, float]]:
    """Yields, for each ratio in ascending order, the scalars of `summary` of every curve, such as `success/magnitude`, and the `ratio` itself.

    A curve is a metric, with the selector, the attack's rung and the setting where the records hold several.
    """
    table = judged(cells)
    names = metric_label(table)
    for column in (*SETTING, "attack_label"):
        if column in table and table[column].nunique() > 1:
            names = table[column].astype(str) + " / " + names
    for ratio, at_ratio in table.assign(curve=names).groupby("ratio", sort=True):
        scalars = {"ratio": float(ratio)}
        for curve, group in at_ratio.groupby("curve", sort=True):
            scalars |= {f"{name}/{curve}": value for name, value in summary(group).items()}
        yield scalars


def summary(cells: pd.DataFrame) -> dict[str, float]:
    """Returns a group's scalars: mean measures and costs, the share of inputs read with its 95 % Wilson interval, and the share of each level and outcome."""
    count, won = len(cells), int(cells["success"].sum())
    low, high = share_interval(cells, "success")
    scalars: dict[str, float] = {"num_cells": count, "success": won / count, "success_low": low, "success_high": high}
    kept = [measure.name for measure in measures.held(cells, lambda measure: measure.summary)]
    for name in dict.fromkeys([*kept, *_MEANS]):
        if name in cells and cells[name].notna().any():
            scalars[name] = float(cells[name].astype(float).mean())
    if "ciphertext_bytes" in scalars and "plain_bytes" in scalars:
        scalars["sent_bytes"] = scalars["plain_bytes"] + scalars["ciphertext_bytes"] + scalars.get("index_bytes", 0.0)
    for i, level in enumerate(LEVELS[1:], 1):
        if "level" in cells:
            scalars[f"at_least.{level}"] = float(cells["level"].isin(LEVELS[i:]).mean())
    if "outcome" in cells:
        scalars |= {f"outcome.{outcome}": float((cells["outcome"] == outcome).mean()) for outcome in OUTCOMES}
    return scalars
