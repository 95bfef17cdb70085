"""Attackers with an image prior, on masks of which an attacker without one stops: do they meet the error that the certificate leaves, and at what price?

Command: uv run python benchmarks/gauss_newton.py [--attacks NAME ...] [--cases NAME ...] --data DIR   (DIR holds fashion-mnist/)
Time: an hour on 2 cores with Gauss-Newton, minutes without; sweeps that were interrupted go on where they stopped. LeNet (sigmoid) with 10 and with 100 classes,
  5 Fashion-MNIST images, 500 public ones for the prior, labels not given: Gauss-Newton with 120 Jacobians at most, the same prior by L-BFGS (`bayesian`, 60
  outer iterations of 20 gradients), and iDLG as long in pixels.
Expected: an MSE of about the posterior MSE of the certificate; published is that 10 % by sensitivity stop DLG on LeNet with 100 classes (FedML-HE).
Leaves: benchmarks/results/gauss_newton.parquet and gauss_newton.json.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd

from selgrad import run_sweep

RESULTS = Path(__file__).parent / "results"
SENSITIVITY = {"name": "sensitivity", "target": "inputs", "num_probes": 16}
CASES = {
    "sensitivity, 10 classes": (10, SENSITIVITY, [0.8, 0.9]),
    "magnitude, 10 classes": (10, "magnitude", [0.8]),
    "random, 10 classes": (10, "random", [0.9]),
    "sensitivity, 100 classes": (100, SENSITIVITY, [0.1]),
    "magnitude, 100 classes": (100, "magnitude", [0.1]),
}
ATTACKS = {
    "bayesian": {"name": "bayesian", "num_steps": 60},
    "idlg": {"name": "idlg", "num_steps": 60, "start": "grey"},
    "gauss_newton": {"name": "gauss_newton"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--out", default="selgrad-runs/gauss_newton")
    parser.add_argument("--attacks", nargs="*", default=[*ATTACKS])
    parser.add_argument("--cases", nargs="*", default=[*CASES])
    arguments = parser.parse_args()
    images = lambda **chosen: {"name": "fashion_mnist", "path": f"{arguments.data}/fashion-mnist", **chosen}
    parts = []
    for case in arguments.cases:
        classes, metric, ratios = CASES[case]
        for attack in arguments.attacks:
            sweep = {
                "name": f"{case}, {attack}", "dataset": images(count=5), "public": images(count=500, offset=200), "metric": metric, "ratio": ratios, "encryption": "none",
                "gallery": 5, "model": {"name": "lenet", "activation": "sigmoid", "num_classes": classes}, "success": {"measure": "mse", "threshold": 0.01},
                "certificates": classes == 10, "attack": ATTACKS[attack],
            }  # fmt: skip
            parts.append(run_sweep(sweep, f"{arguments.out}/{case.replace(', ', '-').replace(' ', '-')}-{attack}").assign(case=case))
    records, file = pd.concat(parts, ignore_index=True), RESULTS / "gauss_newton.parquet"
    for column in records.select_dtypes("object").columns:
        records[column] = records[column].astype(str).str.replace(f"{arguments.data}/", "", regex=False)
    if file.exists():
        before = pd.read_parquet(file)
        again = before["case"].isin(arguments.cases) & before["attack"].isin(arguments.attacks)
        records = pd.concat([before[~again], records], ignore_index=True)
    records.to_parquet(file, index=False)
    rows = []
    for (case, ratio, attack), cells in records.groupby(["case", "ratio", "attack"], sort=False):
        rows.append(
            {
                "case": case, "ratio": ratio, "attack": attack, "read": int(cells["success"].astype(bool).sum()), "of": len(cells), "mse": float(cells["mse"].mean()),
                "largest_mse": float(cells["mse"].max()), "identified": float(cells["identified"].mean()), "label_correct": float(cells["label_correct"].mean()),
                "converged": float(cells["converged"].mean()), "evaluations": int(cells["num_evaluations"].max()),
                "posterior_mse": float(cells["certificate_posterior_mse"].mean()) if "certificate_posterior_mse" in cells else None,
            }
        )  # fmt: skip
    hardware = {"device": records["device"].iloc[0], "cores": len(os.sched_getaffinity(0)), "jax": records["jax_version"].iloc[0]}
    (RESULTS / "gauss_newton.json").write_text(json.dumps({"hardware": hardware, "rows": rows}, indent=1).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
