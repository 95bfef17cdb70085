"""Tables of a report, computed from record files alone: curves with confidence bands, and what protections and masks leave to attackers.

Nothing here imports JAX, so a report can be made on any machine that has the records.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad import files, measures
from selgrad.errors import DamagedError, SelgradError
from selgrad.measures import Measure
from selgrad.report.record_files import RecordFiles

SETTING = ["dataset_label", "model_label", "update_label", "protection_label"]
"""The columns that say what an experiment is made of besides attacks and masks."""
_FEWEST_SAMPLES = 4


def read_records(out: str | Path) -> pd.DataFrame:
    """Reads all records of a sweep's folder, one row per cell, sorted so that the order of blocks does not matter.

    Raises:
      SelgradError: if there are none, or a file is damaged.
    """
    record_files = RecordFiles(out)
    if not record_files.blocks:
        raise SelgradError(f"{str(out)!r} holds no records; run `selgrad sweep CONFIG --out {out}` first")
    table = record_files.read()
    # Older records were written before protections existed.
    for name, plain in {"protection": "none", "protection_label": "none", "protection_arguments": "{}"}.items():
        table[name] = table[name].fillna(plain) if name in table else plain
    order = [*SETTING, "attack_label", "selector_label", "metric_label", "ratio", "sample", "seed"]
    # Sorted by the rank of each value in its column: each text is compared once and not once per row.
    places = np.lexsort([pd.factorize(table[name], sort=True)[0] for name in reversed(order)])
    # Column by column, so that no second table is ever held.
    columns = {name: table.pop(name).array.take(places) for name in list(table.columns)}
    return pd.DataFrame(columns, copy=False)


def _overlaps_of_whole_trees(out: str | Path) -> pd.DataFrame:
    """Reads the rows of a sweep's `equivalence.parquet` that cover all leaves together; returns none where there is no such file yet."""
    file = Path(out) / "equivalence.parquet"
    if not file.exists():
        return pd.DataFrame(columns=["metric_a", "metric_b"])
    try:
        table = files.read_frame(file)
        return table[table["leaf"] == ""]
    except (DamagedError, KeyError):
        # The file follows from the configuration, and the sweep writes it again.
        warnings.warn(f"{str(file)!r} is damaged and left out; `selgrad sweep` with the same --out computes it again", stacklevel=2)
        return pd.DataFrame(columns=["metric_a", "metric_b"])


def same_masks(out: str | Path) -> dict[str, list[str]]:
    """Finds metrics that chose the same mask as another at every measured ratio between 0 and 1, for every sample and seed: label -> the others' labels.

    It reads the `equivalence.parquet` of a sweep's folder, and returns an empty mapping where there is none yet.
    """
    same: dict[str, list[str]] = {}
    for (a, b), rows in _overlaps_of_whole_trees(out).groupby(["metric_a", "metric_b"], sort=False):
        if rows["identical"].all():
            same.setdefault(str(a), []).append(str(b))
            same.setdefault(str(b), []).append(str(a))
    return same


def mask_overlaps(out: str | Path) -> pd.DataFrame:
    """Returns the mean Jaccard index of every two metrics' masks, by selector and ratio: one row per pair, one column per ratio; empty without overlaps."""
    whole = _overlaps_of_whole_trees(out)
    if whole.empty:
        return pd.DataFrame()
    keys = ["title", "selector", "metric_a", "metric_b"]
    keys = [key for key in keys if key in ("metric_a", "metric_b") or whole[key].nunique() > 1]
    return whole.pivot_table(index=keys, columns="ratio", values="jaccard", sort=False).reset_index()


def metric_label(records: pd.DataFrame) -> pd.Series:
    """Returns the name of each row's curve: the metric, with the selector where the records hold several."""
    if records["selector_label"].nunique() > 1:
        return _each(records, ["metric_label", "selector_label"], lambda metric, selector: f"{metric} / {selector}")
    return records["metric_label"]


def _each(records: pd.DataFrame, columns: Sequence[str], label: Callable[..., str]) -> pd.Series:
    """Returns each row's text, made from the values of some columns once for each combination, of which there are few, and not once per row."""
    codes = records.groupby(list(columns), sort=False, dropna=False).ngroup().to_numpy()
    first = np.unique(codes, return_index=True)[1]
    texts = np.asarray([label(*values) for values in records[list(columns)].iloc[first].itertuples(index=False)], object)
    return pd.Series(texts[codes] if len(records) else texts, index=records.index, dtype=object)


def dataset_label(records: pd.DataFrame) -> pd.Series:
    """Returns the data set's label, with those arguments (path, split, count, offset) in which two data sets of one label differ."""
    pairs = records[["dataset_label", "dataset_arguments"]].drop_duplicates()
    names: dict[tuple[str, str], str] = {}
    for label, group in pairs.groupby("dataset_label"):
        arguments = {text: json.loads(text) for text in group["dataset_arguments"]}
        keys = sorted({key for mapping in arguments.values() for key in mapping})
        differing = [key for key in keys if len({json.dumps(mapping.get(key)) for mapping in arguments.values()}) > 1]
        for text, mapping in arguments.items():
            names[str(label), text] = f"{label}[{', '.join(f'{key}={mapping.get(key)}' for key in differing)}]" if differing else str(label)
    return _each(records, ["dataset_label", "dataset_arguments"], lambda *pair: names[pair])


def attack_label(records: pd.DataFrame) -> pd.Series:
    """Returns the name of each row's panel: attack and rung of the ladder, or the full arguments where that is ambiguous; and the setting, if several."""
    kinds = records[["attack", "hidden", "attack_label"]].drop_duplicates()
    # An attack in closed form that has no rungs leaves the column empty.
    shorts = [f"{attack}, hidden: {rung}" if rung else str(attack) for attack, rung in zip(kinds["attack"], kinds["hidden"].fillna(""), strict=True)]
    full = dict(zip(kinds["attack_label"], shorts, strict=True))
    names = {label: label if list(full.values()).count(short) > 1 else short for label, short in full.items()}
    columns = {**{column: records[column] for column in SETTING if column in records}, "dataset_label": dataset_label(records)}
    varying = [column for column, values in columns.items() if values.nunique() > 1]
    table = pd.DataFrame({**{column: columns[column] for column in varying}, "attack_label": records["attack_label"]})
    prefix = lambda parts: " / ".join(parts) + ": " if parts else ""
    return _each(table, list(table.columns), lambda *values: prefix(values[:-1]) + names[values[-1]])


def setting_title(records: pd.DataFrame) -> pd.Series:
    """Returns each row's setting as `Setting.title` names it, under which reconstructions are kept: data set, model, update, and any protection."""
    title = records["dataset_label"].astype(str).str.cat([records[name].astype(str) for name in SETTING[1:3]], sep=" / ")
    protection = records["protection_label"].astype(str)
    return title.where(protection == "none", title + " / " + protection)


def with_labels(records: pd.DataFrame) -> pd.DataFrame:
    """Returns the records with the columns `panel` and `curve`; records that have them are returned as they are."""
    if "panel" in records and "curve" in records:
        return records
    return records.assign(panel=attack_label(records), curve=metric_label(records))


def headline(records: pd.DataFrame) -> Measure | None:
    """Returns the measure that stands for the quality of the records' reconstructions; None where they have none."""
    available = [measure for measure in measures.held(records, lambda measure: measure.headline) if records[measure.name].notna().any()]
    return available[0] if available else None


def profiles(records: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Returns the share of inputs on which the best attack reaches each threshold, for every value that occurs: a verdict for each threshold.

    Args:
      records: those of any attacks; on each input the attack that gets most counts, as in a suite's verdict.
      measure: a column of the records.

    Returns:
      One row per setting, metric (`curve`), ratio and value that occurs: `setting`, `curve`, `ratio`, `threshold`, `share`, `num_inputs`.
    """
    lower = measures.named(measure).lower_is_better
    table = with_labels(records)
    table = table.assign(setting=dataset_label(table) + " / " + table["model_label"] + " / " + table["update_label"]).dropna(subset=[measure])
    keys = ["setting", "curve", "ratio"]
    best = table.groupby([*keys, "sample", "seed"], sort=False, observed=True)[measure].agg("min" if lower else "max").reset_index()
    rows = []
    for key, values in best.groupby(keys, sort=False, observed=True)[measure]:
        ordered = np.sort(values.to_numpy(float))
        thresholds = np.unique(ordered)
        count = np.searchsorted(ordered, thresholds, "right") if lower else len(ordered) - np.searchsorted(ordered, thresholds, "left")
        rows.append(pd.DataFrame({**dict(zip(keys, key, strict=True)), "threshold": thresholds, "share": count / len(ordered), "num_inputs": len(ordered)}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*keys, "threshold", "share", "num_inputs"])


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the Wilson score interval of a share (Wilson 1927, wilson1927), 95 % by default.

    >>> tuple(round(x, 3) for x in wilson(0, 20))
    (0.0, 0.161)
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@functools.lru_cache(maxsize=8)
def _draws(num_samples: int, num_resamples: int) -> npt.NDArray[np.float64]:
    """Returns how often each sample occurs in each bootstrap draw, (num_resamples, num_samples): all groups of one size share one set of draws."""
    generator = np.random.default_rng(num_samples)
    return generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=num_resamples).astype(float)


def share_interval(cells: pd.DataFrame, column: str) -> tuple[float, float]:
    """Returns Wilson's interval of a share, for as many trials as there are inputs: the seeds of one input are not independent."""
    num_inputs = cells["sample"].nunique()
    return wilson(float(cells[column].mean()) * num_inputs, num_inputs)


def _interval(cells: pd.DataFrame, measure: str, num_resamples: int) -> tuple[float, float]:
    """Returns Wilson's interval for a share; otherwise a bootstrap that draws whole samples, since one sample's seeds are not independent cells."""
    if measures.named(measure).is_share:
        return share_interval(cells, measure)
    _, which = np.unique(cells["sample"].to_numpy(), return_inverse=True)
    counts = np.bincount(which).astype(float)
    if len(counts) < _FEWEST_SAMPLES:
        return math.nan, math.nan
    by_sample = np.stack([np.bincount(which, cells[measure].to_numpy(float)), counts], axis=1)
    sums, counts = (_draws(len(counts), num_resamples) @ by_sample).T
    low, high = np.quantile(sums / counts, [0.025, 0.975])
    return float(low), float(high)


def curves(records: pd.DataFrame, measure: str, *, num_resamples: int = 1000) -> pd.DataFrame:
    """Returns the mean of a measure by panel, curve and ratio, with a 95 % interval.

    The interval is Wilson's for `success`, and otherwise a bootstrap over samples; it is NaN below four samples, which say nothing about others.
    Diverged cells have no value and are left out; `num_cells` says how many remain, and the mean is NaN where none does.
    """
    rows = []
    table = with_labels(records)[["panel", "curve", "ratio", "sample", measure]].astype({measure: float})
    for (panel, curve, ratio), every in table.groupby(["panel", "curve", "ratio"], sort=True):
        cells = every[every[measure].notna()]
        low, high = _interval(cells, measure, num_resamples) if len(cells) else (math.nan, math.nan)
        mean = float(cells[measure].mean())
        rows.append({"panel": panel, "curve": curve, "ratio": ratio, "mean": mean, "low": low, "high": high, "num_cells": len(cells)})
    return pd.DataFrame(rows, columns=["panel", "curve", "ratio", "mean", "low", "high", "num_cells"])


def protections(records: pd.DataFrame) -> pd.DataFrame:
    """Returns what attacks read behind each protection at the smallest measured ratio; empty where all cells have the same protection.

    Returns:
      Columns `setting`, `protection`, `ratio` (the smallest), `attack`, `success` (share of cells), `num_cells`, `upper` (of the 95 % Wilson interval of the
      share of inputs), `works` (whether the attack ever succeeds on the setting without a protection; None where that was not tried), `quality` (median PSNR in
      dB of images, ROUGE-L of text) and `plain_bytes` that a client sends in the clear.
    """
    columns = ["setting", "protection", "ratio", "attack", "success", "num_cells", "upper", "works", "quality", "plain_bytes"]
    if "protection_label" not in records or records["protection_label"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    least = records[records["ratio"] == records["ratio"].min()]
    least = least.assign(setting=dataset_label(least) + " / " + least["model_label"] + " / " + least["update_label"])
    bare = least[least["protection_label"] == "none"]
    works = bare.groupby(["setting", "attack_label"])["success"].any().to_dict()
    rows = []
    for (setting, protection, attack), cells in least.groupby(["setting", "protection_label", "attack_label"], sort=False):
        shown = headline(cells)
        won = int(cells["success"].sum())
        rows.append(
            {
                "setting": setting, "protection": protection, "ratio": float(cells["ratio"].iloc[0]), "attack": attack, "success": won / len(cells),
                "num_cells": len(cells), "upper": share_interval(cells, "success")[1], "works": works.get((setting, attack)),
                "quality": math.nan if shown is None else float(cells[shown.name].median()),
                "plain_bytes": float(cells["plain_bytes"].mean()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def protecting_places(won: pd.DataFrame, generator: np.random.Generator, num_resamples: int) -> tuple[Any, npt.NDArray[np.int64], float, float]:
    """Finds where each input is safe: the index, among the ratios and infinity, after the last one at which an attack on it succeeded.

    Args:
      won: one row per input, one column per ratio in ascending order: above 0 where an attack succeeded, NaN where none was tried.
      generator: for the bootstrap, which draws as many inputs with replacement and finds the ratio that protects all of them.
      num_resamples: number of draws.

    Returns:
      The ratios with infinity at the end, the indices, and the 95 % interval of the ratio that protects all.
    """
    ratios = np.append(won.columns.to_numpy(float), math.inf)

    def place(row: npt.NDArray[np.float64]) -> int:
        after = int(np.flatnonzero(row > 0)[-1]) + 1 if (row > 0).any() else 0
        # Where it was not tried, nothing is known.
        tried = np.flatnonzero(~np.isnan(row[after:]))
        return after + int(tried[0]) if len(tried) else len(row)

    places = np.array([place(row) for row in won.to_numpy(float)])
    draws = places[generator.integers(len(places), size=(num_resamples, len(places)))].max(axis=1)
    low, high = ratios[np.quantile(draws, [0.025, 0.975], method="nearest").astype(int)]
    return ratios, places, float(low), float(high)


def protecting_ratios(records: pd.DataFrame, *, num_resamples: int = 1000) -> pd.DataFrame:
    """Finds, per setting, metric, attack and rung of the ladder, the smallest measured ratio from which on the attack succeeded on no sample.

    The interval is a bootstrap over samples: each draw takes as many samples with replacement and finds the smallest ratio that protects all of them.
    It cannot exceed `ratio`; `upper` bounds how often an attack on another sample may still succeed there.

    Returns:
      Columns `setting`, `metric`, `attack`, `hidden`, `ratio`, `low`, `high` (inf where the attack still succeeds at the largest ratio), `num_samples`,
      `success_at_0`, `upper` (of the 95 % Wilson interval of the success rate at `ratio`), and `worst`: whether no rung needs more.
    """
    setting = dataset_label(records) + " / " + records["model_label"]
    for column in ("update_label", "protection_label"):
        if column in records and records[column].nunique() > 1:
            setting = setting + " / " + records[column]
    records = records.assign(setting=setting, metric_label=metric_label(records))
    generator, rows = np.random.default_rng(0), []
    for (setting, metric, attack, hidden), cells in records.groupby(["setting", "metric_label", "attack", "hidden"], sort=False):
        won = cells.astype({"success": float}).pivot_table(index=["sample", "seed"], columns="ratio", values="success").sort_index(axis=1)
        won = won.groupby("sample").max()
        ratios, places, low, high = protecting_places(won, generator, num_resamples)
        zero = float(won[0.0].mean()) if 0.0 in won.columns else math.nan
        rows.append(
            {
                "setting": setting, "metric": metric, "attack": attack, "hidden": hidden, "ratio": float(ratios[places.max()]), "low": float(low),
                "high": float(high), "num_samples": len(places), "success_at_0": zero, "upper": wilson(0, len(places))[1],
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(worst=table["ratio"] == table.groupby(["setting", "metric", "attack"])["ratio"].transform("max"))


def ranking_changes(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Compares the order of the metrics under the rung `zero` with their order under each one's strongest rung.

    Args:
      table: as `protecting_ratios` returns it.

    Returns:
      One entry per setting and attack: both orders, metrics with the smallest protecting ratio first and equal ones together, and whether they differ.
    """
    changes = []
    for (setting, attack), rows in table.groupby(["setting", "attack"], sort=False):
        zero = rows[rows["hidden"] == "zero"].set_index("metric")["ratio"]
        if zero.empty:
            continue
        strongest = rows.groupby("metric", sort=False)["ratio"].max().reindex(zero.index)
        orders = [[{"ratio": None if math.isinf(r) else r, "metrics": sorted(g.index)} for r, g in s.groupby(s)] for s in (zero, strongest)]
        differs = [group["metrics"] for group in orders[0]] != [group["metrics"] for group in orders[1]]
        changes.append({"setting": setting, "attack": attack, "zero": orders[0], "strongest": orders[1], "differs": differs})
    return changes
