"""What commands have in common on the way out: JSON, a progress bar, tables and pictures.

Documents and text go to standard output, progress to standard error.
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
    """A value as JSON can hold it, which knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


@contextlib.contextmanager
def progress(total: float = 100) -> Iterator[Callable[..., None]]:
    """A bar on a terminal's standard error, and nothing elsewhere; what it gives takes `completed`, `total` and `description`."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=total)

        def show(**changes: Any) -> None:
            bar.update(task, **changes)

        yield show


def print_summary(records: Any, out: Path) -> None:
    """Where a sweep's records and report lie and what stops each attack, as one JSON document."""
    from selgrad.report.verdicts import stopping_ratios

    stops = json.loads(stopping_ratios(records).to_json(orient="records"))
    click.echo(json.dumps({"out": str(out), "cells": len(records), "report": str(out / "report.html"), "stopping_ratios": stops}))


def write_audit(table: Any, out: Path) -> None:
    """A table of an audit as `audit.parquet` in a folder."""
    from selgrad.devices import write_atomically

    write_atomically(out / "audit.parquet", lambda path: table.to_parquet(path, index=False))


def print_leaks(table: Any) -> None:
    """What masks tell, one row per metric, selector and ratio."""
    from rich.console import Console
    from rich.table import Table

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
    Console(width=max(150, Console().width)).print(shown)


def save_pair(path: Path, truth: Any, reconstruction: Any) -> None:
    """Images and what was found of them side by side, one row an image, as a PNG file.

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
