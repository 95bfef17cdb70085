"""Images in closed form from a first dense layer whose gradient is partly encrypted: the share that is recovered exactly.

Command: uv run python benchmarks/rank_one.py --data DIR   (DIR holds cifar10/ and fashion-mnist/)
Time: about 20 minutes on one core; cells that are in the JSON already are not run again.
Expected: a sigmoid layer of 512 units on 3,072 pixels is recovered exactly with 99 % of its entries hidden by magnitude; of a relu layer a mask by magnitude
  hides everything once it covers the non-zero entries; without one, batches of 2 to 8 are exact. Exactly means: no pixel is off by half a grey level (1/510).
  Masks take their share of the whole update, or (batch 1, "layer") of the first layer's kernel alone and hide nothing else.
Leaves: benchmarks/results/rank_one.json.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from rich.progress import track

from selgrad import devices

devices.configure()
import jax

from selgrad import run_cell

FILE = Path(__file__).parent / "results" / "rank_one.json"
BATCHES = {1: 12, 2: 3, 4: 3, 8: 3, 16: 3, 25: 2}
WIDTH = 512
GROUP = ("dataset", "activation", "batch_size", "metric", "masked", "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    arguments = parser.parse_args()
    datasets = {
        "cifar10": {"name": "cifar10", "path": f"{arguments.data}/cifar10", "split": "test", "count": 50},
        "fashion_mnist": {"name": "fashion_mnist", "path": f"{arguments.data}/fashion-mnist", "count": 50},
    }
    known = json.loads(FILE.read_text())["cells"] if FILE.exists() else []
    done = {tuple(cell[k] for k in (*GROUP, "sample")) for cell in known}
    wanted = [
        (name, activation, size, metric, masked, ratio, sample)
        for name in datasets for activation in ("sigmoid", "relu") for size, count in BATCHES.items() for metric in ("magnitude", "random")
        for masked in ("tree", "layer") for ratio in (0.0, 0.9, 0.99) for sample in range(count)
        if (metric == "magnitude" or (ratio and size == 1)) and (masked == "tree" or (ratio and size == 1))
    ]  # fmt: skip
    for name, activation, size, metric, masked, ratio, sample in track([w for w in wanted if w not in done], "cells"):
        pixels = 3072 if name == "cifar10" else 784
        share = pixels * WIDTH / (pixels * WIDTH + WIDTH + WIDTH * 10 + 10)
        found = run_cell(
            dataset=datasets[name], model={"name": "mlp", "activation": activation, "width": WIDTH, "depth": 1}, attack="rank_one",
            update={"name": "gradient", "batch_size": size}, metric=metric, ratio=ratio * share if masked == "layer" else ratio, sample=sample,
            selector={"name": "by_path", "paths": ["fc_0/kernel"]} if masked == "layer" else "global_top",
        )  # fmt: skip
        error = np.abs(np.asarray(found.truth) - np.asarray(found.reconstruction)).reshape(size, -1)
        off = error.max(axis=1)
        known.append(
            {
                "dataset": name, "activation": activation, "batch_size": size, "metric": metric, "masked": masked, "ratio": ratio, "sample": sample,
                "exact": int((off < 1 / 510).sum()), "pixels_exact": float((error < 1 / 510).mean()), "mse": float(found.mse), "labels_right": float(found.label_correct), "seconds": found.seconds,
                "report": json.loads(found.report),
            }
        )  # fmt: skip
        if len(known) % 20 == 0 or len(known) == len(wanted):
            write(known)
    write(known)


def write(cells: list) -> None:
    """The cells and the share of images recovered exactly."""
    groups: dict = {}
    for cell in cells:
        groups.setdefault(tuple(cell[k] for k in GROUP), []).append(cell)
    shares = [
        {**dict(zip(GROUP, key, strict=True)), "num_images": key[2] * len(rows), "median_pixels_exact": float(np.median([r["pixels_exact"] for r in rows])),
         "share_exact": sum(r["exact"] for r in rows) / (key[2] * len(rows)), "median_mse": float(np.median([r["mse"] for r in rows]))}
        for key, rows in sorted(groups.items())
    ]  # fmt: skip
    hardware = {"device": jax.local_devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    FILE.write_text(json.dumps({"hardware": hardware, "shares": shares, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
