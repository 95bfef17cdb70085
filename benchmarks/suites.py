"""The ratio that protects, by metric and model, at each level: what README, docs/guidelines.md and the claims table rest on.

Command: uv run python benchmarks/suites.py [--settings NAME ...] [--budget standard] [--levels LEVEL ...] [--check [BUDGET]] --data DIR
  DIR holds fashion-mnist, cifar10, cola; without it SELGRAD_DATA.
Time: hours a setting on 2 cores with the budget standard; each setting is a search in selgrad-runs/suites that goes on where it was interrupted.
Expected: an interval of the protecting ratio of each metric at the levels recognisable and exact, pairs of metrics compared on the same inputs, what each attack adds;
  with --check, whether the advice holds on inputs and weights that had no part in it.
Leaves: benchmarks/results/suites.json, one entry a setting and budget, and benchmarks/results/suites-NAME-BUDGET.parquet.
"""

import argparse
import contextlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from selgrad import devices

devices.configure()

import jax
import pandas as pd

from selgrad.registry import Spec
from selgrad.report.statistics import paired
from selgrad.report.tables import read_records
from selgrad.report.verdicts import worst_at
from selgrad.suites.decide import Question
from selgrad.suites.recommend import configured, recommend
from selgrad.suites.search import Runner, Search, is_informative
from selgrad.training import Recipe, train

RESULTS = Path(__file__).parent / "results"
IMAGES = ["random", "magnitude", {"name": "sensitivity", "target": "inputs", "num_probes": 16}, "product"]
TEXT = ["random", "magnitude", {"name": "sensitivity", "target": "inputs"}, "product"]
RECIPES = {"mlp": Recipe(num_epochs=12), "lenet": Recipe(num_epochs=12, learning_rate=0.01)}
"""By which weights are trained, on the training half of Fashion-MNIST; the test half is attacked."""
PAIRS = 36
"""Inputs on which all metrics are compared, at the smallest ratio with which the search of any of them ended."""


def settings(data: str, out: Path) -> dict[str, dict[str, Any]]:
    """Name -> keys of a sweep; weights lie in `out` where `trained` made them."""
    fashion = lambda count, offset=0: {"name": "fashion_mnist", "path": f"{data}/fashion-mnist", "count": count, "offset": offset}
    cifar = lambda count, **more: {"name": "cifar10", "path": f"{data}/cifar10", "count": count, **more}
    cola = {"name": "cola", "path": f"{data}/cola", "max_length": 16, "count": 240, "offset": 40}
    mlp, lenet = {"name": "mlp", "activation": "sigmoid"}, {"name": "lenet", "activation": "sigmoid"}
    bert, gpt2 = {"name": "bert", "size": "tiny"}, {"name": "gpt2", "size": "tiny"}
    local = {"name": "fedavg", "num_steps": 5, "batch_size": 1}
    public, test = fashion(500, 1000), fashion(240)
    every: dict[str, dict[str, Any]] = {
        "mlp": {"dataset": fashion(300), "model": mlp},
        "mlp-fedavg": {"dataset": fashion(240), "model": mlp, "update": {**local, "learning_rate": 0.01}},
        "mlp-trained": {"dataset": test, "model": {**mlp, "checkpoint": str(out / "trained-mlp" / "weights")}, "public": public},
        "mlp-relu-batch-8": {"dataset": fashion(1120), "model": "mlp", "update": {"name": "gradient", "batch_size": 8}},
        "lenet-10": {"dataset": fashion(140), "model": {**lenet, "num_classes": 10}, "public": public},
        "lenet-10-trained": {"dataset": test, "model": {**lenet, "checkpoint": str(out / "trained-lenet" / "weights")}, "public": public},
        "lenet-100": {"dataset": fashion(140), "model": {**lenet, "num_classes": 100}, "public": public},
        "cnn": {"dataset": cifar(140), "model": "cnn"},
        "resnet20-trained": {
            "dataset": cifar(140, normalisation="imagenet"),
            "model": {"name": "resnet", "checkpoint": f"{data}/weights/resnet20-cifar10/resnet20-12fca82f.safetensors"},
        },
        "vit": {"dataset": cifar(140), "model": "vit"},
        "bert": {"dataset": cola, "model": bert},
        "bert-fedavg": {"dataset": cola, "model": bert, "update": {**local, "learning_rate": 1e-4}},
        "bert-lora": {"dataset": cola, "model": {**bert, "lora_rank": 32}},
        "gpt2": {"dataset": cola, "model": gpt2, "known_labels": True},
    }
    return {name: {"metric": TEXT if given["dataset"] is cola else IMAGES, **given} for name, given in every.items()}


def trained(name: str, data: str, out: Path) -> None:
    """Makes the weights that a setting is about; the same call goes on where it was stopped."""
    model = name.split("-")[0]
    learnt = Spec.of("dataset", {"name": "fashion_mnist", "path": f"{data}/fashion-mnist", "split": "train"}).build()
    print(f"{name}: {train(learnt, {'name': model, 'activation': 'sigmoid'}, out / f'trained-{model}', recipe=RECIPES[model])}")


def compared(given: dict[str, Any], out: Path, level: str, budget: Any, ratio: float) -> None:
    """Runs every metric on the same first inputs at a ratio: a search asks each metric for cells at ratios of its own, and pairs are few."""
    config, _, _ = configured({"gallery": 0, "name": "recommend", **given}, None, budget, Question(level=level).ratios)
    executor: Any = Spec.of("engine", "local").build()
    with contextlib.closing(executor):
        search = Search(config, out / "search")
        with search.lock():
            executor.plan(search, print)
            Runner(search, executor, level, on_event=print).run([search.lane(arm, ratio, cell) for arm in search.arms for cell in range(PAIRS)])
            search.folder.compact()


def differences(records: pd.DataFrame, level: str) -> list[dict[str, Any]]:
    """Every two metrics on the inputs that both were tried on, ratio by ratio, corrected for the number of pairs of a ratio."""
    worst = worst_at(records, level)
    worst = worst[is_informative(worst, records, records["attack_label"].nunique())]
    told = worst[(worst["outcome"] != "attack failed") & (worst["ratio"] > 0)]
    rows = []
    for ratio, cells in told.assign(read=told["outcome"] == "read").groupby("ratio"):
        if cells["metric_label"].nunique() > 1:
            found = paired(cells, "metric_label", "read")
            rows += [{"ratio": float(ratio), **row} for row in found[found["num_pairs"] > 0].to_dict("records")]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", help="names; all of them by default")
    parser.add_argument("--budget", default="standard", choices=["quick", "standard", "full"])
    parser.add_argument("--levels", nargs="*", default=["recognisable", "exact"], help="that are asked for, one after the other")
    parser.add_argument(
        "--check", nargs="?", const=True, default=False, choices=[True, "quick", "standard", "full"],
        help="try each answer on the inputs after these, with other weights, by the same budget or by this one",
    )  # fmt: skip
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA"), help="folder of the data sets")
    parser.add_argument("--out", default="selgrad-runs/suites", type=Path)
    given = parser.parse_args()
    if not given.data:
        parser.error("name the folder of the data sets with --data")
    every, file = settings(given.data, given.out), RESULTS / "suites.json"
    kept = json.loads(file.read_text()) if file.exists() else {"rows": []}
    for name in given.settings or every:
        answers = []
        if str(given.out) in str(every[name]["model"]):
            trained(name, given.data, given.out)
        for level in given.levels:
            out = given.out / f"{name}-{given.budget}"
            found = recommend(every[name], out, question=Question(level=level), budget=given.budget, check=given.check, on_event=print)
            # Where attacks fail there is no ratio.
            smallest = found.table["ratio"].min()
            if smallest < 1:
                compared(every[name], out, level, given.budget, float(smallest))
            records = read_records(out / "search")
            answers.append({"level": level, **found.document(), "differences": differences(records, level)})
        row = {
            "setting": name,
            "budget": given.budget,
            "suite": found.suite,
            "source": sorted(records["selgrad_source"].unique()),
            "title": found.title,
            # Of the attacks alone, without compilation: a search may have been interrupted and gone on.
            "attack_hours": float(records["attack_seconds"].sum()) / 3600,
            "answers": answers,
        }
        kept["rows"] = [one for one in kept["rows"] if (one["setting"], one["budget"]) != (name, given.budget)] + [row]
        kept["hardware"] = {"cores": os.cpu_count(), "machine": platform.machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
        text = json.dumps(kept, indent=1, default=str).replace("NaN", "null").replace(f"{given.data}/", "").replace(f"{given.out}/", "")
        file.write_text(text + "\n")
        for column in records.select_dtypes("object").columns:
            records[column] = records[column].astype(str).str.replace(f"{given.data}/", "", regex=False)
        records.to_parquet(RESULTS / f"suites-{name}-{given.budget}.parquet", index=False)


if __name__ == "__main__":
    main()
