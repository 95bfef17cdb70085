"""Tracking: one small protocol, implemented by Weights & Biases or by a tracker that does nothing.

Plain files (Parquet records, figures) are always written by the sweep itself; a tracker only mirrors them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from selgrad import files, measures
from selgrad.errors import SelgradError, UsageError, first_line
from selgrad.measures import Measure

if TYPE_CHECKING:
    import pandas as pd

    from selgrad.report.groups import Key

MODES = ("disabled", "offline", "online")
MOST_ROWS = 10_000
"""The most rows of a table in W&B; with more cells, the records are uploaded only as an artifact."""
MOST_RUNS = 1_000
"""The most runs of one sweep; beyond this, there is one run per attack."""


@runtime_checkable
class Tracker(Protocol):
    """Mirrors a sweep, or a federated run, to another service."""

    def open(self) -> None:
        """Called before anything runs, so that a missing login is noticed at once."""
        ...

    def begin(self, sizes: Mapping[Key, int], records: pd.DataFrame | None, unencrypted: pd.DataFrame | None = None) -> None:
        """Called once the sweep is planned.

        Args:
          sizes: number of cells of each group of `selgrad.report.groups`.
          records: finished before.
          unencrypted: records of the same attacks with nothing encrypted, from elsewhere.
        """
        ...

    def block(self, records: pd.DataFrame) -> None:
        """Logs one finished block."""
        ...

    def finish(self, records: pd.DataFrame) -> None:
        """Logs the whole sweep: tables, curves, figures and files."""
        ...

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Logs numbers and texts of one step of a run that is not a sweep; a resumed run logs its earlier steps again."""
        ...

    def close(self) -> None:
        """Ends all runs."""
        ...


class NoTracker:
    """Mirrors nothing."""

    def open(self) -> None:
        """Does nothing."""

    def begin(self, sizes: Mapping[Key, int], records: pd.DataFrame | None, unencrypted: pd.DataFrame | None = None) -> None:
        """Does nothing."""

    def block(self, records: pd.DataFrame) -> None:
        """Does nothing."""

    def finish(self, records: pd.DataFrame) -> None:
        """Does nothing."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _summarised(records: pd.DataFrame) -> list[Measure]:
    """The summary measures that the records contain, of images, text or both."""
    return [measure for measure in measures.held(records, lambda measure: measure.summary) if records[measure.name].notna().any()]


class WandbTracker:
    """Logs to Weights & Biases: a run for each group of cells (or each attack), and one for the whole sweep, in a common group.

    What was logged is recorded next to W&B's own files, so that a resumed sweep logs nothing twice. Offline, a run has only one folder even after
    interruptions: a run that is logged again replaces its earlier folder.

    Args:
      mode: "offline" or "online".
      folder: of the sweep, where W&B keeps its files too.
      name, run_id: of the sweep; the same id continues the same runs.
      config: the configuration, nested.
      settings: `project`, `entity`, `group`, `tags`, `runs`.
    """

    def __init__(self, mode: str, folder: Path, name: str, run_id: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        from selgrad.report.groups import KINDS, flat

        self._wandb = importlib.import_module("wandb")
        self._mode, self._folder, self._name, self._run_id, self._settings = mode, folder, name, run_id, settings
        axes = {key: value for key, value in config.items() if key in (*KINDS, "ratio") and isinstance(value, list)}
        names = lambda entries: [entry["name"] if isinstance(entry, Mapping) else entry for entry in entries]
        self._common = flat({key: value for key, value in config.items() if key not in (*axes, "wandb", "name")})
        # Under keys of their own, so that a panel over all runs does not take the whole sweep for one more configuration.
        self._config = {**self._common, **flat({"axes": {key: names(entries) for key, entries in axes.items()}})}
        self._kind = "sweep" if axes else "run"
        self._runs_of = str(settings["runs"])
        # A W&B agent has already made a run, and names it in the environment.
        self._is_agents = "WANDB_SWEEP_ID" in os.environ
        if self._is_agents:
            self._run_id = os.environ.get("WANDB_RUN_ID", run_id)
        self._main: Any = None
        self._groups: Any = None
        self._images: Any = None
        self._unencrypted: pd.DataFrame | None = None
        self._logged: dict[str, int] = {}
        with contextlib.suppress(SelgradError):
            # If the file is damaged or missing, everything is logged again under the same ids.
            self._logged = files.read_json(self._ledger)["runs"]

    @property
    def _ledger(self) -> Path:
        return self._folder / "wandb" / "logged.json"

    def _note(self, run_id: str, count: int) -> None:
        self._logged[run_id] = count
        files.write_json(self._ledger, {"runs": self._logged})

    def _init(self, run_id: str, name: str, config: Mapping[str, Any], kind: str, tags: list[str], watched: bool) -> Any:
        """Starts a run; `watched` is whether W&B records system metrics for it."""
        if self._mode == "offline":
            for old in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
                shutil.rmtree(old)
        try:
            return self._wandb.init(
                project=None if self._is_agents else self._settings["project"],
                entity=None if self._is_agents else self._settings["entity"],
                group=self._settings["group"] or self._name,
                job_type=kind,
                tags=[*self._settings["tags"], *tags],
                name=name,
                id=run_id,
                config=dict(config),
                mode=self._mode,
                dir=str(self._folder),
                resume="allow" if self._mode == "online" else None,
                reinit="create_new",
                settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=not watched, x_disable_meta=not watched),
            )
        except self._wandb.errors.Error as error:
            reason = first_line(error)
            raise SelgradError(f"W&B did not start: {reason}; log in with `wandb login`, or use --wandb offline") from None

    def _main_run(self) -> Any:
        """The run of the whole sweep, or of a federated run; started on first use."""
        if self._main is None:
            self._main = self._init(self._run_id, self._name, self._config, self._kind, [], watched=True)
        return self._main

    def open(self) -> None:
        """Starts the main run if it needs a login; offline it starts when there is something to log."""
        if self._mode == "online":
            self._main_run()

    def begin(self, sizes: Mapping[Key, int], records: pd.DataFrame | None, unencrypted: pd.DataFrame | None = None) -> None:
        """Logs the groups that were finished before but not logged yet."""
        from selgrad.report.gallery import Images
        from selgrad.report.groups import Groups

        self._unencrypted = unencrypted
        if self._runs_of == "cell_group" and len(sizes) > MOST_RUNS:
            warnings.warn(f"{len(sizes):,} groups of cells would be as many runs in W&B; there is one an attack instead (wandb: runs)", stacklevel=2)
            self._runs_of = "attack"
        if self._runs_of == "cell_group" and len(sizes) > 1:
            self._groups, self._images = Groups(sizes), Images(self._folder)
            if records is not None:
                self._log_groups(records)

    def block(self, records: pd.DataFrame) -> None:
        """Logs the groups that this block completes; online, it also logs the sweep's progress."""
        if self._groups is not None:
            self._log_groups(records)
        if self._mode == "online":
            means = records[[measure.name for measure in _summarised(records)]].astype(float).mean()
            first = records.iloc[0]
            line = str(first["attack"]) if first["protection_label"] == "none" else f"{first['attack']} under {first['protection_label']}"
            self._main_run().log({f"{line}/{name}": value for name, value in means.items()} | {"cells": len(records)})

    def _log_groups(self, records: pd.DataFrame) -> None:
        from selgrad.report.gallery import kept_sentences

        texts: list[dict[str, Any]] | None = None
        for key, cells in self._groups.add(records):
            run_id = hashlib.sha256(f"{self._run_id}{json.dumps(key)}".encode()).hexdigest()[:12]
            if self._logged.get(run_id) != len(cells):
                if texts is None:
                    self._images.update()
                    texts = kept_sentences(self._folder)
                self._log_group(run_id, cells, texts)

    def _log_group(self, run_id: str, cells: pd.DataFrame, texts: list[dict[str, Any]]) -> None:
        from selgrad.report.groups import description, summary, title

        run = self._init(run_id, title(cells), {**self._common, **description(cells)}, "cells", [str(cells["attack"].iloc[0])], watched=False)
        run.log({**summary(cells), **self._reconstructions(cells, texts)}, step=0)
        run.finish()
        self._note(run_id, len(cells))

    def _reconstructions(self, cells: pd.DataFrame, texts: list[dict[str, Any]]) -> dict[str, Any]:
        """The stored reconstructions of a group, each next to its truth: images, or a table of sentences."""
        import numpy as np

        from selgrad.report.gallery import tile
        from selgrad.report.groups import shown_as

        titles, images = shown_as(cells), []
        group_texts = [text for text in texts if all(text[name] == value for name, value in titles.items())]
        rows = [[text["sample"], *pair] for text in group_texts for pair in zip(text["truth"], text["found"], strict=True)]
        if rows:
            return {"sentences": self._wandb.Table(["sample", "truth", "found"], rows)}
        for row in self._images.of(**titles):
            truth = self._images.truth(row)
            if truth is not None:
                verdict = cells[cells["sample"] == int(row["sample"])]["level"].iloc[0]
                caption = f"sample {int(row['sample'])}: truth, found ({verdict})"
                images.append(self._wandb.Image(np.hstack([tile(truth), tile(row["pixels"])]), caption=caption))
        return {"reconstructions": images} if images else {}

    def finish(self, records: pd.DataFrame) -> None:
        """Logs the sweep's tables, curves, figures and files if anything is new, and ends all runs."""
        if self._logged.get(self._run_id) != len(records):
            if self._runs_of == "attack":
                for attack, cells in records.groupby("attack"):
                    self._log_attack(str(attack), cells)
            run = self._main_run()
            self._log_cells(run, records)
            self._log_verdicts(run, records)
            for picture in sorted((self._folder / "figures").glob("*.png")):
                run.log({f"figures/{picture.stem}": self._wandb.Image(str(picture))})
            self._log_files(run, records)
            self.close()
            self._note(self._run_id, len(records))
        self.close()

    def _log_attack(self, attack: str, cells: pd.DataFrame) -> None:
        """Logs a run for one attack: scalars such as `success/magnitude` against `ratio`, the smallest ratio that stops it by each metric, and its cells."""
        from selgrad.report.groups import common_description, curves
        from selgrad.report.verdicts import stopping_ratios

        config = {**self._config, "attack": attack, **common_description(cells)}
        run = self._init(f"{self._run_id}-{attack}", f"{self._name}-{attack}", config, "attack", [attack], watched=False)
        run.define_metric("ratio", hidden=True)
        steps = list(curves(cells))
        # Costs of the encryption are not there at ratio 0.
        for name in dict.fromkeys(key.partition("/")[0] for scalars in steps for key in scalars if "/" in key):
            run.define_metric(f"{name}/*", step_metric="ratio")
        for scalars in steps:
            run.log(scalars)
        stopping = stopping_ratios(cells)
        stopped = stopping[stopping["verdict"].str.startswith("stopped")]
        curve = stopped["curve"] if stopping["panel"].nunique() == 1 else stopped["panel"] + ": " + stopped["curve"]
        for name, row in zip(curve, stopped.itertuples(), strict=True):
            run.summary.update({f"stopping_ratio/{name}": float(row.ratio), f"stopping_cells/{name}": row.num_cells, f"stopping_upper/{name}": row.upper})
        self._log_cells(run, cells)
        run.finish()

    def _log_cells(self, run: Any, records: pd.DataFrame) -> None:
        """Logs the table of cells, a curve for each metric and attack, and, if there is only one group, its scalars."""
        import pandas as pd

        from selgrad.report.groups import description, judged, sizes_of, summary
        from selgrad.report.tables import attack_label, metric_label

        if len(records) <= MOST_ROWS:
            # W&B's tables do not support nullable integers; a missing cost becomes NaN.
            plain = records.astype({name: "float64" for name, dtype in records.dtypes.items() if str(dtype) == "Int64"})
            run.log({"cells": self._wandb.Table(dataframe=plain)})
        shown = _summarised(records)
        names = [measure.name for measure in shown]
        labelled = {"panel": attack_label(records), "curve": metric_label(records), "ratio": records["ratio"]}
        means = (
            pd.DataFrame({**labelled, **{name: records[name].astype(float) for name in names}}).groupby(["panel", "curve", "ratio"])[names].mean().reset_index()
        )
        means.insert(0, "line", means["panel"] + ": " + means["curve"])
        table = self._wandb.Table(dataframe=means)
        lines = {
            "curves" if measure.reads == "images" else "curves_text": self._wandb.plot.line(
                table, "ratio", measure.name, stroke="line", title=f"{measure.title} against ratio"
            )
            for measure in shown
            if measure.headline
        }
        run.log({**lines, "curves_table": table})
        if len(sizes_of(records)) == 1:
            run.config.update(description(records), allow_val_change=True)
            run.log(summary(judged(records, [] if self._unencrypted is None else [self._unencrypted])))

    def _log_verdicts(self, run: Any, records: pd.DataFrame) -> None:
        """Logs how many inputs all attacks together recover at each level behind each mask."""
        from selgrad.report.verdicts import by_level

        run.log({"verdicts": self._wandb.Table(dataframe=by_level(records))})
        run.summary.update({"num_cells": len(records)})

    def _log_files(self, run: Any, records: pd.DataFrame) -> None:
        """Logs the record files, the kept reconstructions, the configuration and the report as an artifact."""
        artifact = self._wandb.Artifact(f"records-{self._run_id}", type="records", metadata={"cells": len(records)})
        for name in ("records", "reconstructions"):
            for file in sorted(path for path in (self._folder / name).glob("*") if path.is_file()):
                artifact.add_file(str(file), name=f"{name}/{file.name}")
        for name in ("config.yaml", "report.html"):
            if (self._folder / name).is_file():
                artifact.add_file(str(self._folder / name))
        run.log_artifact(artifact)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Logs the numbers and texts among the values, unless that step is already on the server."""
        if self._mode == "offline" or step > self._logged.get(self._run_id, -1):
            self._main_run().log({key: value for key, value in values.items() if isinstance(value, int | float | str)}, step=step)
            self._note(self._run_id, step)

    def close(self) -> None:
        """Ends the main run, if it has begun."""
        if self._main is not None:
            self._main.finish()
            self._main = None


def make_tracker(mode: str, folder: Path, name: str, run_id: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Tracker:
    """Makes the tracker for a mode of `MODES`.

    Raises:
      UsageError: for another mode.
    """
    if mode not in MODES:
        raise UsageError(f"wandb mode {mode!r} is not one of {', '.join(MODES)}")
    return NoTracker() if mode == "disabled" else WandbTracker(mode, folder, name, run_id, config, settings)
