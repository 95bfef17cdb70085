"""What each attack reaches with nothing encrypted, with its defaults, on the setting of which a number is published.

Command: uv run python benchmarks/calibration/calibrate.py [--rows NAME ...] [--data DIR]
  DIR holds the folders cifar10 and fashion-mnist; without it SELGRAD_DATA.
Time: about an hour and a half on 2 cores for all rows; each row is a sweep in selgrad-runs/calibration that goes on where it was interrupted.
Expected: every row at or above its published number.
Leaves: benchmarks/results/calibration.json, one entry a row.
"""

import argparse
import json
import os
import platform
from collections import Counter
from pathlib import Path

from selgrad import devices

devices.configure()

import jax
import numpy as np

from selgrad import run_sweep
from selgrad.attacks.hidden import fill
from selgrad.attacks.labels import plausible
from selgrad.config import parse
from selgrad.experiment import Setting
from selgrad.gradients import observe
from selgrad.registry import make_spec
from selgrad.report.statistics import two_way_interval

RESULTS = Path(__file__).parents[1] / "results" / "calibration.json"
SEEDS = [0, 1, 2]


def lenet(**arguments):
    return {"name": "lenet", "activation": "sigmoid", **arguments}


def cifar(data, count, **arguments):
    return {"name": "cifar10", "path": f"{data}/cifar10", "count": count, "offset": 100, **arguments}


def fashion(data, count, offset=100):
    return {"name": "fashion_mnist", "path": f"{data}/fashion-mnist", "count": count, "offset": offset}


def images(data):
    """Row -> what is published, where, and the sweep; labels are given away where the source gives them."""
    published_ig = "Geiping et al. 2020, table 1 (LeNet, CIFAR-10)"
    return {
        "inverting_gradients": (
            18.0, published_ig, "psnr",
            {"dataset": cifar(data, 16, normalisation="channel"), "model": lenet(), "attack": "inverting_gradients", "known_labels": True},
        ),
        "idlg (L-BFGS)": (
            46.3, published_ig, "psnr", {"dataset": cifar(data, 16), "model": lenet(), "attack": {"name": "idlg", "start": ["normal", "grey"]}, "known_labels": True},
        ),
        "dlg": (
            16 / 30, "the loop of its original code, run beside ours: 16 of 30 images at MSE < 1e-3", "success",
            {"dataset": cifar(data, 16), "model": lenet(num_classes=100), "attack": "dlg", "success": {"measure": "mse", "threshold": 1e-3}},
        ),
        "gauss_newton": (
            None, "the certificate: posterior MSE of what is visible", "psnr",
            {"dataset": fashion(data, 8), "model": lenet(), "attack": {"name": "gauss_newton", "num_steps": 60}, "public": fashion(data, 500, 1000), "seeds": [0]},
        ),
        "bayesian": (
            46.3, published_ig + ", L-BFGS", "psnr", {"dataset": cifar(data, 16), "model": lenet(), "attack": "bayesian", "known_labels": True},
        ),
        "bayesian (batches)": (
            1.0, "Zhu et al. 2019: batches up to 8 on LeNet", "success",
            {
                "dataset": cifar(data, 16), "model": lenet(), "update": [{"name": "gradient", "batch_size": b} for b in (2, 4, 8)], "attack": "bayesian",
                "success": {"level": "recognisable"}, "seeds": [0],
            },
        ),
        "inverting_gradients (resnet)": (
            None, "Geiping et al. 2020 on ResNet20-4: 19.8 dB untrained, 14.0 trained; of ResNet-20 the direction is compared", "psnr",
            {
                "dataset": cifar(data, 4, normalisation="imagenet"), "known_labels": True, "attack": "inverting_gradients", "seeds": [0],
                "model": ["resnet", {"name": "resnet", "checkpoint": f"{data}/weights/resnet20-cifar10/resnet20-12fca82f.safetensors"}],
            },
        ),
        "surrogate (FedAvg)": (
            None, "Zhu et al. 2023: as good as simulating the local steps, at the price of one", "psnr",
            {
                "dataset": cifar(data, 8), "model": lenet(), "update": {"name": "fedavg", "num_steps": 10, "learning_rate": 0.01}, "known_labels": True, "seeds": [0],
                "attack": [{"name": name, "num_steps": 1200, "total_variation_weight": 0.01} for name in ("surrogate", "inverting_gradients")],
            },
        ),
        "rank_one (relu, batches)": (
            1.0, "Dimitrov et al. 2024: exact up to a batch of about 25", "success",
            {
                "dataset": cifar(data, 50), "model": {"name": "mlp", "width": 512}, "update": [{"name": "gradient", "batch_size": b} for b in (2, 4, 8, 12, 16, 25)],
                "attack": "rank_one", "success": {"measure": "mse", "threshold": 1e-5}, "seeds": [0],
            },
        ),
        "april (vit)": (
            None, "Lu et al. 2022 solve the first attention layer; no number for this one", "success",
            {"dataset": cifar(data, 16), "model": "vit", "attack": "april", "success": {"level": "exact"}},
        ),
        "dager (fresh adapters)": (
            0.99, "Petrov et al. 2024: ROUGE above 0.99 at rank 256", "rouge1",
            {
                "dataset": {"name": "sentences", "count": 16}, "attack": "dager",
                "model": [{"name": name, "size": "tiny", "lora_rank": rank} for name in ("bert", "gpt2") for rank in (32, 256)],
            },
        ),
        "dager (bert tiny)": (
            0.99, "Petrov et al. 2024: ROUGE above 0.99", "rouge1",
            {"dataset": {"name": "sentences", "count": 16}, "model": {"name": "bert", "size": "tiny"}, "attack": "dager"},
        ),
        "dager (gpt2 tiny, FedAvg)": (
            0.99, "Petrov et al. 2024: ROUGE above 0.99", "rouge1",
            {
                "dataset": {"name": "sentences", "count": 16}, "model": {"name": "gpt2", "size": "tiny"}, "attack": "dager",
                "update": [{"name": "fedavg", "num_steps": 10, "batch_size": 1, "learning_rate": rate} for rate in (1e-4, 0.1)],
            },
        ),
        "tag (bert tiny)": (
            None, "published on BERT-base alone: 0.79 ROUGE-1 on CoLA", "rouge1",
            {"dataset": {"name": "sentences", "count": 16}, "model": {"name": "bert", "size": "tiny"}, "attack": {"name": "tag", "start": "vocabulary", "learning_rate": 0.01}},
        ),
        "lamp (bert tiny)": (
            0.939, "Balunović et al. 2022: TinyBERT on CoLA", "rouge1",
            {"dataset": {"name": "sentences", "count": 16}, "model": {"name": "bert", "size": "tiny"}, "attack": "lamp", "seeds": [0]},
        ),
    }  # fmt: skip


def measured(name, row, out):
    published, source, measure, config = row
    whole = parse({"name": name, "metric": "magnitude", "ratio": [0], "seeds": SEEDS, "encryption": "none", "gallery": 0, **config})
    records = run_sweep(whole, out / name.split(" (")[0] / whole.identity)
    found = []
    for (attack, update, _), cells in records.groupby(["attack_label", "update_label", "model_label"], sort=False):
        low, high = two_way_interval(cells, measure)
        found.append(
            {
                "row": name, "attack": attack, "model": cells["model_label"].iloc[0], "dataset": cells["dataset_label"].iloc[0], "update": update, "measure": measure,
                "published": published, "source": source, "mean": float(cells[measure].mean()), "low": low, "high": high, "samples": int(cells["sample"].nunique()),
                "seeds": int(cells["seed"].nunique()), "evaluations": int(cells["num_evaluations"].max()), "converged": float(cells["converged"].mean()),
                "moved": float(cells["moved"].mean()), "better_than_prior": float(cells["better_than_prior"].mean()),
            }
        )  # fmt: skip
    return found


def labels(data, num_batches=20):
    """The share of a batch's labels that are read off an untrained network, repeats included."""
    cases: list[tuple[str, int, dict[str, float]]] = [(model, size, {}) for model in ("mlp", "lenet", "cnn") for size in (1, 8, 16)]
    cases += [(model, 8, {"num_steps": 5, "learning_rate": rate}) for model in ("lenet", "cnn") for rate in (0.001, 0.01, 0.1)]
    rule, found = plausible(), []
    for model, size, local in cases:
        update, arguments = "fedavg" if local else "gradient", {"batch_size": size, **local}
        shares, certain, repeats = [], [], 0
        for seed in SEEDS:
            setting = Setting(
                make_spec("dataset", "cifar10", {k: v for k, v in cifar(data, num_batches * size).items() if k != "name"}),
                make_spec("model", model),
                make_spec("update", update, arguments),
            )
            client = setting.client(seed)
            nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], bool), client.grads)

            @jax.jit
            def read(key, grads, params, setting=setting, nothing=nothing):
                seen = observe(setting.model, setting.update, params, grads, nothing)
                return rule(key, seen, fill(seen, "ignore"))

            for batch in range(num_batches):
                guess = read(jax.random.key(batch), jax.tree.map(lambda leaf, batch=batch: leaf[batch], client.grads), client.params)
                truth = Counter(np.asarray(client.batches.labels[batch]).tolist())
                repeats += size - len(truth)
                shares.append(sum((Counter(np.asarray(guess.labels[0]).tolist()) & truth).values()) / size)
                certain.append(bool(guess.certain))
        found.append(
            {
                "row": "labels", "attack": "the first guess", "model": model, "dataset": "cifar10", "update": make_spec("update", update, arguments).label, "measure": "label_correct", "published": 0.99,
                "source": "Wainakh et al. 2022 and later: about 100 % untrained", "mean": float(np.mean(shares)), "low": None, "high": None, "samples": num_batches,
                "seeds": len(SEEDS), "certain": float(np.mean(certain)), "repeats": repeats,
            }
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", help="names; all of them by default")
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA"), help="folder of the data sets")
    parser.add_argument("--out", default="selgrad-runs/calibration", type=Path)
    given = parser.parse_args()
    if not given.data:
        parser.error("name the folder of the data sets with --data")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    rows = images(given.data)
    for name in given.rows or [*rows, "labels"]:
        found = labels(given.data) if name == "labels" else measured(name, rows[name], given.out)
        kept["rows"] = [row for row in kept["rows"] if row["row"] != name] + found
        kept["hardware"] = {"cores": os.cpu_count(), "machine": platform.machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        for row in found:
            interval = f"{row['mean']:.3g} ({row['low']}, {row['high']})"
            print(f"{name}: {row['attack']}, {row['update']}: {row['measure']} {interval}, published {row['published']}", flush=True)


if __name__ == "__main__":
    main()
