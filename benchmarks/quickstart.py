"""README's picture, which `selgrad quickstart` draws, the numbers behind it, and the panels of docs/wandb.md.

Command: uv run python benchmarks/quickstart.py   (three minutes on 2 cores)
Setting: the sweep of `selgrad quickstart`, with its encryption.
Leaves: benchmarks/results/quickstart.json (a test compares it with what the code gives), docs/figures/quickstart.png and docs/figures/wandb.png: the panels that
  docs/wandb.md describes, drawn from the very scalars that each run of the sweep has in W&B.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from selgrad import run_sweep
from selgrad.quickstart import QUICKSTART
from selgrad.report.groups import COLUMNS, description, summary
from selgrad.report.verdicts import with_outcomes

HERE = Path(__file__).parent
KEYS = ["dataset", "hidden", "metric", "ratio"]


def curves(records: pd.DataFrame) -> list[dict]:
    """Mean PSNR (an exact image counts as 60 dB) and share of images told from others, by panel, metric and ratio."""
    table = records.assign(psnr=records["psnr"].clip(upper=60.0), success=records["success"].astype(float)).groupby(KEYS)[["psnr", "success"]].mean()
    return table.round(3).reset_index().to_dict("records")


def as_runs(records: pd.DataFrame) -> pd.DataFrame:
    """A row for each run of the sweep in W&B: its configuration and its summary."""
    groups = with_outcomes(records).groupby(COLUMNS, sort=False, observed=True)
    return pd.DataFrame([{**description(cells), **summary(cells)} for _, cells in groups])


def panels(runs: pd.DataFrame) -> Figure:
    """Three panels of a dashboard over the runs of one attack: success against ratio, protection against bytes, and parallel coordinates."""
    colours = dict(zip(sorted(runs["metric"].unique()), ["#0072B2", "#D55E00", "#009E73"], strict=True))
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    scatter, cost, parallel = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    shown = runs[runs["rung"] == "ignore"].sort_values("ratio").groupby("metric")
    for (metric, of), marker, beside in zip(shown, "osD", (-1, 0, 1), strict=True):
        below, above = of["success"] - of["success_low"], of["success_high"] - of["success"]
        style = {"color": colours[metric], "marker": marker, "linestyle": "", "alpha": 0.8}
        scatter.errorbar(of["ratio"] + 0.02 * beside, of["success"], [below.clip(0), above.clip(0)], capsize=3, label=metric, **style)
        cost.plot(of["sent_bytes"].fillna(of["plain_bytes"]) / 1e6 + 0.0012 * beside, of["at_least.recognisable"], **style)
    scatter.set(title="Scatter: success against ratio", xlabel="ratio", ylabel="success (95 % interval, n = 3)", ylim=(-0.05, 1.05))
    cost.set(title="Scatter: cost against protection", xlabel="sent_bytes, in MB", ylabel="at_least.recognisable", ylim=(-0.05, 1.05))
    scatter.legend(fontsize=8, loc="lower left")
    axes = {"metric": sorted(colours), "ratio": None, "rung": sorted(runs["rung"].unique()), "success": None, "psnr": None}
    heights = {name: runs[name].map(order.index) if order else runs[name].clip(upper=60) for name, order in axes.items()}
    scaled = pd.DataFrame({name: (column - column.min()) / max(column.max() - column.min(), 1e-9) for name, column in heights.items()})
    for row, metric in zip(scaled.to_numpy(), runs["metric"], strict=True):
        parallel.plot(range(len(axes)), row, color=colours[metric], alpha=0.5, linewidth=1.2)
    for i, (name, order) in enumerate(axes.items()):
        parallel.axvline(i, color="#333333", linewidth=0.8)
        ends = zip(np.linspace(0, 1, len(order)), order, strict=True) if order else ((0, f"{heights[name].min():.3g}"), (1, f"{heights[name].max():.3g}"))
        for height, text in ends:
            parallel.annotate(text, (i, height), (4, 0), "data", "offset points", fontsize=8, va="center", backgroundcolor="#ffffffcc")
    parallel.set(title="Parallel coordinates", yticks=[], xticks=range(len(axes)), xticklabels=list(axes), xlim=(-0.1, len(axes) - 0.6))
    parallel.spines[["top", "right", "bottom", "left"]].set_visible(False)
    return figure


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        records = run_sweep(QUICKSTART, scratch)
        shutil.copy(Path(scratch) / "figures" / "psnr_against_ratio.png", HERE.parent / "docs" / "figures" / "quickstart.png")
    digits = records[records["dataset"] == "digits"]
    panels(as_runs(digits)).savefig(HERE.parent / "docs" / "figures" / "wandb.png", dpi=110)
    hardware = {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count()}
    (HERE / "results" / "quickstart.json").write_text(json.dumps({"hardware": hardware, "rows": curves(records)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
