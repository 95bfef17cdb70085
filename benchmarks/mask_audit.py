"""What the list of encrypted entries alone tells: labels, pixels and tokens, per metric, and what selectors that say less cost in extra entries.

Command: uv run python benchmarks/mask_audit.py --data DIR [--settings "digits, LeNet"]   (DIR holds sst2/ and tokenizers/bert-base-uncased)
Time: about 15 minutes on one core.
Expected: an index list chosen by a data-dependent metric leaks; nobody has published how much.
Leaves: benchmarks/results/mask_audit.json and docs/figures/mask_audit_digits.png.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd

from selgrad import devices

devices.configure()
import jax

from selgrad.audit import audit_masks
from selgrad.report.figures import mask_leaks

HERE = Path(__file__).parent
METRICS = ["magnitude", {"name": "sensitivity", "target": "inputs", "num_probes": 16}, "random"]
SELECTORS = [
    "global_top", {"name": "aligned", "unit": "columns"}, {"name": "aligned", "unit": "slots", "size": 512}, {"name": "randomised", "flip": 0.5},
    {"name": "common", "by": "mean"}, {"name": "common", "by": "vote"}, {"name": "common", "by": "union"},
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--settings", nargs="+", help="Only these, the others as they were.")
    parser.add_argument("--draw", action="store_true", help="Only draw what mask_audit.json holds.")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(pd.DataFrame(json.loads((HERE / "results" / "mask_audit.json").read_text())["rows"]))
        return
    digits = {"name": "digits", "count": 300}
    sst2 = {"name": "sst2", "path": f"{arguments.data}/sst2", "tokenizer": f"{arguments.data}/tokenizers/bert-base-uncased", "max_length": 16}
    settings = {
        "digits, LeNet": {"dataset": digits, "model": "lenet", "selectors": SELECTORS},
        "digits, LeNet, lists in order": {
            "dataset": digits,
            "model": "lenet",
            "selectors": ["global_top", {"name": "common", "by": "interleaved"}],
            "ordered": True,
        },
        "digits, MLP": {"dataset": digits, "model": {"name": "mlp", "width": 64}, "selectors": SELECTORS},
        "SST-2, BERT, embeddings frozen": {"dataset": {**sst2, "count": 300}, "model": "bert", "selectors": ["global_top", {"name": "common", "by": "mean"}]},
        "SST-2, BERT, embeddings sent": {"dataset": {**sst2, "count": 80}, "model": {"name": "bert", "embedding": "sent"}, "selectors": ["global_top"]},
    }
    tables, file = [], HERE / "results" / "mask_audit.json"
    if arguments.settings:
        before = pd.DataFrame(json.loads(file.read_text())["rows"])
        tables.append(before[~before["setting"].isin(arguments.settings)])
    for name, setting in ((name, settings[name]) for name in arguments.settings or settings):
        table = audit_masks(**setting, metrics=METRICS, ratios=[0.01, 0.1, 0.5], on_event=lambda line, name=name: print(f"{name}: {line}", flush=True))
        tables.append(table.assign(setting=name))
    rows = pd.concat(tables, ignore_index=True)
    hardware = {"device": jax.local_devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    file.write_text(json.dumps({"hardware": hardware, "rows": json.loads(rows.to_json(orient="records"))}, indent=1) + "\n")
    draw(rows)


def draw(rows: pd.DataFrame) -> None:
    """What the masks of the digits tell, for docs/results/mask_leakage.md."""
    drawn = Path("selgrad-runs/mask-audit")
    mask_leaks(rows[rows["setting"] == "digits, LeNet"], drawn)
    (drawn / "mask_leaks.png").replace(HERE.parent / "docs" / "figures" / "mask_audit_digits.png")


if __name__ == "__main__":
    main()
