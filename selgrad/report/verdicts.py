"""Verdicts: what each cell says about a defence, and the smallest ratio that stops each attack, with the strength of that evidence.

They are computed from record files alone; nothing here imports JAX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad.measures import LEVELS
from selgrad.report.tables import SETTING, dataset_label, protecting_places, wilson, with_labels

OUTCOMES = ("read", "attack failed", "unresolved", "protected")
"""What a cell can say about a defence, from bad to good for it; the middle two say nothing."""


def reached(records: pd.DataFrame, level: str) -> pd.DataFrame:
    """Returns the records with success redefined as reaching a level: whether an attack got at least that much of its input (`selgrad.measures.LEVELS`)."""
    enough = list(LEVELS[LEVELS.index(level) :])
    plain = records.drop(columns="outcome", errors="ignore")
    return plain.assign(success=records["level"].isin(enough), success_rule=f"level: {level}")


def with_outcomes(records: pd.DataFrame) -> pd.DataFrame:
    """Returns the records with the column `outcome`: what a cell says about the defence.

    `read`: the attack succeeded. `attack failed`: it failed, as it did on the same sample with nothing encrypted; a defence is never credited with that.
    `unresolved`: it succeeded there, and here it ended before it explained what is visible as well as the truth does, so a better search may succeed; or it was
    not tried there. `protected`: its result explains all that is visible as well as the truth does, and is not the truth; or nothing is visible. Records of
    versions that did not say whether attacks converged are unresolved at best.
    """
    if "outcome" in records:
        return records
    table = records if "converged" in records else records.assign(converged=False)
    success = table["success"].astype(bool)
    # With nothing encrypted all metrics and selectors are the same.
    cell = [name for name in (*SETTING, "dataset_arguments", "attack_label", "sample", "seed") if name in table]
    plain = table["ratio"] == 0
    works = success[plain].groupby([table.loc[plain, name] for name in cell], sort=False).any().rename("works").reset_index()
    works_plainly = table[cell].merge(works, how="left", on=cell)["works"].to_numpy()
    untried = pd.isna(works_plainly)
    failed = ~np.where(untried, True, works_plainly).astype(bool)
    ended = (table["converged"].astype(bool) & ~untried) | _nothing_visible(table)
    outcome = np.where(failed, "attack failed", np.where(ended, "protected", "unresolved"))
    return records.assign(outcome=np.where(success, "read", outcome))


_CELL = ("metric_label", "selector_label", "ratio", "sample", "seed")
_NEEDED = {*SETTING, "dataset_arguments", "attack", "attack_label", *_CELL, "level", "converged", "num_visible", "objective_at_truth"}
"""Columns that verdicts rest on."""


def _nothing_visible(table: pd.DataFrame) -> pd.Series:
    return table["num_visible"] == 0 if "num_visible" in table else table["ratio"] == 1


def worst_of(records: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each mask of each input: the outcome of the attack that got most, which is a suite's verdict.

    An input is read where any attack reads it. It is protected where none does and every attack with an objective that reads it with nothing encrypted has
    found another explanation of all that is visible, in one of its variants at least: a longer search does not tell that explanation from the truth, but a
    prior may, so one attack's explanation says nothing of another's. It is unresolved where one of them ended too early. An attack without an objective, such
    as one in closed form, explains at most a part of what is visible, and its failure protects nothing.

    Returns:
      Columns of the setting, `metric_label`, `selector_label`, `ratio`, `sample`, `seed`, `outcome`, and `by`: how many attacks read it.
    """
    table = with_outcomes(records)
    keys = [name for name in (*SETTING, "dataset_arguments", *_CELL) if name in table]
    attack = "attack" if "attack" in table else "attack_label"
    searches = (table["objective_at_truth"].notna() | _nothing_visible(table)) if "objective_at_truth" in table else pd.Series(True, index=table.index)
    outcome = table["outcome"]
    facts = table[[*keys, attack]].assign(
        read=outcome == "read", ended=(outcome == "protected") & searches, early=(outcome == "unresolved") & searches, works=outcome != "attack failed"
    )
    grouped = dict.fromkeys(("ended", "early", "works"), "any")
    attacks = facts.groupby([*keys, attack], sort=False, observed=True).agg({"read": "sum", **grouped}).reset_index()
    attacks["early"] &= ~attacks["ended"]
    worst = attacks.drop(columns=attack).groupby(keys, sort=False, observed=True).agg({"read": "sum", **grouped}).reset_index()
    said = np.select([worst["read"] > 0, worst["ended"] & ~worst["early"], worst["works"]], ["read", "protected", "unresolved"], "attack failed")
    return worst.assign(outcome=said, by=worst["read"]).drop(columns=["read", *grouped])


def worst_at(records: pd.DataFrame, level: str) -> pd.DataFrame:
    """Returns `worst_of` at a level; a mask that protects an input at a lower level protects it at every higher one.

    Where no attack recognises an input, although one that recognises it with nothing encrypted was searched to its end, the input is not read exactly either,
    whether or not any of them would read it exactly with nothing encrypted.
    """
    worst = worst_of(reached(records, level))
    for weaker in LEVELS[1 : LEVELS.index(level)]:
        implied = (worst_of(reached(records, weaker))["outcome"] == "protected") & (worst["outcome"] != "read")
        worst = worst.assign(outcome=worst["outcome"].where(~implied, "protected"))
    return worst


def setting_names(table: pd.DataFrame) -> list[str]:
    """Returns data set, model and update of each row, and its protection where several were tried."""
    parts_of = [dataset_label(table) if "dataset_arguments" in table else table["dataset_label"], table["model_label"], table["update_label"]]
    if "protection_label" in table and table["protection_label"].nunique() > 1:
        parts_of.append(table["protection_label"])
    return [" / ".join(map(str, names)) for names in zip(*parts_of, strict=True)]


def by_level(records: pd.DataFrame) -> pd.DataFrame:
    """Counts the inputs that the attacks read together, at each level, behind each mask.

    Returns:
      Columns `setting`, `metric`, `selector`, `ratio`, `level`, `read`, `num_cells` (of those on which an attack reaches the level with nothing encrypted),
      `unresolved` of these, and `upper`, of the 95 % Wilson interval of the share of inputs that are read, the unresolved counted as read.
    """
    parts = []
    narrow = records[[name for name in records.columns if name in _NEEDED]]
    for level in reversed(LEVELS[1:]):
        worst = worst_at(narrow, level)
        worst = worst.assign(setting=setting_names(worst))
        for (setting, metric, selector, ratio), cells in worst.groupby(["setting", "metric_label", "selector_label", "ratio"], sort=True):
            informative = cells[cells["outcome"] != "attack failed"]
            read, unresolved = int((informative["outcome"] == "read").sum()), int((informative["outcome"] == "unresolved").sum())
            counts = {"read": read, "num_cells": len(informative), "unresolved": unresolved, "upper": _upper(informative)}
            parts.append({"setting": setting, "metric": metric, "selector": selector, "ratio": ratio, "level": level, **counts})
    return pd.DataFrame(parts, columns=["setting", "metric", "selector", "ratio", "level", "read", "num_cells", "unresolved", "upper"])


def _upper(cells: pd.DataFrame) -> float:
    """Bounds the share of inputs that are read: an input with several seeds counts once, and one that is unresolved under any of them as read."""
    at_worst = cells["outcome"].isin(["read", "unresolved"]).groupby(cells["sample"]).any()
    return wilson(int(at_worst.sum()), len(at_worst))[1]


def protecting_by_level(records: pd.DataFrame, *, num_resamples: int = 1000) -> pd.DataFrame:
    """Finds the measured share of encrypted entries from which on the attacks together read no input, for each level and metric.

    The interval is a bootstrap over inputs: each draw takes as many with replacement and finds the share for them. An input that is not tried above the last
    share at which it is read is not known to be safe anywhere.

    Returns:
      Columns `setting`, `metric` (with the selector where there are several), `level`, `ratio`, `low`, `high` (inf where an input is still read at the largest
      share), `read_at` (the largest measured share at which one is read; NaN where none is), `num_inputs` (those on which an attack reaches the level with
      nothing encrypted), and `resolved`: whether no search ended too early from there on.
    """
    narrow, generator, rows = records[[name for name in records.columns if name in _NEEDED]], np.random.default_rng(0), []
    several = records["selector_label"].nunique() > 1
    for level in reversed(LEVELS[1:]):
        worst = worst_at(narrow, level)
        worst = worst[worst["outcome"] != "attack failed"]
        if worst.empty:
            continue
        worst = worst.assign(setting=setting_names(worst), metric=worst["metric_label"] + (" / " + worst["selector_label"] if several else ""))
        for (setting, metric), cells in worst.groupby(["setting", "metric"], sort=False):
            read = (
                cells.assign(read=cells["outcome"] == "read")
                .astype({"read": float})
                .pivot_table(index=["sample", "seed"], columns="ratio", values="read")
                .sort_index(axis=1)
            )
            ratios, places, low, high = protecting_places(read.groupby("sample").max(), generator, num_resamples)
            from_there = cells[cells["ratio"] >= ratios[places.max()]]
            rows.append(
                {
                    "setting": setting, "metric": metric, "level": level, "ratio": float(ratios[places.max()]), "low": low, "high": high,
                    "read_at": float(ratios[places.max() - 1]) if places.max() else math.nan, "num_inputs": len(places),
                    "resolved": not (from_there["outcome"] == "unresolved").any(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["setting", "metric", "level", "ratio", "low", "high", "read_at", "num_inputs", "resolved"])


def percent(bound: float) -> str:
    """Writes an upper bound in whole percent, rounded up.

    >>> percent(0.0542)
    '6%'
    """
    return f"{math.ceil(100 * bound - 1e-9)}%"


def level_cell(row: Any) -> tuple[str, str]:
    """Returns a row of `by_level` in words, and its outcome, by which a table colours it: "read", "unresolved", "protected" or "attack failed"."""
    if not row.num_cells:
        return "attacks fail", "attack failed"
    left = f", {row.unresolved} unresolved" if row.unresolved else ""
    kind = "read" if row.read else "unresolved" if row.unresolved else "protected"
    return f"{row.read} of {row.num_cells}{left} (≤ {percent(row.upper)})", kind


def contributions(records: pd.DataFrame) -> pd.DataFrame:
    """Returns what each attack of a suite adds: how many inputs it reads, how many of them no other attack reads, and what it costs.

    Returns:
      Columns `attack`, `read`, `alone` (cells that no other attack reads), `num_cells`, `num_evaluations` (mean) and `seconds` (mean, of a cell).
    """
    table = with_outcomes(records)
    keys = [name for name in (*SETTING, "dataset_arguments", *_CELL) if name in table]
    readers = table[keys].assign(read=table["success"].astype(bool)).groupby(keys, sort=False, observed=True)["read"].transform("sum")
    rows = []
    for attack, cells in table.assign(readers=readers).groupby("attack_label", sort=False, observed=True):
        read = cells["success"].astype(bool)
        rows.append(
            {
                "attack": attack, "read": int(read.sum()), "alone": int((read & (cells["readers"] == 1)).sum()), "num_cells": len(cells),
                "num_evaluations": float(cells["num_evaluations"].mean()), "seconds": float(cells["attack_seconds"].mean()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=["attack", "read", "alone", "num_cells", "num_evaluations", "seconds"])


def stopping_ratios(records: pd.DataFrame) -> pd.DataFrame:
    """Finds, per attack and metric, the smallest measured ratio from which on no cell succeeded, and the strength of that evidence.

    The verdict is "stopped" where every cell from there on is protected (`with_outcomes`), together with their number and the upper end of the 95 % interval
    of the success rate, and with "≤" where no smaller ratio was tried. A search that ended too early is not evidence of protection, and neither is one that
    fails with nothing encrypted.

    Returns:
      Columns `panel`, `curve`, `ratio` (NaN where the attack still succeeds at the largest ratio, or fails with nothing encrypted), `verdict`,
      `success_at_0` (share without encryption, NaN if not measured), `num_cells` at that ratio, `unresolved` of these, `upper` (of the 95 % Wilson interval
      of the share of inputs read there, each counted once), and `ciphertext_bytes` per client.
    """
    rows = []
    table = with_outcomes(with_labels(records))[["panel", "curve", "ratio", "sample", "outcome", "ciphertext_bytes"]]
    for (panel, curve), cells in table.groupby(["panel", "curve"], sort=True):
        counts = pd.crosstab(cells["ratio"], cells["outcome"]).reindex(columns=list(OUTCOMES), fill_value=0)
        sizes = cells.astype({"ciphertext_bytes": float}).groupby("ratio")["ciphertext_bytes"].mean()
        inputs = cells[cells["outcome"] != "attack failed"].groupby("ratio")["sample"].nunique().reindex(counts.index, fill_value=0)
        ratios = counts.index.to_numpy(float)
        tried = counts.sum(axis=1) - counts["attack failed"]
        at_zero = counts.loc[0.0, "read"] / counts.loc[0.0].sum() if 0.0 in counts.index else math.nan
        row = {"panel": panel, "curve": curve, "verdict": "", "ratio": math.nan, "success_at_0": at_zero, "num_cells": 0, "unresolved": 0, "upper": math.nan}
        row["ciphertext_bytes"] = math.nan
        ended = counts["read"].to_numpy()[::-1].cumsum()[::-1] == 0
        if tried.sum() == 0:
            row["verdict"] = "attack fails with nothing encrypted"
        elif not ended.any():
            row["verdict"] = f"still succeeds at {ratios[-1]:g}"
        elif tried.iloc[int(ended.argmax())] == 0:
            row["verdict"] = f"no success from {ratios[int(ended.argmax())]:g} on, where it was tried on no sample that it reads with nothing encrypted"
        else:
            position = int(ended.argmax())
            ratio, size, n = ratios[position], sizes.iloc[position], int(tried.iloc[position])
            open_cells = int(counts["unresolved"].iloc[position])
            row |= {
                "ratio": ratio,
                "num_cells": n,
                "unresolved": open_cells,
                "upper": wilson(0, int(inputs.iloc[position]))[1],
                "ciphertext_bytes": float(size),
            }
            row["verdict"] = _verdict(ratios, position, n, row["upper"], int(counts["unresolved"].iloc[position:].sum()))
        rows.append(row)
    columns = ["panel", "curve", "verdict", "ratio", "success_at_0", "num_cells", "unresolved", "upper", "ciphertext_bytes"]
    return pd.DataFrame(rows, columns=columns)


def _verdict(ratios: npt.NDArray[np.float64], position: int, num_cells: int, upper: float, unresolved: int) -> str:
    """Puts into words what the absence of success from a ratio on amounts to."""
    ratio, bound = ratios[position], f"0 of {num_cells}, < {percent(upper)}"
    if ratios[0] > 0:
        return f"no success from {ratio:g} on ({bound}); not tried with nothing encrypted"
    if unresolved:
        return f"no success from {ratio:g} on ({bound}); {unresolved} unresolved"
    first = "≤ " if position == 1 else ""
    return f"stopped at {first}{ratio:g} ({bound})"


def verdict_grid(stops: pd.DataFrame, same: Mapping[str, Sequence[str]] | None = None) -> tuple[list[str], list[list[str]]]:
    """Arranges the stopping ratios as a grid: header, then one row per curve and one column per panel; transposed where panels are many and curves few.

    Args:
      stops: as `stopping_ratios` returns it.
      same: as `same_masks` returns it; a metric whose masks equal another's says so.
    """
    panels: Sequence[str] = list(dict.fromkeys(stops["panel"]))
    body = []
    for curve, rows in stops.groupby("curve", sort=True):
        verdicts = dict(zip(rows["panel"], rows["verdict"], strict=True))
        others = (same or {}).get(str(curve).split(" / ")[0], [])
        body.append([f"{curve} (same masks as {', '.join(others)})" if others else str(curve), *(verdicts.get(panel, "") for panel in panels)])
    if len(panels) > max(8, len(body)):
        return ["attack", *(row[0] for row in body)], [[panel, *(row[1 + i] for row in body)] for i, panel in enumerate(panels)]
    return ["metric", *panels], body
