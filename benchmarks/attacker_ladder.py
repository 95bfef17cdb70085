"""The attacker ladder: which metric stops which attack at which ratio, when the attacker climbs from `zero` to a decoder trained for the mask.

Command: uv run python benchmarks/attacker_ladder.py --data DIR [--parts lenet cnn mlp bert gpt2]   (DIR holds fashion-mnist/, cola/ and tokenizers/bert-base-uncased)
Time: about two hours on one core; a part that was interrupted goes on where it stopped. Grid, samples, steps: benchmarks/configs/attacker_ladder.yaml.
Expected: nobody has published an evaluation over these rungs.
Leaves: benchmarks/results/attacker_ladder.parquet, attacker_ladder.json (smallest protecting ratios with intervals, and where rankings differ).
"""

import argparse
import copy
import json
import os
from pathlib import Path

import pandas as pd
import yaml

from selgrad import run_sweep
from selgrad.report.tables import protecting_ratios, ranking_changes

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def run_part(name: str, whole: dict, data: str, out: str) -> pd.DataFrame:
    """Two sweeps: all rungs but `bounded`, and that."""
    part = copy.deepcopy(whole["parts"][name])
    bounded = part.pop("bounded")
    base = {"name": f"ladder-{name}", "metric": whole["metric"], **part, "encryption": "none", "gallery": 2}
    if base["dataset"]["name"] == "fashion_mnist":
        for key in ("dataset", "public"):
            base[key]["path"] = f"{data}/fashion-mnist"
    if base["dataset"]["name"] == "cola":
        for key in ("dataset", "public"):
            base[key] |= {"path": f"{data}/cola", "tokenizer": f"{data}/tokenizers/bert-base-uncased"}
    records = [run_sweep(base, f"{out}/{name}"), run_sweep({**base, **bounded, "certificates": False}, f"{out}/{name}-bounded")]
    return pd.concat(records, ignore_index=True).assign(part=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--out", default="selgrad-runs/ladder")
    parser.add_argument("--parts", nargs="+", default=["lenet", "cnn", "mlp", "bert", "gpt2"])
    arguments = parser.parse_args()
    whole = yaml.safe_load((HERE / "configs" / "attacker_ladder.yaml").read_text())
    fresh = pd.concat([run_part(name, whole, arguments.data, arguments.out) for name in arguments.parts], ignore_index=True)
    for column in fresh.select_dtypes("object").columns:
        # Where the data lie is of no interest to anyone else.
        fresh[column] = fresh[column].astype(str).str.replace(f"{arguments.data}/", "", regex=False)
    file = RESULTS / "attacker_ladder.parquet"
    if file.exists():
        before = pd.read_parquet(file)
        fresh = pd.concat([before[~before["part"].isin(arguments.parts)], fresh], ignore_index=True)
    fresh.to_parquet(file, index=False)
    found = protecting_ratios(fresh)
    hardware = {"device": fresh["device"].iloc[0], "cores": os.cpu_count(), "jax": fresh["jax_version"].iloc[0]}
    document = {"hardware": hardware, "protecting_ratios": json.loads(found.to_json(orient="records")), "ranking_changes": ranking_changes(found)}
    (RESULTS / "attacker_ladder.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
