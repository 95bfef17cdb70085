"""The same pictures sent in several rounds: how much more must be encrypted when the attacker uses all of them.

Command: uv run python benchmarks/rounds.py --data DIR   (DIR holds fashion-mnist/)
Time: about half an hour on 2 cores; a sweep that was interrupted goes on where it stopped. LeNet, 5 samples, 500 public images, `bayesian` with 60 steps of
  L-BFGS, hidden entries left out; weights move by the mean update between rounds.
Expected: nobody has published this; more rounds show more.
Leaves: benchmarks/results/rounds.parquet, rounds.json and docs/figures/rounds.png.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from selgrad import run_sweep
from selgrad.report.tables import protecting_ratios

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METRICS = {
    "random": "random, drawn anew",
    "random(seed=0)": "random, always the same",
    "magnitude": "magnitude",
    "sensitivity(num_probes=16, target=inputs)": "sensitivity",
}
ROUNDS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--out", default="selgrad-runs/rounds")
    arguments = parser.parse_args()
    parts = []
    for count in ROUNDS:
        sweep = {
            "name": f"rounds-{count}",
            "dataset": {"name": "fashion_mnist", "path": f"{arguments.data}/fashion-mnist", "count": 5},
            "public": {"name": "fashion_mnist", "path": f"{arguments.data}/fashion-mnist", "count": 500, "offset": 1000},
            "model": {"name": "lenet", "activation": "sigmoid"},
            "metric": ["random", {"name": "random", "seed": 0}, "magnitude", {"name": "sensitivity", "target": "inputs", "num_probes": 16}],
            "ratio": [0.8, 0.95, 0.98, 0.99, 0.995, 0.999],
            "rounds": {"count": count, "server_learning_rate": 1.0},
            "attack": {"name": "bayesian", "num_steps": 60},
            "success": {"measure": "mse", "threshold": 0.01},
            "encryption": "none",
            "gallery": 1,
        }
        parts.append(run_sweep(sweep, f"{arguments.out}/{count}"))
    records = pd.concat(parts, ignore_index=True)
    for column in records.select_dtypes("object").columns:
        records[column] = records[column].astype(str).str.replace(f"{arguments.data}/", "", regex=False)
    records.to_parquet(RESULTS / "rounds.parquet", index=False)
    rows = [protecting_ratios(records[records["num_rounds"] == count]).assign(num_rounds=count) for count in ROUNDS]
    hardware = {"device": records["device"].iloc[0], "cores": len(os.sched_getaffinity(0)), "jax": records["jax_version"].iloc[0]}
    document = {"hardware": hardware, "protecting_ratios": json.loads(pd.concat(rows).to_json(orient="records"))}
    (RESULTS / "rounds.json").write_text(json.dumps(document, indent=1) + "\n")

    figure, axes = plt.subplots(1, len(METRICS), figsize=(3.1 * len(METRICS), 2.9), sharey=True, layout="constrained")
    colours = plt.get_cmap("viridis")
    for axis, (label, title) in zip(axes, METRICS.items(), strict=True):
        for i, count in enumerate(ROUNDS):
            one = records[(records["metric_label"] == label) & (records["num_rounds"] == count)].groupby("ratio")["mse"].median()
            axis.plot(100 * (1 - one.index), one, marker="o", markersize=3, color=colours(i / len(ROUNDS)), label=f"{count} round{'s' * (count > 1)}")
        axis.axhline(0.01, color="grey", linewidth=0.7, linestyle="--")
        axis.set(xscale="log", yscale="log", title=title, xlabel="visible entries, %")
        axis.invert_xaxis()
    axes[0].set_ylabel("median MSE")
    axes[0].legend(fontsize=8)
    figure.savefig(HERE.parent / "docs" / "figures" / "rounds.png", dpi=110)


if __name__ == "__main__":
    main()
