"""Groups of cells, each of one configuration, and what can be said of one in flat scalars: what a dashboard filters by, and what it compares.

A group is the cells of one data set, model, update, protection, metric, selector, ratio and attack (with what it makes of encrypted entries): samples and seeds
are what is averaged over. From record files alone; nothing here imports JAX.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from selgrad import measures
from selgrad.measures import LEVELS
from selgrad.report.tables import wilson
from selgrad.report.verdicts import with_outcomes

KINDS = ("dataset", "model", "update", "protection", "metric", "selector", "attack")
"""What a cell is made of, each with a name and arguments."""

COLUMNS = [*(f"{kind}{ending}" for kind in KINDS for ending in ("", "_arguments")), "ratio"]
"""Columns of the records in which the cells of a group agree, and two groups differ."""

_MEANS = (
    "label_correct", "moved", "converged", "better_than_prior", "num_selected", "num_total", "num_visible", "visible_per_unknown", "plain_bytes",
    "num_ciphertexts", "ciphertext_bytes", "index_bytes",
    "score_seconds", "mask_seconds", "encrypt_seconds", "add_seconds", "decrypt_seconds", "attack_seconds",
)  # fmt: skip


Key = tuple[Any, ...]
"""A group's values of `COLUMNS`."""


class Groups:
    """Groups as they become whole while a sweep runs.

    What a cell says of a defence (`outcome`) follows from what the same attack does with nothing encrypted, so a group is whole when those cells are there too.

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
        """Takes finished cells and gives the groups that are whole now, with the column `outcome`."""
        for key, cells in records.groupby(COLUMNS, sort=False, observed=True):
            if key in self._left:
                self._cells[key].append(cells)
                self._left[key] -= len(cells)
        for key in list(self._waiting):
            needed = [key, *(other for other in self._plain[_attacked(key)] if other != key)]
            if all(self._left[other] <= 0 for other in needed):
                del self._waiting[key]
                count = sum(map(len, self._cells[key]))
                yield key, with_outcomes(pd.concat([cells for other in needed for cells in self._cells[other]], ignore_index=True)).iloc[:count]


def _attacked(key: Key) -> Key:
    """What groups with one attack on one setting have in common: everything but metric, selector and ratio."""
    own = {COLUMNS.index(name) for name in COLUMNS if name.startswith(("metric", "selector")) or name == "ratio"}
    return tuple(value for at, value in enumerate(key) if at not in own)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys, and lists as text, since a dashboard neither filters nor groups by a list.

    >>> flat({"encryption": {"profile": "exact"}, "seeds": [0, 1]})
    {'encryption.profile': 'exact', 'seeds': '0, 1'}
    """
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            found[f"{prefix}{key}"] = ", ".join(part if isinstance(part, str) else json.dumps(part) for part in value)
        else:
            found[f"{prefix}{key}"] = value
    return found


def description(cells: pd.DataFrame) -> dict[str, Any]:
    """What the cells of a group have in common, flat: `metric`, `metric.target`, `ratio`, `rung` and so on."""
    first = cells.iloc[0]
    found: dict[str, Any] = {}
    for kind in KINDS:
        found[kind] = str(first[kind])
        found |= flat(json.loads(first[f"{kind}_arguments"]), f"{kind}.")
    found |= {"rung": str(first["hidden"]), "ratio": float(first["ratio"])}
    for name, plain in {"known_labels": bool, "known_padding": bool, "num_rounds": int, "embedding": str, "success_rule": str, "suite": str}.items():
        if name in cells and pd.notna(first[name]):
            found[name] = plain(first[name])
    return found


def sizes_of(records: pd.DataFrame) -> dict[Key, int]:
    """How many cells each group has that there is."""
    return {key: int(count) for key, count in records.groupby(COLUMNS, sort=False, observed=True).size().items()}


def shown_as(cells: pd.DataFrame) -> dict[str, Any]:
    """The titles that kept reconstructions of a group have (`selgrad.report.gallery`)."""
    first = cells.iloc[0]
    names = [str(first[f"{kind}_label"]) for kind in KINDS[: 4 if first["protection_label"] != "none" else 3]]
    return {"title": " / ".join(names), **{kind: str(first[f"{kind}_label"]) for kind in ("metric", "selector", "attack")}, "ratio": float(first["ratio"])}


def title(cells: pd.DataFrame) -> str:
    """A short name of a group, such as `magnitude 10 %, idlg, ignore`."""
    first = cells.iloc[0]
    parts = [f"{first['metric_label']} {100 * first['ratio']:g} %", str(first["attack"]), str(first["hidden"])]
    return ", ".join([*parts, *([str(first["protection_label"])] if first["protection_label"] != "none" else [])])


def summary(cells: pd.DataFrame) -> dict[str, float]:
    """Scalars of a group: means of measures and costs, the share of inputs that were read with its 95 % Wilson interval, and of each outcome and level."""
    count, won = len(cells), int(cells["success"].sum())
    low, high = wilson(won, count)
    found: dict[str, float] = {"num_cells": count, "success": won / count, "success_low": low, "success_high": high}
    kept = [one.name for one in measures.held(cells, lambda measure: measure.summary)]
    for name in dict.fromkeys([*kept, *_MEANS]):
        if name in cells and cells[name].notna().any():
            found[name] = float(cells[name].astype(float).mean())
    if "ciphertext_bytes" in found and "plain_bytes" in found:
        found["sent_bytes"] = found["plain_bytes"] + found["ciphertext_bytes"] + found.get("index_bytes", 0.0)
    for at, level in enumerate(LEVELS[1:], 1):
        if "level" in cells:
            found[f"at_least.{level}"] = float(cells["level"].isin(LEVELS[at:]).mean())
    for outcome, share in cells["outcome"].value_counts(normalize=True).items():
        found[f"outcome.{outcome}"] = float(share)
    return found
