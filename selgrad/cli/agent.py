"""`selgrad agent`: one configuration of a sweep, as an agent of Weights & Biases asks for it.

The axes of a YAML file become the parameters of a W&B sweep; `wandb agent` then starts this command for each point that its server chooses.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selgrad.cli.options import NAMED, PATH, Command, Entry, entry, json_option
from selgrad.cli.render import print_summary
from selgrad.errors import BusyError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from selgrad.config import SweepConfig
    from selgrad.registry import Spec


def _written(spec: Spec) -> str:
    """Writes an entry of a registry as the command line takes it."""
    arguments = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in spec.arguments if key in spec.given]
    return f"{spec.name}:{','.join(arguments)}" if arguments else spec.name


def _sweep_file(config: Path, out: Path) -> str:
    """Returns the file that `wandb sweep` reads: an axis with several values is a parameter, and all else stays in the configuration."""
    import yaml

    from selgrad import load_config
    from selgrad.report.groups import KINDS

    checked = load_config(config)
    parameters: dict[str, Any] = {}
    for kind in KINDS:
        values = [_written(spec) for spec in getattr(checked, kind)]
        if len(values) > 1:
            parameters[kind] = {"values": values}
    if len(checked.ratio) > 1:
        parameters["ratio"] = {"values": list(checked.ratio)}
    if not parameters:
        raise UsageError(f"{str(config)!r} has no axis with several values, so there is nothing to sweep over; give metric or ratio a list")
    content = {
        "program": "selgrad",
        "name": checked.name,
        "project": checked.wandb.project,
        "method": "grid",
        "metric": {"name": "success", "goal": "minimize"},
        "command": ["selgrad", "agent", str(config), "--out", str(out), "${args}"],
        "parameters": parameters,
    }
    return yaml.safe_dump(content, sort_keys=False)


def _computed(config: SweepConfig, folder: Path) -> pd.DataFrame:
    """Runs a sweep that other agents may want too, and waits for one that is at it."""
    from selgrad import run_sweep

    while True:
        try:
            return run_sweep(config, folder)
        except BusyError:
            click.echo(f"waiting for the process that runs what is needed with nothing encrypted, in {folder}", err=True)
            time.sleep(10)


@click.command(cls=Command)
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder under which each configuration has a folder of its own.")
@click.option("--write", "sweep_file", type=PATH, default=None, help="Write the file that `wandb sweep` reads, and run nothing.")
@click.option("--dataset", type=Entry("dataset"), default=None, help=f"{NAMED} in place of the configuration's; so are the following.")
@click.option("--model", type=Entry("model"), default=None, help=NAMED)
@click.option("--update", type=Entry("update"), default=None, help=NAMED)
@click.option("--protection", type=Entry("protection"), default=None, help=NAMED)
@click.option("--metric", type=Entry("metric"), default=None, help=NAMED)
@click.option("--selector", type=Entry("selector"), default=None, help=NAMED)
@click.option("--attack", type=Entry("attack"), default=None, help=NAMED)
@click.option("--ratio", type=float, default=None, help="Share of entries to encrypt.")
@json_option
def agent(config: Path, out: Path, sweep_file: Path | None, ratio: float | None, as_json: bool, **replaced: str | None) -> None:
    r"""Run one configuration of CONFIG (a YAML file), as `wandb agent` does.

    \b
    Once, from anywhere:
      selgrad agent CONFIG --out runs/agents --write wandb-sweep.yaml
      wandb sweep wandb-sweep.yaml
    On as many machines as there are, in the folder of CONFIG:
      wandb agent ENTITY/PROJECT/ID

    Every point is a run with flat configuration and summary (docs/wandb.md). What was computed under --out before is read and not computed again, and
    so is what the attack does with nothing encrypted, which says whether its failure means anything.
    WANDB_MODE=offline keeps the runs in files.
    """
    from selgrad import files, run_sweep
    from selgrad.config import parse, read_file
    from selgrad.report.groups import KINDS

    if sweep_file is not None:
        files.write_text(sweep_file, _sweep_file(config, out))
        click.echo(f"written: {sweep_file}; `wandb sweep {sweep_file}` starts the sweep and says how to start agents", err=True)
        return
    content = read_file(config)
    if not isinstance(content, dict):
        raise UsageError(f"configuration {str(config)!r} holds no mapping of keys; see docs/configuration.md")
    content |= {kind: entry(kind, text) for kind, text in replaced.items() if text is not None}
    checked = parse(content | ({} if ratio is None else {"ratio": ratio}))
    for kind in (*KINDS, "ratio"):
        values = getattr(checked, kind)
        if len(values) > 1:
            raise UsageError(f"{kind} has {len(values)} values and an agent runs one configuration; give --{kind}, or run all of them with `selgrad sweep`")
    # What an attack that fails with nothing encrypted says of a defence is nothing: all ratios share those cells.
    plain = parse(content | {"ratio": 0}) if checked.ratio != (0,) else None
    unencrypted = None if plain is None else _computed(plain, out / plain.identity)
    target = out / checked.identity
    records = run_sweep(checked, target, wandb=os.environ.get("WANDB_MODE", "online"), unencrypted=unencrypted)
    if as_json:
        print_summary(records, target)
