"""Tracking: one small protocol, with Weights & Biases behind it, or nothing.

Plain files (Parquet records, figures) are always written by the sweep itself; a tracker only mirrors them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from selgrad import measures
from selgrad.errors import SelgradError, UsageError
from selgrad.measures import Measure

if TYPE_CHECKING:
    import pandas as pd

MODES = ("disabled", "offline", "online")
MOST_ROWS = 10_000
"""Of a table in W&B; of more cells the record files are an artifact."""


@runtime_checkable
class Tracker(Protocol):
    """Mirrors a sweep somewhere else."""

    def open(self, attacks: Sequence[str]) -> None:
        """Before anything runs, so that a missing login is found at once."""
        ...

    def block(self, attack: str, records: pd.DataFrame) -> None:
        """One finished block."""
        ...

    def finish(self, records: pd.DataFrame, figures: Path) -> None:
        """The whole sweep: the per-cell table, curves and pictures."""
        ...

    def log(self, values: Mapping[str, Any]) -> None:
        """Numbers of one step of something that is no sweep."""
        ...

    def close(self) -> None:
        """Ends all runs."""
        ...


class NoTracker:
    """Mirrors nothing."""

    def open(self, attacks: Sequence[str]) -> None:
        """Does nothing."""

    def block(self, attack: str, records: pd.DataFrame) -> None:
        """Does nothing."""

    def finish(self, records: pd.DataFrame, figures: Path) -> None:
        """Does nothing."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _summarised(records: pd.DataFrame) -> list[Measure]:
    """What the records measure: of images, of text, or of both."""
    return [one for one in measures.held(records, lambda measure: measure.summary) if records[one.name].notna().any()]


class WandbTracker:
    """Weights & Biases: one run per sweep, or one per attack in a common group.

    Args:
      mode: "offline" or "online".
      folder: where W&B keeps its files.
      name, run_id: of the sweep; the same id continues the same run.
      config: the sweep's configuration.
      settings: `project`, `entity`, `group`, `tags`, `runs`.
    """

    def __init__(self, mode: str, folder: Path, name: str, run_id: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        self._mode, self._folder, self._name, self._run_id = mode, folder, name, run_id
        self._config, self._settings = dict(config), settings
        self._runs: dict[str, Any] = {}

    def _run(self, attack: str) -> Any:
        split = self._settings["runs"] == "attack"
        key = attack if split else ""
        if key not in self._runs:
            try:
                self._runs[key] = self._wandb.init(
                    project=self._settings["project"],
                    entity=self._settings["entity"],
                    group=self._settings["group"] or (self._name if split else None),
                    tags=[*self._settings["tags"], *([attack] if split else [])],
                    name=f"{self._name}-{attack}" if split else self._name,
                    id=f"{self._run_id}-{attack}" if split else self._run_id,
                    config=self._config,
                    mode=self._mode,
                    dir=str(self._folder),
                    resume="allow" if self._mode == "online" else None,
                    reinit="create_new",
                    settings=self._wandb.Settings(silent=True, console="off"),
                )
            except self._wandb.errors.Error as error:
                reason = str(error).splitlines()[0]
                raise SelgradError(f"W&B did not start: {reason}; log in with `wandb login`, or use --wandb offline") from None
        return self._runs[key]

    def open(self, attacks: Sequence[str]) -> None:
        """Starts the run, or one per attack."""
        for attack in attacks:
            self._run(attack)

    def block(self, attack: str, records: pd.DataFrame) -> None:
        """Logs a block's mean quality."""
        means = records[[*(one.name for one in _summarised(records)), "label_correct"]].astype(float).mean()
        protection = records["protection_label"].iloc[0]
        line = attack if protection == "none" else f"{attack} under {protection}"
        self._run(attack).log({f"{line}/{name}": value for name, value in means.items()} | {"cells": len(records)})

    def finish(self, records: pd.DataFrame, figures: Path) -> None:
        """Logs the per-cell table, a curve per metric and attack, and every figure."""
        import pandas as pd

        from selgrad.report.tables import attack_label, metric_label  # reads records only

        split, many = self._settings["runs"] == "attack", len(records) > MOST_ROWS
        for number, (attack, cells) in enumerate(records.groupby("attack") if split else [("", records)]):
            run = self._run(str(attack))
            if not many:
                self._log_cells(run, cells)
            elif number == 0:
                self._log_files(run, len(records))
            # A sweep over images and text has both.
            shown = _summarised(cells)
            names = [one.name for one in shown]
            labelled = {"panel": attack_label(cells), "curve": metric_label(cells), "ratio": cells["ratio"]}
            few = pd.DataFrame({**labelled, **{name: cells[name].astype(float) for name in names}})
            means = few.groupby(["panel", "curve", "ratio"])[names].mean().reset_index()
            means.insert(0, "line", means["panel"] + ": " + means["curve"])
            table = self._wandb.Table(dataframe=means)
            lines = {
                "curves" if one.reads == "images" else "curves_text": self._wandb.plot.line(
                    table, "ratio", one.name, stroke="line", title=f"{one.name} against ratio"
                )
                for one in shown
                if one.headline
            }
            run.log({**lines, "curves_table": table})
            for picture in sorted(figures.glob("*.png")):
                run.log({f"figures/{picture.stem}": self._wandb.Image(str(picture))})
        self.close()

    def _log_cells(self, run: Any, cells: pd.DataFrame) -> None:
        # W&B's tables know no nullable integers; a missing cost becomes NaN.
        plain = cells.astype({name: "float64" for name, dtype in cells.dtypes.items() if str(dtype) == "Int64"})
        run.log({"cells_table": self._wandb.Table(dataframe=plain)})

    def _log_files(self, run: Any, num_cells: int) -> None:
        """The record files as they are: a table is kept as text, row by row."""
        artifact = self._wandb.Artifact(f"records-{self._run_id}", type="records", metadata={"cells": num_cells})
        artifact.add_dir(str(self._folder / "records"))
        run.log_artifact(artifact)

    def log(self, values: Mapping[str, Any]) -> None:
        """Logs what is a number."""
        self._run("").log({key: value for key, value in values.items() if isinstance(value, int | float)})

    def close(self) -> None:
        """Ends all runs."""
        for run in self._runs.values():
            run.finish()


def make_tracker(mode: str, folder: Path, name: str, run_id: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Tracker:
    """The tracker for a mode of `MODES`.

    Raises:
      UsageError: for another mode.
    """
    if mode not in MODES:
        raise UsageError(f"wandb mode {mode!r} is none of {', '.join(MODES)}")
    return NoTracker() if mode == "disabled" else WandbTracker(mode, folder, name, run_id, config, settings)
