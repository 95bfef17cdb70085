"""What each attack adds to the others: the cells that nothing else reads, on which the choice of the suites' members rests.

Command: uv run python benchmarks/suite_members.py [--settings NAME ...] [--data DIR]
  DIR holds fashion-mnist, cifar10 and cola; without it SELGRAD_DATA.
Time: about an hour on 2 cores; every setting is a sweep in selgrad-runs/suite_members that goes on where it was interrupted.
Expected: each member of a suite reads cells in some setting that no other candidate reads, and no candidate that was left out does.
Leaves: benchmarks/results/suite_members.json, one row a setting and attack, with what it reads alone among all candidates and among the members.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from selgrad import devices

devices.configure()

import jax
import pandas as pd

from selgrad import run_sweep
from selgrad.config import parse
from selgrad.report.flags import flags
from selgrad.report.verdicts import contributions, reached
from selgrad.suites import SUITES
from selgrad.suites.recommend import configured

RESULTS = Path(__file__).parent / "results" / "suite_members.json"
IMAGES: list[dict[str, Any]] = [
    {"name": "dlg"}, {"name": "idlg", "num_steps": 150, "start": "grey"}, {"name": "bayesian", "num_steps": 150, "hidden": "complete"},
    *({"name": "inverting_gradients", "total_variation_weight": weight} for weight in (0.1, 1e-3)),
]  # fmt: skip
TEXT: list[dict[str, Any]] = [
    {"name": "dlg_text"}, {"name": "tag", "start": "vocabulary", "learning_rate": 0.01, "hidden": "complete"},
]  # fmt: skip
"""Candidates beside the members with the budget standard."""
MASKS = {"metric": ["random", "magnitude"], "ratio": [0, 0.2, 0.6, 0.9], "seeds": [0], "encryption": "none", "gallery": 0}
"""Of sentences; images are read behind larger masks, and other metrics than the paper's two are told apart there."""
IMAGE_MASKS = {**MASKS, "metric": ["random", "magnitude", {"name": "sensitivity", "target": "inputs", "num_probes": 16}], "ratio": [0, 0.6, 0.9, 0.97]}


def settings(data: str) -> dict[str, dict[str, Any]]:
    """Name -> keys of a sweep."""
    fashion = lambda count: {"name": "fashion_mnist", "path": f"{data}/fashion-mnist", "count": count, "offset": 100}
    public = {"name": "fashion_mnist", "path": f"{data}/fashion-mnist", "count": 500, "offset": 1000}
    cola = {"name": "cola", "path": f"{data}/cola", "max_length": 16, "count": 4, "offset": 40}
    return {
        "mlp, sigmoid": {"dataset": fashion(4), "model": {"name": "mlp", "activation": "sigmoid"}},
        "mlp, relu, batch 4": {"dataset": fashion(16), "model": "mlp", "update": {"name": "gradient", "batch_size": 4}},
        "lenet": {"dataset": fashion(2), "model": {"name": "lenet", "activation": "sigmoid"}, "public": public},
        "vit": {"dataset": {"name": "cifar10", "path": f"{data}/cifar10", "count": 2, "offset": 100}, "model": "vit"},
        "cnn": {"dataset": {"name": "cifar10", "path": f"{data}/cifar10", "count": 2, "offset": 100}, "model": "cnn"},
        "bert tiny": {"dataset": cola, "model": {"name": "bert", "size": "tiny"}},
        "gpt2 tiny": {"dataset": cola, "model": {"name": "gpt2", "size": "tiny"}, "known_labels": True},
        "bert tiny, FedAvg": {"dataset": cola, "model": {"name": "bert", "size": "tiny"}, "update": {"name": "fedavg", "num_steps": 5, "batch_size": 1}},
    }


def candidates(config: dict[str, Any]) -> tuple[str, list[Any], set[str]]:
    """The suite, every attack that can be run, and the labels of those that are members."""
    whole, suite, _ = configured({**config, "encryption": "none"}, None, "standard", [0.5])
    return suite.name, [*whole.attack, *(TEXT if suite.name == "text" else IMAGES)], {spec.label for spec in whole.attack}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", help="names; all of them by default")
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA"), help="folder of the data sets")
    parser.add_argument("--out", default="selgrad-runs/suite_members", type=Path)
    given = parser.parse_args()
    if not given.data:
        parser.error("name the folder of the data sets with --data")
    every = settings(given.data)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": [], "flags": []}
    for name in given.settings or every:
        suite, attacks, members = candidates(every[name])
        config = parse({"name": name, **(MASKS if suite == "text" else IMAGE_MASKS), **every[name], "attack": attacks})
        records = run_sweep(config, given.out / config.identity)
        rows, raised = [], []
        for level in ("recognisable", "exact"):
            judged = reached(records, level)
            among = contributions(judged[judged["attack_label"].isin(members)]).set_index("attack")["alone"]
            for row in contributions(judged).to_dict("records"):
                rows.append(
                    {
                        "setting": name,
                        "suite": suite,
                        "level": level,
                        "member": row["attack"] in members,
                        "among_members": int(among.get(row["attack"], 0)),
                        **row,
                    }
                )
        for flag in flags(reached(records[records["attack_label"].isin(members)], "recognisable")):
            raised.append({"setting": name, **flag._asdict()})
        kept["rows"] = [row for row in kept["rows"] if row["setting"] != name] + rows
        kept["flags"] = [row for row in kept["flags"] if row["setting"] != name] + raised
        kept["suites"] = {one.name: one.label("standard") for one in SUITES.values()}
        kept["hardware"] = {"cores": os.cpu_count(), "machine": platform.machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
        RESULTS.write_text(json.dumps(kept, indent=1).replace(f"{given.data}/", "").replace("NaN", "null") + "\n")
        print(pd.DataFrame(rows).to_string(), flush=True)


if __name__ == "__main__":
    main()
