"""`selgrad federate`: federated averaging with selective encryption, simulated or written as a Flower app.

`selgrad.federation` does the work.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, Command, wandb_option
from selgrad.errors import SelgradError


@click.command(cls=Command)
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, help="Folder for records, checkpoints and figures.  [default: selgrad-runs/NAME]")
@wandb_option
@click.option("--app", type=PATH, help="Write a Flower app there for a deployment instead of running: flwr run FOLDER.")
def federate(config: Path, out: Path | None, wandb: str, app: Path | None) -> None:
    r"""Run federated averaging with selective encryption in Flower's simulation engine. CONFIG is a YAML file.

    The same command goes on where an interrupted run stopped. Every key has a default:

    \b
    dataset: {name: digits, count: 1200}
    test: {name: digits, count: 500, offset: 1200}
    model: {name: cnn, width: 16}
    clients: {count: 5, alpha: 0.5}
    rounds: 5
    local: {num_steps: 10, batch_size: 32, learning_rate: 0.1}
    metric: magnitude
    ratio: 0.1
    agreement: vote          # fixed | union | interleaved | encrypted_sensitivity
    protection: selective    # full | none | {name: pruning, ratio: 0.9} | {name: dp_gaussian, noise: 0.003} | {name: quantised, bits: 8}
    encryption: {profile: exact}
    """
    from selgrad.federation.config import load
    from selgrad.federation.run import federate as run
    from selgrad.federation.run import summary, write_app
    from selgrad.terminal import wide

    checked = load(config)
    target = out or Path("selgrad-runs") / checked.name
    if app is not None:
        submitted, enrolled = write_app(checked, app, target)
        click.echo(f'give {enrolled / "N"} to participant N alone, who starts its node with enrolment="FOLDER" in --node-config; then: flwr run {submitted}')
        return
    records = run(checked, target, wandb=wandb)
    wide(130).print(summary(records))
    click.echo(f"records: {target / 'rounds.parquet'}\nevents:  {target / 'events.parquet'}\nfigure:  {target / 'figures' / 'federation.png'}")
    if not all(same for same in records["verified"] if same is not None):
        raise SelgradError(
            "a round's weights differ from plain FedAvg by more than the quantisation bound; were entries clipped? see `clipped`, and raise bound"
        )
