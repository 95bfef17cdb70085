"""The ratio sweep: which metric, at which share of encrypted entries, stops DLG, iDLG and Inverting Gradients on DLG's LeNet.

Command: uv run python benchmarks/ratio_sweep.py --data DIR   (DIR holds the CIFAR-10 batches)
Time: about an hour on 2 cores. Grid, steps and restarts: benchmarks/configs/ratio_sweep.yaml.
Expected: FedML-HE reports that the top 10 % by sensitivity stop DLG where random needs 42.5 % (LeNet, CIFAR-100).
Leaves: benchmarks/results/ratio_sweep.parquet, ratio_sweep.json (verdicts), and docs/figures/ratio_sweep_*.png.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import yaml

from selgrad import run_sweep
from selgrad.report.verdicts import stopping_ratios

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"{os.environ.get('SELGRAD_DATA', 'data')}/cifar10")
    parser.add_argument("--out", default="selgrad-runs/ratio-sweep")
    arguments = parser.parse_args()
    config = yaml.safe_load((HERE / "configs" / "ratio_sweep.yaml").read_text())
    config["dataset"]["path"] = arguments.data
    records = run_sweep(config, arguments.out)
    results = HERE / "results"
    # Where the data lie is of no interest to anyone else.
    records["dataset_arguments"] = records["dataset_arguments"].str.replace(json.dumps(arguments.data), '"data"', regex=False)
    records.to_parquet(results / "ratio_sweep.parquet", index=False)
    stops = json.loads(stopping_ratios(records).to_json(orient="records"))
    hardware = {"device": records["device"].iloc[0], "cores": os.cpu_count(), "jax": records["jax_version"].iloc[0]}
    (results / "ratio_sweep.json").write_text(json.dumps({"hardware": hardware, "stopping_ratios": stops}, indent=1) + "\n")
    figures = HERE.parent / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for stem in ("psnr_against_ratio", "success_against_ratio", "cost_against_protection"):
        shutil.copy(Path(arguments.out) / "figures" / f"{stem}.png", figures / f"ratio_sweep_{stem}.png")


if __name__ == "__main__":
    main()
