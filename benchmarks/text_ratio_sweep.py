"""The ratio sweep on text: which metric, at which share of encrypted entries, stops DLG, TAG, LAMP and DAGER on a BERT of 2 layers.

Command: uv run python benchmarks/text_ratio_sweep.py --data DIR   (DIR holds cola/ and tokenizers/bert-base-uncased)
Time: about an hour on 2 cores. Grid, steps and restarts: benchmarks/configs/text_ratio_sweep.yaml. Success is ROUGE-L above 0.5. A second sweep asks what
  attackers that leave hidden entries out still read at 95 and 99 %.
Expected: nothing published evaluates these attacks over metrics, ratios and what the attacker makes of hidden entries.
Leaves: benchmarks/results/text_ratio_sweep.parquet, text_ratio_sweep.json (verdicts), and docs/figures/text_ratio_sweep_*.png.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd
import yaml

from selgrad import run_sweep
from selgrad.report import figures
from selgrad.report.verdicts import stopping_ratios

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--out", default="selgrad-runs/text-ratio-sweep")
    arguments = parser.parse_args()
    config = yaml.safe_load((HERE / "configs" / "text_ratio_sweep.yaml").read_text())
    config["dataset"] |= {"path": f"{arguments.data}/cola", "tokenizer": f"{arguments.data}/tokenizers/bert-base-uncased"}
    high = {**config, "ratio": [0.95, 0.99], "attack": [{**attack, "hidden": "ignore"} for attack in config["attack"]]}
    records = pd.concat([run_sweep(config, arguments.out), run_sweep(high, f"{arguments.out}-high")], ignore_index=True)
    results = HERE / "results"
    # Where the data lie is of no interest to anyone else.
    records["dataset_arguments"] = records["dataset_arguments"].str.replace(f"{arguments.data}/", "", regex=False)
    records["dataset_label"] = records["dataset_label"].str.replace(f"{arguments.data}/", "", regex=False)
    records.to_parquet(results / "text_ratio_sweep.parquet", index=False)
    stops = json.loads(stopping_ratios(records).to_json(orient="records"))
    hardware = {"device": records["device"].iloc[0], "cores": os.cpu_count(), "jax": records["jax_version"].iloc[0]}
    (results / "text_ratio_sweep.json").write_text(json.dumps({"hardware": hardware, "stopping_ratios": stops}, indent=1) + "\n")
    drawn = Path(arguments.out) / "drawn"
    drawn.mkdir(exist_ok=True)
    for stem in (figures.quality_against_ratio(records, drawn, "rougeL"), figures.cost_against_protection(records, drawn)):
        (drawn / f"{stem}.png").replace(HERE.parent / "docs" / "figures" / f"text_ratio_sweep_{stem}.png")


if __name__ == "__main__":
    main()
