"""Figures of a report: quality against ratio, cost against protection, and the gallery of reconstructions.

Each function draws one figure from records or kept reconstructions and leaves a PNG and an SVG beside each other; the figures of a report are not drawn again
where they would show the same. None uses pyplot, whose backend belongs to
the notebook or program that calls us.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from selgrad import files, measures
from selgrad.measures import Measure
from selgrad.report.gallery import Images, tile
from selgrad.report.tables import curves, headline, profiles, with_labels

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = "osD^vPX*"


def _digest(*content: Any) -> str:
    """A hash of what a figure shows: tables, arrays, texts."""
    found = hashlib.sha256(matplotlib.__version__.encode())
    for part in content:
        found.update(part.to_csv().encode() if isinstance(part, pd.DataFrame) else part.tobytes() if isinstance(part, np.ndarray) else str(part).encode())
    return found.hexdigest()


def _is_drawn(folder: Path, name: str, digest: str) -> bool:
    """Whether a figure is there and shows what it would show now."""
    try:
        return files.read_text(folder / f".{name}.sha256") == digest and all((folder / f"{name}.{ending}").exists() for ending in ("png", "svg"))
    except (OSError, ValueError):
        return False


def _save(figure: Any, folder: Path, name: str, digest: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Laid out and measured once: each file would do both again, which takes longer than to draw it.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])
    for ending in ("png", "svg"):
        options = {"format": ending, "dpi": 150, "bbox_inches": box, "metadata": {"Date": None} if ending == "svg" else None}
        files.write(folder / f"{name}.{ending}", functools.partial(figure.savefig, **options))
    if digest:
        files.write_text(folder / f".{name}.sha256", digest)


def _panels(count: int) -> tuple[Any, list[Any]]:
    # Panels come in pairs, an attack against hidden entries as zero and ignored; a pair stays in one row.
    columns = 2 if count in (2, 4) else 4 if count % 4 == 0 else min(3, count)
    rows = -(-count // columns)
    size = (4.6 * columns, 3.5 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    flat = list(axes.flat)
    for empty in flat[count:]:
        empty.set_axis_off()
    return figure, flat[:count]


def drawn_measures(records: pd.DataFrame) -> list[Measure]:
    """What there is to draw: every measure with a curve of which the records have values."""
    return [one for one in measures.held(records, lambda measure: measure.curve) if records[one.name].notna().any()]


def _ratio_axis(axis: Any, ratios: list[float]) -> None:
    # Ratios are chosen unevenly (1 %, 5 %, 10 %, ...), so each measured ratio gets the same room.
    axis.set_xticks(range(len(ratios)), [f"{100 * r:g}" for r in ratios])
    axis.set_xlabel("entries encrypted (%)")
    axis.grid(alpha=0.25)


def _with_values(records: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The records of data sets that have a measure: a sweep over images and text has panels of each, and a panel shows what its data have."""
    have = records["dataset_label"][records[measure].notna()].unique()
    return records if len(have) == records["dataset_label"].nunique() else records[records["dataset_label"].isin(have)]


def quality_against_ratio(records: pd.DataFrame, folder: Path, measure: str = "psnr") -> str:
    """One panel per attack, one curve per metric, 95 % bands; returns the file's stem."""
    data = curves(_with_values(records, measure), measure)
    stem, digest = f"{measure}_against_ratio", _digest(data, measure)
    if _is_drawn(folder, stem, digest):
        return stem
    panels, names = list(dict.fromkeys(data["panel"])), sorted(data["curve"].unique())
    ratios = sorted(data["ratio"].unique())
    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            part = data[(data["panel"] == panel) & (data["curve"] == name)].sort_values("ratio")
            # A small shift keeps curves that lie on each other apart.
            x = np.asarray([ratios.index(r) for r in part["ratio"]]) + 0.05 * (i - (len(names) - 1) / 2)
            colour = _COLOURS[i % len(_COLOURS)]
            axis.plot(x, part["mean"], color=colour, marker=_MARKERS[i % len(_MARKERS)], markersize=4, linewidth=1.4, label=name)
            axis.fill_between(x, part["low"], part["high"], color=colour, alpha=0.15, linewidth=0)
        cells = data.loc[data["panel"] == panel, "num_cells"]
        count = f"{cells.min()}" if cells.min() == cells.max() else f"{cells.min()} to {cells.max()}"
        axis.set_title(f"{panel} (n = {count})", fontsize=9)
        _ratio_axis(axis, ratios)
    name = measures.named(measure).title
    axes[0].set_ylabel(name if name.startswith("share") else f"{name} of the reconstruction")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    _save(figure, folder, stem, digest)
    return stem


def cost_against_protection(records: pd.DataFrame, folder: Path) -> str | None:
    """Bytes that a client uploads encrypted against the reconstruction's PSNR or ROUGE-L; None where no cost was measured."""
    shown = headline(records)
    measure = "" if shown is None else shown.name
    costed = with_labels(records)
    if measure not in costed:
        return None
    costed = costed[["panel", "curve", "ratio", "dataset_label", "ciphertext_bytes", "index_bytes", measure]].dropna(subset=["ciphertext_bytes"])
    if costed.empty:
        return None
    costed = _with_values(costed, measure)
    costed = costed.assign(kilobytes=(costed["ciphertext_bytes"].astype(float) + costed["index_bytes"]) / 1000)
    data = costed.groupby(["panel", "curve", "ratio"], as_index=False)[["kilobytes", measure]].mean()
    stem, digest = "cost_against_protection", _digest(data)
    if _is_drawn(folder, stem, digest):
        return stem
    panels, names = list(dict.fromkeys(data["panel"])), sorted(data["curve"].unique())
    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            part = data[(data["panel"] == panel) & (data["curve"] == name)].sort_values("kilobytes")
            axis.plot(part["kilobytes"], part[measure], color=_COLOURS[i % len(_COLOURS)], marker=_MARKERS[i % len(_MARKERS)], markersize=4, label=name)
        axis.set_title(panel, fontsize=9)
        axis.set_xlabel("ciphertexts and indices per client (kB)")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(f"{measures.named(measure).title} of the reconstruction")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    _save(figure, folder, stem, digest)
    return stem


def success_profiles(records: pd.DataFrame, folder: Path) -> str | None:
    """The share of inputs of which the best attack gets at least so much, one panel a metric and one curve a ratio; None where there is nothing to draw."""
    shown = headline(records)
    data = pd.DataFrame() if shown is None else profiles(records, shown.name)
    if shown is None or data.empty or data["num_inputs"].max() < 2:
        return None
    stem, digest = "success_profiles", _digest(data)
    if _is_drawn(folder, stem, digest):
        return stem
    several = data["setting"].nunique() > 1
    groups, ratios = list(data.groupby(["setting", "curve"], sort=False)), sorted(data["ratio"].unique())
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(ratios)))
    figure, axes = _panels(len(groups))
    for axis, ((setting, curve), part) in zip(axes, groups, strict=True):
        for colour, ratio in zip(colours, ratios, strict=True):
            one = part[part["ratio"] == ratio].sort_values("threshold", ascending=not shown.lower_is_better)
            if len(one):
                # All inputs pass a threshold below the worst of them, and none one above the best.
                x = np.concatenate([one["threshold"], one["threshold"].iloc[-1:]])
                y = np.concatenate([one["share"], [0.0]])
                axis.step(
                    np.concatenate([[data["threshold"].max() if shown.lower_is_better else data["threshold"].min()], x]), [1.0, *y], where="pre", color=colour
                )
        axis.set_title(f"{setting}\n{curve}" if several else curve, fontsize=9)
        axis.set_xlabel(f"{shown.title}, at {'most' if shown.lower_is_better else 'least'}")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
    counts = data["num_inputs"]
    axes[0].set_ylabel(f"share of inputs (n = {counts.min()}{'' if counts.min() == counts.max() else f' to {counts.max()}'})")
    lines = [Line2D([], [], color=colour) for colour in colours]
    figure.legend(lines, [f"{100 * ratio:g} % encrypted" for ratio in ratios], loc="outside lower center", ncols=min(4, len(ratios)), frameon=False, fontsize=9)
    _save(figure, folder, stem, digest)
    return stem


def _mosaic(truth: Any, rows: list[list[Any]], names: list[str], titles: list[str]) -> Figure:
    """The truth above rows of pictures of its shape, as one picture in one pair of axes: axes of its own for each take ten times as long to draw."""
    height, width = truth.shape[:2]
    gap, above = -(-height // 16), -(-height // 4)
    left = lambda j: j * (width + gap)
    top = lambda i: i * (height + gap) + (above if i else 0)
    canvas = np.full((top(len(rows)) + height, left(len(titles) - 1) + width, 3), 255, np.uint8)
    for i, row in enumerate([[truth], *rows]):
        for j, picture in enumerate(row):
            if picture is not None:
                canvas[top(i) : top(i) + height, left(j) : left(j) + width] = picture[..., None] if picture.ndim == 2 else picture
    # One inch for the height of a picture.
    figure = Figure(figsize=(canvas.shape[1] / height, canvas.shape[0] / height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    middle: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8}
    axis.text(left(0) + width / 2 - 0.5, -0.05 * height, "truth", **middle)
    for j, title in enumerate(titles):
        axis.text(left(j) + width / 2 - 0.5, top(1) - 0.05 * height, title, **middle)
    for i, name in enumerate(names):
        axis.text(-0.12 * height, top(i + 1) + height / 2, name.replace("(", "\n("), ha="right", va="center", fontsize=7)
    return figure


def galleries(out: Path, folder: Path) -> list[str]:
    """Per attack and kept sample: the truth above, below it reconstructions by metric (rows) and ratio (columns)."""
    kept = Images(out)
    kept.update()
    rows = [row for row in kept.rows if kept.truth(row) is not None]
    stems: list[str] = []
    if not rows:
        return stems
    table = pd.DataFrame([{name: value for name, value in row.items() if name != "pixels"} for row in rows])
    groups = list(table.groupby(["setting", "attack", "sample"], sort=True))
    attacks = {key: i for i, key in enumerate(dict.fromkeys((s, a) for (s, a, _), _ in groups))}
    several = table["selector"].nunique() > 1
    for (setting, attack, sample), cells in groups:
        cells = cells.assign(row=cells["metric"] + (" / " + cells["selector"] if several else ""))
        names, ratios = sorted(cells["row"].unique()), sorted(cells["ratio"].unique())
        truth = tile(kept.truth(rows[cells.index[0]]))
        stem = f"gallery_{attacks[setting, attack]}_{attack.split('(')[0]}_sample_{sample}"
        stems.append(stem)
        digest = _digest(cells, truth, *(rows[i]["pixels"] for i in cells.index))
        if _is_drawn(folder, stem, digest):
            continue
        found = {(row.row, row.ratio): tile(rows[row.Index]["pixels"]) for row in cells.itertuples()}
        figure = _mosaic(truth, [[found.get((name, ratio)) for ratio in ratios] for name in names], names, [f"{100 * ratio:g} %" for ratio in ratios])
        figure.axes[0].set_title(f"{cells['title'].iloc[0]}: {attack}, sample {sample}", fontsize=9, pad=16)
        _save(figure, folder, stem, digest)
    return stems


def finite(value: float) -> bool:
    """Whether a table cell has a number to show."""
    return not math.isnan(value)


def mask_leaks(table: pd.DataFrame, folder: Path) -> str:
    """Three panels of bars, what masks tell of labels, of inputs and of their support, by metric, selector and ratio; returns the file's stem."""
    names = table["metric"].astype(str)
    if table["selector"].nunique() > 1:
        names = names + ", " + table["selector"]
    table = table.assign(name=names)
    groups, ratios = list(dict.fromkeys(table["name"])), sorted(table["ratio"].unique())
    panels = [("label_accuracy", "labels named right"), ("input_explained", "variance of inputs explained"), ("support_auc", "support of inputs (AUC)")]
    panels = [(column, title) for column, title in panels if table[column].notna().any()]
    # Names beside the bars need room of their own.
    size = (2.8 * len(panels) + 0.075 * max(map(len, groups)), 1.1 + 0.13 * len(groups) * max(len(ratios), 2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    place, height = np.arange(len(groups)), 0.8 / len(ratios)
    for axis, (column, title) in zip(np.atleast_1d(axes), panels, strict=True):
        for k, ratio in enumerate(ratios):
            rows = table[table["ratio"] == ratio].set_index("name")[column].reindex(groups)
            axis.barh(place + (k - (len(ratios) - 1) / 2) * height, rows, height, color=_COLOURS[k % len(_COLOURS)], label=f"{100 * ratio:g} % encrypted")
        guess = float(table["label_chance"].iloc[0]) if column == "label_accuracy" else 0.5 if column == "support_auc" else 0.0
        axis.axvline(guess, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 1)
        axis.set_title(title, fontsize=10)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(place, groups)
    first.invert_yaxis()
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(ratios)), frameon=False, fontsize=9)
    _save(figure, folder, "mask_leaks")
    return "mask_leaks"


def federation(records: pd.DataFrame, folder: Path) -> str:
    """Accuracy by round, and where a round's seconds and bytes go; the file's stem.

    Args:
      records: of a federated run, one row a round.
      folder: for the figure.
    """
    figure = Figure(figsize=(11, 3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(records["round"], 100 * records["accuracy"], marker="o", markersize=4)
    left.set(xlabel="round", ylabel="accuracy, %", ylim=(0, 100))
    left.xaxis.get_major_locator().set_params(integer=True)
    for axis, names, unit, scale in (
        (middle, ("train", "encrypt", "add", "decrypt", "agree", "evaluate"), "seconds", 1.0),
        (right, ("weights", "plain", "sealed", "mask", "agreement"), "bytes", 1e6),
    ):
        means = [float(records[f"{name}_{unit}"].mean()) / scale for name in names]
        axis.barh(names, means)
        axis.invert_yaxis()
        axis.set(xlabel=f"{'MB' if unit == 'bytes' else 's'} a round, mean")
        axis.margins(x=0.15)
        for i, value in enumerate(means):
            axis.text(value, i, f" {value:.2g}", va="center", fontsize=8)
    _save(figure, folder, "federation")
    return "federation"


_RUNGS = ("zero", "average", "ignore", "bounded", "complete", "learned")


def ladder(table: pd.DataFrame, folder: Path) -> str:
    """The smallest protecting ratio by metric, attack and rung, one grid per setting, each metric's worst rung of an attack in bold; the file's stem.

    Args:
      table: as `protecting_ratios` gives it.
      folder: for the figure.
    """
    settings = list(dict.fromkeys(table["setting"]))
    attacks = {s: list(dict.fromkeys(table.loc[table["setting"] == s, "attack"])) for s in settings}
    columns = {
        s: [(a, h) for a in attacks[s] for h in _RUNGS if ((table["setting"] == s) & (table["attack"] == a) & (table["hidden"] == h)).any()] for s in settings
    }
    metrics = list(dict.fromkeys(table["metric"]))
    size = (3.2 + 0.95 * max(map(len, columns.values())), len(settings) * (1.5 + 0.3 * len(metrics)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(settings), 1, squeeze=False)
    colours = matplotlib.colormaps["YlOrRd"].copy()
    for axis, setting in zip(axes[:, 0], settings, strict=True):
        part = table[table["setting"] == setting].set_index(["metric", "attack", "hidden"])
        values = np.full((len(metrics), len(columns[setting])), np.nan)
        for i, metric in enumerate(metrics):
            for j, (attack, hidden) in enumerate(columns[setting]):
                if (metric, attack, hidden) not in part.index:
                    axis.text(j, i, "-", ha="center", va="center", color="grey")
                    continue
                row = part.loc[(metric, attack, hidden)]
                never = row["ratio"] == 0
                values[i, j] = min(float(row["ratio"]), 1.0)
                text = "none" if math.isinf(row["ratio"]) else "fails" if never else f"{100 * row['ratio']:g}"
                weight = "bold" if row["worst"] and not never else "normal"
                axis.text(j, i, text, ha="center", va="center", fontsize=9, fontweight=weight, color="white" if values[i, j] > 0.7 else "black")
        axis.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(columns[setting])), [a.replace("_", "\n") + f"\n{h}" for a, h in columns[setting]], fontsize=8)
        axis.set_yticks(range(len(metrics)), metrics, fontsize=9)
        axis.set_title(setting, fontsize=10)
        axis.tick_params(length=0)
    _save(figure, folder, "attacker_ladder")
    return "attacker_ladder"
