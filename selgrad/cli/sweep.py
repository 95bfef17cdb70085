"""`selgrad sweep`: runs or continues the grid of a YAML file.

`selgrad.sweep` does the work and prints the plan and the progress.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, json_option, wandb_option
from selgrad.cli.render import print_summary


@click.command()
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for records, figures and report; continued if it holds this sweep.")
@wandb_option
@json_option
def sweep(config: Path, out: Path, wandb: str, as_json: bool) -> None:
    r"""Run the grid that CONFIG (a YAML file) describes.

    \b
    Keys are names of registries; a mapping gives arguments; a list is an axis of the grid:
      dataset: {name: digits, count: 8}
      model: {name: lenet, activation: sigmoid}
      metric: [random, magnitude, {name: sensitivity, target: [labels, inputs]}]
      ratio: [0, 0.1, 0.5]
      attack: {name: idlg, num_steps: 100, hidden: [zero, ignore]}
      protection: [none, {name: dp_gaussian, noise: [0.001, 0.01]}]

    The plan is printed first. Records are written block by block; after Ctrl-C, a crash or SIGKILL the same command goes on where it
    stopped. `selgrad list` shows every name and argument.
    """
    from selgrad import load_config, run_sweep

    records = run_sweep(load_config(config), out, wandb=wandb)
    if as_json:
        print_summary(records, out)
