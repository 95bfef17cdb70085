"""The accuracy that `selgrad train` reaches by its recipes, and how long it takes, so that attacks can be run on trained weights.

Command: SELGRAD_DATA=DIR uv run python benchmarks/training.py   (digits alone without the folder, which holds mnist/ and fashion-mnist/ in original files)
Time: three minutes on 2 cores.
Expected: above 95 % on digits and MNIST; about 86 % on 6,000 pictures of Fashion-MNIST.
Leaves: benchmarks/results/training.json; weights in a temporary folder.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from selgrad import devices

devices.configure()
import jax

from selgrad.registry import Spec
from selgrad.training import Recipe, train

FILE = Path(__file__).parent / "results" / "training.json"
ROOT = os.environ.get("SELGRAD_DATA")


def halves(name: str, folder: str) -> tuple[dict, dict]:
    path = str(Path(ROOT or "") / folder)
    return {"name": name, "path": path, "split": "train"}, {"name": name, "path": path, "split": "test"}


DIGITS = {"name": "digits"}, None
RECIPES = [
    ("digits", DIGITS, {"name": "lenet"}, Recipe(num_epochs=60, learning_rate=0.01)),
    ("digits", DIGITS, {"name": "mlp"}, Recipe(num_epochs=20)),
    ("digits", DIGITS, {"name": "resnet", "depth": 8, "width": 8}, Recipe(num_epochs=20, optimiser="momentum")),
    ("mnist", halves("mnist", "mnist"), {"name": "cnn", "width": 16}, Recipe(num_epochs=4)),
    ("mnist", halves("mnist", "mnist"), {"name": "lenet"}, Recipe(num_epochs=12, learning_rate=0.01)),
    ("fashion_mnist", halves("fashion_mnist", "fashion-mnist"), {"name": "cnn", "width": 16}, Recipe(num_epochs=8)),
]  # fmt: skip


def main() -> None:
    host = {"devices": len(jax.devices()), "platform": jax.devices()[0].platform, "device_kind": jax.devices()[0].device_kind, "jax": jax.__version__}
    rows = []
    for data, (learnt, tested), model, recipe in RECIPES:
        if "path" in learnt and not ROOT:
            print(f"{data}: SELGRAD_DATA names no folder, left out")
            continue
        pictures, held_out = (None if one is None else Spec.of("dataset", one).build() for one in (learnt, tested))
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = train(pictures, model, folder, recipe=recipe, test=held_out)
        row = {
            "dataset": data, "samples": len(pictures), "model": Spec.of("model", model).label, "recipe": recipe._asdict(), **found,
            "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row)
        FILE.write_text(json.dumps({"host": host, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
