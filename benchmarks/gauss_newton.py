"""The attacker that certificates assume, on masks of which first-order attackers stop: does it meet the error that the certificate leaves?

Command: uv run python benchmarks/gauss_newton.py --data DIR   (DIR holds fashion-mnist/)
Time: about half an hour on 2 cores; sweeps that were interrupted go on where they stopped. LeNet (sigmoid) with 10 and with 100 classes, 5 Fashion-MNIST
  images, 500 public ones for the prior, labels not given, 120 Jacobians at most; the iDLG that the ladder measured beside it (60 outer iterations).
Expected: its MSE is about the posterior MSE of the certificate; published is that 10 % by sensitivity stop DLG on LeNet with 100 classes (FedML-HE).
Leaves: benchmarks/results/gauss_newton.parquet and gauss_newton.json.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd

from selgrad import run_sweep
from selgrad.report.verdicts import with_outcomes

RESULTS = Path(__file__).parent / "results"
SENSITIVITY = {"name": "sensitivity", "target": "inputs", "num_probes": 16}
CASES = {
    "sensitivity, 10 classes": (10, SENSITIVITY, [0.8, 0.9]),
    "magnitude, 10 classes": (10, "magnitude", [0.8]),
    "random, 10 classes": (10, "random", [0.9]),
    "sensitivity, 100 classes": (100, SENSITIVITY, [0.1]),
    "magnitude, 100 classes": (100, "magnitude", [0.1]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--out", default="selgrad-runs/gauss_newton")
    parser.add_argument("--cases", nargs="*", default=[*CASES])
    arguments = parser.parse_args()
    images = lambda **chosen: {"name": "fashion_mnist", "path": f"{arguments.data}/fashion-mnist", **chosen}
    parts = []
    for case in arguments.cases:
        classes, metric, ratios = CASES[case]
        sweep = {
            "name": case, "dataset": images(count=5), "public": images(count=500, offset=200), "metric": metric, "ratio": ratios, "encryption": "none", "gallery": 5,
            "model": {"name": "lenet", "activation": "sigmoid", "num_classes": classes}, "success": {"measure": "mse", "threshold": 0.01}, "certificates": classes == 10,
            "attack": [{"name": "gauss_newton"}, {"name": "idlg", "num_steps": 60, "start": "grey"}],
        }  # fmt: skip
        parts.append(run_sweep(sweep, f"{arguments.out}/{case.replace(', ', '-').replace(' ', '-')}").assign(case=case))
    records = with_outcomes(pd.concat(parts, ignore_index=True))
    for column in records.select_dtypes("object").columns:
        records[column] = records[column].astype(str).str.replace(f"{arguments.data}/", "", regex=False)
    records.to_parquet(RESULTS / "gauss_newton.parquet", index=False)
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
