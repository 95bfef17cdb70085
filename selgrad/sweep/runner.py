"""Runs a sweep from start to report, with the plan, a progress bar and the summary on a terminal.

The command line and `selgrad.run_sweep` both come here; everything else about a sweep is in `selgrad.sweep`.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from selgrad import terminal
from selgrad.config import SweepConfig, parse, settings
from selgrad.registry import Spec
from selgrad.report.page import make_report
from selgrad.report.tables import read_records, same_masks
from selgrad.report.verdicts import stopping_ratios, verdict_grid


def summary_table(records: pd.DataFrame, out: Path) -> Table:
    """Returns a table of the smallest ratio that stops each attack, one row per metric and one column per attack."""
    header, grid = verdict_grid(stopping_ratios(records), same_masks(out))
    table = Table(title="Smallest measured ratio that stops the attack", title_justify="left")
    for column in header:
        table.add_column(column, overflow="fold")
    for row in grid:
        table.add_row(*row)
    return table


def run_sweep(
    config: SweepConfig | Mapping[str, Any], out: str | Path, *, engine: Any = "local", wandb: str = "disabled", quiet: bool = False,
    console: Console | None = None, unencrypted: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Runs or continues a sweep in a folder.

    Args:
      config: a parsed configuration, or a mapping as the YAML file holds it.
      out: folder for `config.yaml`, `records/`, `figures/`, `report.html`, or a URL that fsspec reaches.
      engine: who runs the blocks: a name, or a mapping of `name` and arguments, as `selgrad list engine` shows them.
      wandb: "disabled", "offline" or "online".
      quiet: print nothing.
      console: where to print; standard error by default.
      unencrypted: records of the same attacks with nothing encrypted, where they are not cells of this sweep, for the outcomes that W&B shows.

    Returns:
      The records, one row per cell.

    Raises:
      UsageError: if the configuration is not valid or the folder holds another sweep.
      SelgradError: if a file, a ciphertext or the disk fails.
    """
    from selgrad import devices

    devices.configure()
    from selgrad.sweep import Sweep
    from selgrad.sweep.executors.local import Local
    from selgrad.sweep.executors.protocol import Executor
    from selgrad.sweep.plan import group_sizes
    from selgrad.tracking import make_tracker

    screen = console or terminal.console(stderr=True, quiet=quiet)
    say = functools.partial(screen.print, markup=False)
    checked = config if isinstance(config, SweepConfig) else parse(config)
    executor: Executor = Spec.of("engine", engine).build()
    # Other executors compute on devices that this process does not see.
    is_here = isinstance(executor, Local)
    with terminal.status(screen, "loading data and models"):
        sweep = Sweep(checked, out)
    with contextlib.closing(executor), sweep.lock():
        tracker = make_tracker(wandb, sweep.out, checked.name, sweep.run_id, checked.to_dict(), checked.wandb.model_dump())
        tracker.open()
        with terminal.status(screen, "planning") as tell:
            plan = executor.plan(sweep, lambda line: tell(f"planning: {line}"))
        waiting = sweep.missing(plan.blocks)
        say(
            f"{checked.name}: {plan.num_cells:,} cells in {len(plan.blocks)} blocks of {plan.num_programs} compiled programs; "
            f"{plan.num_cells - sum(b.num_cells for b in waiting):,} cells already done"
        )
        where = f"on {devices.described()}: " if is_here else ""
        say(
            f"{where}at most {plan.memory_bytes / 1e6:,.0f} MB at once, compiled in {terminal.duration(plan.compile_seconds)}, "
            f"attacks take about {terminal.duration(plan.seconds)}; records go to {sweep.out / 'records'}"
        )
        if is_here and (unusual := devices.numerical_settings()):
            say(f"JAX is set to {unusual}: results differ from those of its defaults, and records name it (jax_settings)", style="yellow", soft_wrap=True)
        if is_here and (idle := devices.unused_accelerator()):
            say(idle, style="yellow", soft_wrap=True)
        with terminal.status(screen, "measuring the encryption") as tell:
            costs = sweep.costs(on_event=tell)
        if sweep.encryption_note is not None:
            say(f"cost columns stay empty: {sweep.encryption_note}", style="yellow", soft_wrap=True)
        elif costs:
            clipped = sum(cost.num_clipped for cost in costs.values())
            note = f"; {clipped:,} entries lay beyond the public bound and were clipped (encryption: bound)" if clipped else ""
            say(f"round trip proven on {len(costs)} selections of real gradient entries: every decrypted integer equals the plain sum{note}")
        if wandb != "disabled":
            finished = read_records(sweep.out) if len(waiting) < len(plan.blocks) else None
            tracker.begin(group_sizes(plan.blocks, list(settings(checked))), finished, unencrypted)
        started = time.perf_counter()
        with terminal.progress(screen, "starting", plan.num_cells, unit="cells") as show:
            on_progress = lambda cells, line: show(advance=cells, description=line)
            executor.run(sweep, plan, costs, lambda _, records: tracker.block(records), on_progress)
        attacked = time.perf_counter()
        sweep.folder.compact()
        records = read_records(sweep.out)
        with terminal.status(screen, "drawing the report"):
            page = make_report(sweep.out)
            tracker.finish(records)
            sweep.folder.publish()
        say(summary_table(records, sweep.out))
        if waiting:
            say(f"attacks took {terminal.duration(attacked - started)}, with the compilation of their programs")
        if sweep.place != str(sweep.out.absolute()):
            say(f"all of it lies at {sweep.place}, and a copy here:", soft_wrap=True)
        say(f"figures: {sweep.out / 'figures'}\nreport:  {page}\nrecords: {sweep.out / 'records'}", soft_wrap=True)
    return records
