"""`selgrad sweep`: runs or continues the grid of a YAML file.

`selgrad.sweep` does the work and prints the plan and the progress.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, Command, entry, json_option, named_option, wandb_option
from selgrad.cli.render import print_summary


@click.command(cls=Command)
@click.argument("config", type=PATH)
@click.option("--out", required=True, help="Folder for records, figures and report, or a URL such as s3://bucket/run; continued if it holds this sweep.")
@named_option("engine", "local", ": who runs the blocks, local, ray or submitit; `selgrad list engine` shows their arguments.")
@wandb_option
@json_option
def sweep(config: Path, out: str, engine: str, wandb: str, as_json: bool) -> None:
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

    \b
    On a cluster (docs/clusters.md), from any of its machines:
      selgrad sweep CONFIG --out s3://bucket/run --engine ray:address=auto,gpus=1
      selgrad sweep CONFIG --out /shared/run --engine submitit:workers=16,gpus_per_node=1,slurm_partition=gpu
    """
    from selgrad import load_config, run_sweep

    records = run_sweep(load_config(config), out, engine=entry("engine", engine), wandb=wandb)
    if as_json:
        print_summary(records, Path(out))
