"""Figures of a report: quality against ratio, cost against protection, and the gallery of reconstructions.

Each function draws one figure from records or kept reconstructions and writes it as both PNG and SVG; the figures of a report are not drawn again where they
would show the same. None uses pyplot, whose backend belongs to the notebook or program that calls us.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from selgrad import files, measures
from selgrad.measures import Measure
from selgrad.report.gallery import Images, tile
from selgrad.report.tables import SETTING, curves, headline, profiles, setting_title, wilson, with_labels

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = "osD^vPX*"
_EXACT_PSNR = 60.0
"""Largest PSNR in dB that is drawn: at 59 dB the mean error is that of rounding to grey levels."""
_STYLE = 7
"""Version of the style of all figures: with a new number the figures of earlier reports are drawn again."""


def _digest(*content: Any) -> str:
    """Returns a hash of what a figure shows: tables, arrays, texts."""
    hasher = hashlib.sha256(f"{matplotlib.__version__} {_STYLE}".encode())
    for part in content:
        hasher.update(part.to_csv().encode() if isinstance(part, pd.DataFrame) else part.tobytes() if isinstance(part, np.ndarray) else str(part).encode())
    return hasher.hexdigest()


def _is_drawn(folder: Path, name: str, digest: str) -> bool:
    """Returns whether a figure is there and shows what it would show now."""
    try:
        return files.read_text(folder / f".{name}.sha256") == digest and all((folder / f"{name}.{ending}").exists() for ending in ("png", "svg"))
    except (OSError, ValueError):
        return False


def _save(figure: Any, folder: Path, name: str, digest: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(figure, folder, name, ("png", "svg"))
    if digest:
        files.write_text(folder / f".{name}.sha256", digest)


def _write(figure: Any, folder: Path, name: str, endings: Sequence[str]) -> None:
    # Laid out and measured once, since doing both again for each file would take longer than drawing it.
    layout = figure.get_layout_engine()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])
    for ending in endings:
        options = {"format": ending, "dpi": 150, "bbox_inches": box, "metadata": {"Date": None} if ending == "svg" else None}
        files.write(folder / f"{name}.{ending}", functools.partial(figure.savefig, **options))
    figure.set_layout_engine(layout)


NARROW = "-narrow"
"""Ending of the name of a figure's narrow form, which has its panels below one another, for a phone."""


def _save_panels(figure: Any, axes: Sequence[Any], folder: Path, name: str, digest: str) -> None:
    """Does what `_save` does, and writes the narrow form too where there are several panels."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(figure, folder, name, ("png", "svg"))
    (folder / f"{name}{NARROW}.svg").unlink(missing_ok=True)
    if len(axes) > 1:
        for empty in [axis for axis in figure.axes if axis not in axes]:
            empty.remove()
        grid = figure.add_gridspec(len(axes), 1)
        label = axes[0].get_ylabel()
        for i, axis in enumerate(axes):
            axis.set_subplotspec(grid[i])
            axis.tick_params(labelleft=True)
            axis.set_ylabel(label)
        for legend in list(figure.legends):
            handles, texts = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
            legend.remove()
            columns = 2 if len(texts) > 3 and max(map(len, texts)) < 15 else 1
            figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        figure.set_size_inches(3.9, 2.9 * len(axes))
        _write(figure, folder, f"{name}{NARROW}", ("svg",))
    files.write_text(folder / f".{name}.sha256", digest)


def _label_rows(axes: Sequence[Any], text: str) -> None:
    """Labels the y axis of the first panel in each row."""
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(text)


def _range(counts: pd.Series) -> str:
    """Writes how many there are where the number differs, such as `24 to 90`."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _panels(count: int) -> tuple[Any, list[Any]]:
    # Panels come in pairs, an attack that takes hidden entries as zero and one that ignores them; a pair stays in one row.
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
    """Returns the measures to draw: every one that has a curve and values in the records."""
    return [measure for measure in measures.held(records, lambda measure: measure.curve) if records[measure.name].notna().any()]


def _places(ratios: Sequence[float]) -> tuple[dict[float, float], bool]:
    """Returns where each ratio stands on an axis: at its value, or evenly spaced where some lie too close together (1 %, 5 %, 10 %, ...)."""
    gaps = np.diff(sorted(ratios))
    even = len(gaps) > 0 and float(gaps.min()) < 0.04 * float(gaps.sum())
    return ({r: float(i) for i, r in enumerate(sorted(ratios))} if even else {r: 100 * r for r in ratios}), even


def _ratio_axis(axis: Any, ratios: Sequence[float]) -> None:
    places, even = _places(ratios)
    axis.set_xticks(list(places.values()), [f"{100 * r:g}" for r in places])
    axis.set_xlabel("entries encrypted (%), not to scale" if even else "entries encrypted (%)")
    axis.grid(alpha=0.25)


def _shift(ratios: Sequence[float], which: int, count: int) -> float:
    """Returns a small horizontal shift that keeps coinciding curves apart."""
    places = list(_places(ratios)[0].values())
    return 0.012 * (max(places) - min(places)) * (which - (count - 1) / 2)


def _with_values(records: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Returns the records of data sets that have a measure: a sweep over images and text has panels of each, and a panel shows what its data have."""
    have = records["dataset_label"][records[measure].notna()].unique()
    return records if len(have) == records["dataset_label"].nunique() else records[records["dataset_label"].isin(have)]


def _clipped(records: pd.DataFrame) -> pd.DataFrame:
    """Clips PSNRs: an exact reconstruction has no error, and a mean that includes a few infinite PSNRs says nothing."""
    return records.assign(psnr=records["psnr"].clip(upper=_EXACT_PSNR)) if "psnr" in records else records


def _title(measure: str) -> str:
    return f"PSNR (dB, exact: {_EXACT_PSNR:g})" if measure == "psnr" else measures.named(measure).title


def quality_against_ratio(records: pd.DataFrame, folder: Path, measure: str = "psnr") -> str:
    """Draws one panel per attack, one curve per metric, with 95 % bands; returns the file's stem."""
    data = curves(_clipped(_with_values(records, measure)), measure)
    stem, digest = f"{measure}_against_ratio", _digest(data, measure)
    if _is_drawn(folder, stem, digest):
        return stem
    panels, names = list(dict.fromkeys(data["panel"])), sorted(data["curve"].unique())
    ratios = sorted(data["ratio"].unique())
    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            part = data[(data["panel"] == panel) & (data["curve"] == name)].sort_values("ratio")
            x = part["ratio"].map(_places(ratios)[0]).to_numpy(float) + _shift(ratios, i, len(names))
            colour = _COLOURS[i % len(_COLOURS)]
            axis.plot(x, part["mean"], color=colour, marker=_MARKERS[i % len(_MARKERS)], markersize=4, linewidth=1.4, label=name)
            axis.fill_between(x, part["low"], part["high"], color=colour, alpha=0.15, linewidth=0)
        axis.set_title(f"{panel} (n = {_range(data.loc[data['panel'] == panel, 'num_cells'])})", fontsize=9)
        _ratio_axis(axis, ratios)
    _label_rows(axes, _title(measure))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    _save_panels(figure, axes, folder, stem, digest)
    return stem


def cost_against_protection(records: pd.DataFrame, folder: Path) -> str | None:
    """Draws what a client sends in all against the reconstruction's PSNR or ROUGE-L; returns None where no cost was measured."""
    shown = headline(records)
    measure = "" if shown is None else shown.name
    costed = with_labels(records)
    if measure not in costed:
        return None
    costed = costed[["panel", "curve", "ratio", "dataset_label", "ciphertext_bytes", "index_bytes", "plain_bytes", "num_total", measure]]
    costed = costed.dropna(subset=["ciphertext_bytes"])
    if costed.empty:
        return None
    costed = _clipped(_with_values(costed, measure))
    sent = costed["ciphertext_bytes"].astype(float) + costed["index_bytes"] + costed["plain_bytes"]
    costed = costed.assign(kilobytes=sent / 1000, plain=4 * costed["num_total"] / 1000)
    grouped = costed.groupby(["panel", "curve", "ratio"], as_index=False)
    data = grouped[["kilobytes", "plain", measure]].mean().assign(num_cells=grouped.size()["size"])
    stem, digest = "cost_against_protection", _digest(data)
    if _is_drawn(folder, stem, digest):
        return stem
    panels, names = list(dict.fromkeys(data["panel"])), sorted(data["curve"].unique())
    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            part = data[(data["panel"] == panel) & (data["curve"] == name)].sort_values("ratio")
            axis.plot(part["kilobytes"], part[measure], color=_COLOURS[i % len(_COLOURS)], marker=_MARKERS[i % len(_MARKERS)], markersize=4, label=name)
        of_panel = data[data["panel"] == panel]
        plain = float(of_panel["plain"].iloc[0])
        axis.axvline(plain, color="black", linewidth=0.8, linestyle=":")
        is_high = of_panel.loc[of_panel["ratio"].idxmin(), measure] > 0.6 * data[measure].max()
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
        at: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "fontsize": 7, "bbox": behind, "ha": "center"}
        axis.text(plain, 0.35 if is_high else 0.8, "plain gradient", va="center", rotation=90, **at)
        # Shares that fill the same number of ciphertexts cost nearly the same, so their points lie above one another.
        means = of_panel.groupby("ratio")["kilobytes"].mean()
        for _, near in means.groupby((means.diff().abs() > 0.04 * means.max()).cumsum()):
            shares = f"{100 * near.index[0]:g}" if len(near) == 1 else f"{100 * near.index[0]:g} to {100 * near.index[-1]:g}"
            axis.text(float(near.mean()), 0.02, f"{shares} %", color="#57606a", **at)
        counts = of_panel["num_cells"]
        axis.set_title(f"{panel} (n = {_range(counts)})", fontsize=9)
        axis.set_xlabel("sent by a client in all (kB)")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
    # Room below the curves for the shares; all panels have one axis.
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low - 0.08 * (high - low), high)
    _label_rows(axes, _title(measure))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    _save_panels(figure, axes, folder, stem, digest)
    return stem


def levels_against_ratio(table: pd.DataFrame, folder: Path) -> str | None:
    """Draws the share of inputs that the attacks together read, one panel per setting and level; returns None if there is nothing to draw.

    Args:
      table: as `selgrad.report.verdicts.by_level` returns it.
      folder: where the figure is written.
    """
    data = table[table["num_cells"] > 0]
    if data.empty:
        return None
    stem, digest = "levels_against_ratio", _digest(data)
    if _is_drawn(folder, stem, digest):
        return stem
    several, selectors = data["setting"].nunique() > 1, data["selector"].nunique() > 1
    data = data.assign(curve=data["metric"] + (" / " + data["selector"] if selectors else ""))
    panels, names, ratios = list(data.groupby(["setting", "level"], sort=False)), sorted(data["curve"].unique()), sorted(data["ratio"].unique())
    figure, axes = _panels(len(panels))
    for axis, ((setting, level), part) in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            rows = part[part["curve"] == name].sort_values("ratio")
            x = rows["ratio"].map(_places(ratios)[0]).to_numpy(float) + _shift(ratios, i, len(names))
            bounds = np.asarray([wilson(int(row.read), int(row.num_cells)) for row in rows.itertuples()]).reshape(-1, 2)
            share = (rows["read"] / rows["num_cells"]).to_numpy(float)
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            axis.errorbar(
                x, 100 * share, 100 * np.abs(bounds.T - share), color=colour, marker=marker, markersize=4, linewidth=1.4, elinewidth=0.8, capsize=2, label=name
            )
        n = _range(part["num_cells"])
        axis.set_title(f"{setting}\n{level} (n = {n})" if several else f"{level} (n = {n})", fontsize=9)
        axis.set_ylim(-4, 104)
        _ratio_axis(axis, ratios)
    _label_rows(axes, "inputs read (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    _save_panels(figure, axes, folder, stem, digest)
    return stem


_LEVEL_COLOURS = {"exact": "#0072B2", "recognisable": "#D55E00", "attribute": "#009E73"}


def protecting(table: pd.DataFrame, folder: Path, stem: str = "protecting_ratios") -> str | None:
    """Draws the share of encrypted entries from which on nothing is read, by setting, metric and level, with its interval; None if there is nothing to draw.

    Args:
      table: as `selgrad.report.verdicts.protecting_by_level` returns it.
      folder: where the figure is written.
      stem: name of the figure.
    """
    if table.empty:
        return None
    digest = _digest(table)
    if _is_drawn(folder, stem, digest):
        return stem
    # Each level keeps its place and its mark, whichever of them a setting was asked for first.
    present = set(table["level"])
    panels, levels = list(table.groupby("setting", sort=False)), [level for level in _LEVEL_COLOURS if level in present]
    levels += sorted(present - set(levels))
    metrics = list(dict.fromkeys(table["metric"]))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, rows * (1.3 + 0.32 * len(metrics))), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for empty in axes[len(panels) :]:
        empty.set_axis_off()
    axes = axes[: len(panels)]
    for axis, (setting, part) in zip(axes, panels, strict=True):
        for k, level in enumerate(levels):
            colour = _LEVEL_COLOURS.get(level, _COLOURS[k % len(_COLOURS)])
            for row in part[part["level"] == level].itertuples():
                y = metrics.index(row.metric) + 0.22 * (k - (len(levels) - 1) / 2)
                low, high = 100 * min(row.low, 1.0), 100 * min(row.high, 1.0)
                axis.plot([low, high], [y, y], color=colour, linewidth=2)
                if not math.isnan(row.read_at):
                    # Shares in between were not measured.
                    axis.plot([100 * row.read_at, 100 * min(row.ratio, 1.0)], [y, y], color=colour, linewidth=0.9, linestyle=":")
                if math.isinf(row.ratio):
                    # The share lies beyond the largest one that was tried.
                    axis.plot([100], [y], marker=">", color=colour, markersize=6, clip_on=False)
                else:
                    marker = {"marker": _MARKERS[k % len(_MARKERS)], "markersize": 6, "markeredgecolor": colour}
                    axis.plot([100 * row.ratio], [y], color=colour if row.resolved else "white", linestyle="none", **marker)
        axis.set_yticks(range(len(metrics)), metrics)
        axis.set_ylim(len(metrics) - 0.5, -0.5)
        axis.set_xlim(0, 103)
        axis.grid(alpha=0.25, axis="x")
        counts = part.loc[part["num_inputs"] > 0, "num_inputs"]
        axis.set_title(f"{setting} (n = {_range(counts)})" if len(counts) else setting, fontsize=9)
        axis.set_xlabel("entries to encrypt (%)")
    lines = [Line2D([], [], color=_LEVEL_COLOURS.get(level, "grey"), marker=_MARKERS[k % len(_MARKERS)], linewidth=2) for k, level in enumerate(levels)]
    notes = {
        "more than was tried": Line2D([], [], color="grey", marker=">", linestyle="none"),
        "unresolved": Line2D([], [], color="white", marker="o", markeredgecolor="grey", linestyle="none"),
        "not measured": Line2D([], [], color="grey", linestyle=":", linewidth=0.9),
    }
    if table["read_at"].isna().all():
        del notes["not measured"]
    figure.legend([*lines, *notes.values()], [*levels, *notes], loc="outside lower center", ncols=min(3, len(levels) + len(notes)), frameon=False, fontsize=8)
    _save_panels(figure, axes, folder, stem, digest)
    return stem


def success_profiles(records: pd.DataFrame, folder: Path) -> str | None:
    """Draws the share of inputs on which the best attack passes each threshold, one panel per metric, one curve per ratio; None if there is nothing to draw."""
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
            profile = part[part["ratio"] == ratio].sort_values("threshold", ascending=not shown.lower_is_better)
            if len(profile):
                # All inputs pass a threshold below the worst of them, and none one above the best.
                x = np.concatenate([profile["threshold"], profile["threshold"].iloc[-1:]])
                y = np.concatenate([profile["share"], [0.0]])
                axis.step(
                    np.concatenate([[data["threshold"].max() if shown.lower_is_better else data["threshold"].min()], x]), [1.0, *y], where="pre", color=colour
                )
        axis.set_title(f"{setting}\n{curve}" if several else curve, fontsize=9)
        axis.set_xlabel(f"{shown.title}, at {'most' if shown.lower_is_better else 'least'}")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
    counts = data["num_inputs"]
    _label_rows(axes, f"share of inputs (n = {counts.min()}{'' if counts.min() == counts.max() else f' to {counts.max()}'})")
    lines = [Line2D([], [], color=colour) for colour in colours]
    figure.legend(lines, [f"{100 * ratio:g} % encrypted" for ratio in ratios], loc="outside lower center", ncols=min(4, len(ratios)), frameon=False, fontsize=9)
    _save_panels(figure, axes, folder, stem, digest)
    return stem


def _mosaic(truth: Any, rows: list[list[Any]], names: list[str], titles: list[str], below: list[list[str]]) -> Figure:
    """Draws the truth above rows of pictures of its shape, a word below each, all in one pair of axes: separate axes take ten times as long to draw."""
    height, width = truth.shape[:2]
    gap, above = -(-height // (6 if any(map(any, below)) else 16)), -(-height // 4)
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
    for i, words in enumerate(below):
        for j, word in enumerate(words):
            # From bad to good for the defence.
            colour = {"exact": "#a40e26", "recognisable": "#bc4c00", "attribute": "#57606a"}.get(word, "#1a7f37")
            axis.text(left(j) + width / 2 - 0.5, top(i + 1) + height, word, ha="center", va="top", fontsize=6.5, color=colour)
    for i, name in enumerate(names):
        axis.text(-0.12 * height, top(i + 1) + height / 2, name.replace("(", "\n("), ha="right", va="center", fontsize=7)
    return figure


def _levels_by_title(records: pd.DataFrame | None) -> dict[tuple[Any, ...], str]:
    """Returns the level that the attack reached on each kept input, by the titles of a gallery; for the first seed, as in galleries."""
    if records is None or "level" not in records:
        return {}
    first = records.drop_duplicates([*SETTING, "attack_label", "metric_label", "selector_label", "ratio", "sample"])
    keys = zip(setting_title(first), first["attack_label"], first["metric_label"], first["selector_label"], first["ratio"], first["sample"], strict=True)
    return dict(zip(keys, first["level"].astype(str), strict=True))


def galleries(out: Path, folder: Path, records: pd.DataFrame | None = None) -> list[str]:
    """Draws a gallery per attack and kept sample: the truth, and below it reconstructions by metric (rows) and ratio (columns), each with its level.

    Args:
      out: the sweep's folder.
      folder: where the figures are written.
      records: records of the sweep; without them pictures have no words.
    """
    levels = _levels_by_title(records)
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
        words = {
            (row.row, row.ratio): levels.get((row.title, row.attack, row.metric, row.selector, float(row.ratio), int(row.sample)), "")
            for row in cells.itertuples()
        }
        digest = _digest(cells, truth, sorted(words.items()), *(rows[i]["pixels"] for i in cells.index))
        if _is_drawn(folder, stem, digest):
            continue
        tiles = {(row.row, row.ratio): tile(rows[row.Index]["pixels"]) for row in cells.itertuples()}
        pictures = [[tiles.get((name, ratio)) for ratio in ratios] for name in names]
        below = [[words.get((name, ratio), "") for ratio in ratios] for name in names]
        figure = _mosaic(truth, pictures, names, [f"{100 * ratio:g} %" for ratio in ratios], below)
        figure.axes[0].set_title(f"{cells['title'].iloc[0]}: {attack}, sample {sample}", fontsize=9, pad=16)
        _save(figure, folder, stem, digest)
    return stems


def finite(value: float) -> bool:
    """Returns whether a table cell has a number to show."""
    return not math.isnan(value)


def mask_leaks(table: pd.DataFrame, folder: Path) -> str:
    """Draws three panels of bars, what masks reveal about labels, inputs and their support, by metric, selector and ratio; returns the file's stem."""
    names = table["metric"].astype(str)
    if table["selector"].nunique() > 1:
        names = names + ", " + table["selector"]
    table = table.assign(name=names)
    groups, ratios = list(dict.fromkeys(table["name"])), sorted(table["ratio"].unique())
    panels = [
        ("label_accuracy", "labels named right", "share of labels"),
        ("input_explained", "variance of inputs explained", "R²"),
        ("support_auc", "support of inputs", "area under the ROC curve"),
    ]
    panels = [panel for panel in panels if table[panel[0]].notna().any()]
    # The names to the left of the bars need room of their own.
    size = (2.8 * len(panels) + 0.075 * max(map(len, groups)), 1.1 + 0.13 * len(groups) * max(len(ratios), 2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    positions, height = np.arange(len(groups)), 0.8 / len(ratios)
    for axis, (column, title, unit) in zip(np.atleast_1d(axes), panels, strict=True):
        for k, ratio in enumerate(ratios):
            rows = table[table["ratio"] == ratio].set_index("name")[column].reindex(groups)
            axis.barh(positions + (k - (len(ratios) - 1) / 2) * height, rows, height, color=_COLOURS[k % len(_COLOURS)], label=f"{100 * ratio:g} % encrypted")
        guess = float(table["label_chance"].iloc[0]) if column == "label_accuracy" else 0.5 if column == "support_auc" else 0.0
        axis.axvline(guess, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"{unit}, n = {_range(table['num_samples'])}", fontsize=9)
        axis.margins(y=0.01)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(positions, groups)
    first.invert_yaxis()
    handles, labels = first.get_legend_handles_labels()
    handles, labels = [*handles, Line2D([], [], color="black", linewidth=0.8, linestyle=":")], [*labels, "guessing"]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    _save(figure, folder, "mask_leaks")
    return "mask_leaks"


def federation(records: pd.DataFrame, folder: Path) -> str:
    """Draws accuracy by round, and where a round's seconds and bytes go; returns the file's stem.

    Args:
      records: records of a federated run, one row per round.
      folder: where the figure is written.
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
    """Draws the smallest protecting ratio by metric, attack and rung, one grid per setting, worst rungs in bold; returns the file's stem.

    Args:
      table: as `protecting_ratios` returns it.
      folder: where the figure is written.
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
                # An attack that fails with nothing encrypted says nothing about the metric.
                never = row["ratio"] == 0
                if never:
                    axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="#eaeef2", edgecolor="#8c959f", hatch="///", linewidth=0))
                else:
                    values[i, j] = min(float(row["ratio"]), 1.0)
                text = "none" if math.isinf(row["ratio"]) else "fails" if never else f"{100 * row['ratio']:g}"
                weight = "bold" if row["worst"] and not never else "normal"
                axis.text(j, i, text, ha="center", va="center", fontsize=9, fontweight=weight, color="white" if values[i, j] > 0.7 else "black")
        image = axis.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(columns[setting])), [a.replace("_", "\n") + f"\n{h}" for a, h in columns[setting]], fontsize=8)
        axis.set_yticks(range(len(metrics)), metrics, fontsize=9)
        axis.set_title(setting, fontsize=10)
        axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=list(axes[:, 0]), location="bottom", shrink=0.6, aspect=40, pad=0.02)
    bar.set_label("share that has to be encrypted; hatched: the attack fails with nothing encrypted, which says nothing", fontsize=8)
    _save(figure, folder, "attacker_ladder")
    return "attacker_ladder"
