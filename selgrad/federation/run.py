"""Runs a federated configuration from start to figures, with a progress bar and a summary, and writes the folder that a deployment is submitted from.

Both `selgrad federate` and `selgrad.federate` call this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from selgrad import files
from selgrad.federation.config import FederationConfig, parse
from selgrad.report.figures import federation
from selgrad.terminal import progress


def federate(config: FederationConfig | Mapping[str, Any], out: str | Path, *, wandb: str = "disabled", quiet: bool = False) -> pd.DataFrame:
    """Runs or continues a federated run in Flower's simulation engine.

    Args:
      config: parsed, or a mapping as the YAML file holds it.
      out: folder for `config.yaml`, `rounds.parquet`, `events.parquet`, `checkpoints/` and `figures/`.
      wandb: "disabled", "offline" or "online".
      quiet: print nothing.

    Returns:
      One row per round.

    Raises:
      UsageError: if the configuration is not valid, Flower is missing, or the folder holds another run.
      SelgradError: if a participant that holds keys is gone, or the disk fails.
    """
    from selgrad import devices

    devices.configure()
    from selgrad.federation.flower import quiet_flower
    from selgrad.federation.learning import task_of

    quiet_flower()
    checked = config if isinstance(config, FederationConfig) else parse(config)
    folder = Path(out)
    task_of(checked.text)
    with files.locked(folder, "federated run"):
        records = _served(checked, folder, wandb, quiet)
    federation(records, folder / "figures")
    return records


def _served(checked: FederationConfig, folder: Path, wandb: str, quiet: bool) -> pd.DataFrame:
    """Runs the rounds in a folder that this process has locked."""
    from selgrad.federation.enrolment import read_public
    from selgrad.federation.journal import adopt
    from selgrad.federation.server import Server
    from selgrad.federation.simulation import lasting_console, simulate
    from selgrad.tracking import make_tracker

    adopt(checked, folder)
    files.sweep_up(folder)
    run_id = hashlib.sha256(f"{checked.identity}{folder.absolute()}".encode()).hexdigest()[:12]
    tracker = make_tracker(wandb, folder, checked.name, run_id, checked.to_dict(), {**checked.wandb.model_dump(), "runs": "sweep"})
    tracker.open()
    on_round = lambda row: tracker.log(row, int(row["round"]))
    with lasting_console(quiet) as screen, progress(screen, "starting Flower's workers", 1.0) as show:

        def on_event(line: str, share: float) -> None:
            if share >= 0:
                show(completed=share, description=line)
            else:
                screen.print(line)

        enrolled = _enrolled(checked, folder / "enrolment")
        server = Server(checked, read_public(enrolled), folder, on_event, on_round)
        for row in server.records().to_dict("records"):
            on_round(row)
        try:
            # A run that is already finished needs no workers.
            records = server.records() if server.is_done() else simulate(checked, enrolled, server.run)
        finally:
            tracker.close()
    return records


def _enrolled(config: FederationConfig, folder: Path) -> Path:
    """The folder of all participants' enrolments, made once: a resumed run has the same keys, and participants remember what they answered."""
    from selgrad.federation.enrolment import enrol, read_public, write

    if (folder / "public.json").exists() and read_public(folder).fingerprint == config.fingerprint:
        return folder
    return write(enrol(config), folder)


def summary(records: pd.DataFrame) -> Table:
    """A table with one row per round: accuracy, whether the step equals plain FedAvg's, seconds and bytes."""
    table = Table(
        "round", "clients", "accuracy", "equals FedAvg", "train", "encrypt", "add", "decrypt", "plain", "encrypted", title="Rounds", title_justify="left"
    )
    size = lambda n: f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB" if n >= 1e3 else f"{n:.0f} B"
    duration = lambda s: f"{s:.1f} s" if s >= 1 else f"{1000 * s:.0f} ms"
    for row in records.to_dict("records"):
        unknown = row["verified"] is None or row["verified"] != row["verified"]
        same = "not checked" if unknown else f"{'yes' if row['verified'] else 'NO'} ({row['difference']:.1e})"
        seconds = [duration(row[f"{name}_seconds"]) for name in ("train", "encrypt", "add", "decrypt")]
        table.add_row(str(row["round"]), str(row["num_clients"]), f"{row['accuracy']:.1%}", same, *seconds, size(row["plain_bytes"]), size(row["sealed_bytes"]))
    return table


def write_app(config: FederationConfig, folder: str | Path, out: str | Path) -> tuple[Path, Path]:
    """Writes what a deployment needs: the folder that `flwr run` submits, and next to it one private folder per participant, for its owner alone.

    Args:
      config: of the run.
      folder: to write; it gets a `pyproject.toml` that names our apps, and the configuration. It holds nothing secret.
      out: where the server is to keep its records; made absolute, as a path on its machine.

    Returns:
      The folder, and the folder of the enrolments, `FOLDER-enrolment`.
    """
    from selgrad.federation.enrolment import read_public

    target = Path(folder).absolute()
    enrolled = _enrolled(config, target.with_name(f"{target.name}-enrolment"))
    public = read_public(enrolled)
    files.write_text(target / "federation.yaml", config.text)
    files.write_text(
        target / "pyproject.toml",
        f"""[project]
name = "selgrad-run"
version = "1.0.0"
description = "A federated run of selgrad"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "selgrad"

[tool.flwr.app.components]
serverapp = "selgrad.federation.apps:server_app"
clientapp = "selgrad.federation.apps:client_app"

[tool.flwr.app.config]
config = "{target / "federation.yaml"}"
out = "{Path(out).absolute()}"
run = "{public.run}"
fingerprint = "{public.fingerprint}"
key_tag = "{public.key_tag}"
""",
    )
    return target, enrolled
