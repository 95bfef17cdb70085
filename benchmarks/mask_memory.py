"""Memory and time of scores and a mask of BERT-base's whole gradient, word embeddings included: 109 million entries.

Command: uv run python benchmarks/mask_memory.py   (three minutes on 2 cores; Linux)
Setting: one sentence, metric magnitude, global top-k at ratio 0.1, through `Setting` as a sweep does it. The kernel's high-water mark is reset after the
  gradient is there; `gradients` counts what was needed beyond it in units of the gradient, plus 1 for the gradient itself.
Expected: below 4 gradients.
Leaves: benchmarks/results/mask_memory.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

from selgrad import devices

devices.configure()

import jax
import numpy as np

from selgrad.experiment import Lane, Setting
from selgrad.registry import make_spec


def status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(lines[field].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    arguments = parser.parse_args()
    # The vocabulary decides the size; the words are the same everywhere.
    dataset = make_spec("dataset", "cola", {"path": f"{arguments.data}/cola", "tokenizer": f"{arguments.data}/tokenizers/bert-base-uncased", "count": 1})
    setting = Setting(dataset, make_spec("model", "bert", {"size": "base", "embedding": "sent"}), make_spec("update", "gradient"))
    jax.block_until_ready(setting.client(0).grads)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    chosen = setting.chosen(Lane(0, 0, make_spec("metric", "magnitude"), make_spec("selector", "global_top"), 0.1))
    seconds = time.perf_counter() - started
    gradient = 4 * setting.num_total
    result = {
        "hardware": {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count(), "jax": jax.__version__},
        "num_entries": setting.num_total,
        "num_selected": int(np.bitwise_count(chosen.bits).sum()),
        "gradient_bytes": gradient,
        "gradients": 1 + (status("VmHWM") - before) / gradient,
        "score_seconds": chosen.score_seconds,
        "mask_seconds": chosen.mask_seconds,
        "seconds": seconds,
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "mask_memory.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
