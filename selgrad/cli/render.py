"""The output side that commands share: JSON, a progress bar, tables and pictures.

Documents and text go to standard output, progress goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from selgrad.errors import SelgradError


def finite(value: Any) -> Any:
    """Returns a value as JSON can hold it, which knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


@contextlib.contextmanager
def progress(total: float | None = 100) -> Iterator[Callable[..., None]]:
    """Shows progress on standard error (`selgrad.terminal.progress`)."""
    from selgrad import terminal

    with terminal.progress(terminal.console(stderr=True), "compiling", total) as show:
        yield show


def print_summary(records: Any, out: Path) -> None:
    """Prints where a sweep's records and report lie and what stops each attack, as one JSON document."""
    from selgrad.report.verdicts import stopping_ratios

    stops = json.loads(stopping_ratios(records).to_json(orient="records"))
    click.echo(json.dumps({"out": str(out), "cells": len(records), "report": str(out / "report.html"), "stopping_ratios": stops}))


def write_audit(table: Any, out: Path) -> None:
    """Writes an audit's table as `audit.parquet` in a folder."""
    from selgrad import files

    files.write_table(out / "audit.parquet", table)


def print_leaks(table: Any) -> None:
    """Prints what masks reveal, one row per metric, selector and ratio."""
    from rich.table import Table

    from selgrad.terminal import wide

    shown = Table(
        title=f"what {'priority lists' if table['ordered'].iloc[0] else 'masks'} of {table['num_samples'].iloc[0]} samples tell of them, gradient values unseen"
    )
    for name in ("metric", "selector", "ratio"):
        shown.add_column(name, no_wrap=True)
    for name in ("label right", "(chance)", "label bits", "(of)", "inputs explained", "support AUC", "extra entries"):
        shown.add_column(name, justify="right")
    for row in table.itertuples():
        auc = "" if row.support_auc != row.support_auc else f"{row.support_auc:.2f}"
        shown.add_row(
            row.metric, row.selector, f"{row.ratio:g}", f"{row.label_accuracy:.0%}", f"{row.label_chance:.0%}", f"{row.label_bits:.2f}",
            f"{row.label_entropy:.2f}", f"{row.input_explained:.0%}", auc, f"{row.extra_entries:+.0%}",
        )  # fmt: skip
    wide(150).print(shown)


def print_levels(table: Any, suite: str) -> None:
    """Prints how many inputs are read at each level behind each mask, one row per metric, selector and ratio."""
    from rich.table import Table

    from selgrad.terminal import console

    levels = list(dict.fromkeys(table["level"]))
    shown = Table(title=f"inputs read by the strongest attack of {suite}, of those that it reads with nothing encrypted; at most (95 %)", title_justify="left")
    for name in ("metric", "encrypted"):
        shown.add_column(name, no_wrap=True)
    for level in levels:
        shown.add_column(level, justify="right")
    several = table["selector"].nunique() > 1
    for (metric, selector, ratio), rows in table.groupby(["metric", "selector", "ratio"], sort=False):
        of_level = {row.level: row for row in rows.itertuples()}
        cells = [_read_cell(of_level[level]) if level in of_level else "" for level in levels]
        shown.add_row(f"{metric} / {selector}" if several else str(metric), f"{ratio:.4g}", *cells)
    console().print(shown)


def _read_cell(row: Any) -> Any:
    from rich.text import Text

    from selgrad.report.verdicts import level_cell

    text, kind = level_cell(row)
    colour = {"attack failed": "dim", "read": "red", "unresolved": "yellow", "protected": "green"}[kind]
    return Text(text, style=colour)


def print_flags(raised: Any) -> None:
    """Prints what makes a verdict worth less than it looks."""
    for flag in raised:
        click.echo(f"{click.style('warning', fg='yellow')}  {flag.panel}: {flag.name}; {flag.detail}")


def print_recommendation(result: Any, out: Path) -> None:
    """Prints the answer, its cost, the alternatives, and how well it is supported."""
    from rich.table import Table

    from selgrad.terminal import wide

    question = result.question
    shown = Table(title=f"{result.title}: where at most {question.rate:.3g} of the inputs are {question.level} by {result.suite}", title_justify="left")
    for name in ("metric", "verdict", "ratio", "not enough at", "read", "at most", "visible per unknown", "kB a client", "seconds"):
        shown.add_column(name)
    money = lambda value, form: "" if value != value else format(value, form)
    for row in result.table.itertuples():
        open_cells = f", {row.unresolved} unresolved" if row.unresolved else ""
        shown.add_row(
            row.metric, row.verdict, money(row.ratio, ".4g"), f"{row.low:.4g}", f"{row.read} of {row.num_cells}{open_cells}", f"{row.bound:.1%}",
            money(row.visible_per_unknown, ".2g"), money(row.bytes / 1000, ",.0f"), money(row.seconds, ".3f"),
        )  # fmt: skip
    wide(120).print(shown)
    if result.chosen is None:
        click.echo("answer     none: no metric was shown to protect; more inputs, more weight draws or a larger budget may show one")
        if result.checked is None and (result.table["verdict"] == "unresolved").any():
            click.echo("           `--check standard` tries the cheapest that is unresolved with the attacks of that budget, if it is larger")
    else:
        best = result.table.iloc[0]
        if best["ratio"] == 1:
            partly = bool((result.table["verdict"] == "protected").any())
            why = "a part would do, but takes more bytes with the list of what is encrypted" if partly else "no part was shown to protect"
            click.echo(f"answer     encrypt everything; {why}")
        else:
            enough = f"of the inputs at most {best['bound']:.1%} are {question.level} ({question.rate:.3g} tolerated)"
            click.echo(f"answer     encrypt {best['ratio']:.4g} of the entries by {result.chosen}: {enough}; {best['low']:.4g} is not enough")
            if best["visible_per_unknown"] == 0:
                click.echo("           only zeros are visible there: longer or denser inputs may leave more to be seen, so ask again for those")
    for other in result.alternatives:
        click.echo(f"instead    {other.name}: {other.num_entries:,} entries, {other.bytes / 1000:,.0f} kB a client, {other.seconds:.3f} s; {other.about}")
    click.echo("instead    noise: `selgrad sweep` with protection: {name: dp_gaussian, noise: [...]} says how much stops the same attacks")
    if result.note:
        click.echo(f"costs      not measured: {result.note}")
    click.echo(f"searched   {result.num_cells:,} attacks; every attack on as many inputs at every ratio would have been {result.num_grid:,}")
    if result.checked is not None:
        checked = result.checked
        click.echo(
            f"checked    {checked.arm} at {checked.ratio:.4g}: {checked.verdict} on other inputs and weights, by {checked.suite}: "
            f"{checked.read} of {checked.num_cells} read, "
            f"{checked.unresolved} unresolved, at most {checked.bound:.1%} (exact)"
        )
    for name, why in result.left_out.items():
        click.echo(f"not run    {name}: {why}")
    print_flags(result.flags)
    click.echo(f"records    {out / 'search' / 'records'}\nanswer     {out / 'recommendation.json'}")


def save_pair(path: Path, truth: Any, reconstruction: Any) -> None:
    """Saves images and their reconstructions side by side, one row per image, as a PNG file.

    Raises:
      SelgradError: if the file cannot be written.
    """
    import numpy as np
    from PIL import Image

    rows = [np.concatenate([t, np.ones_like(t[:, :1]), r], axis=1) for t, r in zip(truth, reconstruction, strict=True)]
    pixels = np.rint(np.concatenate(rows).squeeze() * 255).astype(np.uint8)
    scale = max(1, 256 // max(truth.shape[1:3]))
    image = Image.fromarray(pixels)
    try:
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
    except (OSError, ValueError) as error:
        raise SelgradError(f"cannot write {str(path)!r} ({error}); give --out a file name that ends in .png in a folder that exists") from None
