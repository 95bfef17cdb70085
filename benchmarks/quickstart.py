"""README's picture: what `selgrad quickstart` draws, and the numbers behind it.

Command: uv run python benchmarks/quickstart.py   (three minutes on 2 cores)
Setting: the sweep of `selgrad quickstart`, with its encryption.
Leaves: benchmarks/results/quickstart.json (a test compares it with what the code gives) and docs/figures/quickstart.png.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import pandas as pd

from selgrad import run_sweep
from selgrad.quickstart import QUICKSTART

HERE = Path(__file__).parent
KEYS = ["dataset", "hidden", "metric", "ratio"]


def curves(records: pd.DataFrame) -> list[dict]:
    """Mean PSNR (an exact image counts as 60 dB) and share of images told from others, by panel, metric and ratio."""
    table = records.assign(psnr=records["psnr"].clip(upper=60.0), success=records["success"].astype(float)).groupby(KEYS)[["psnr", "success"]].mean()
    return table.round(3).reset_index().to_dict("records")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        records = run_sweep(QUICKSTART, scratch)
        shutil.copy(Path(scratch) / "figures" / "psnr_against_ratio.png", HERE.parent / "docs" / "figures" / "quickstart.png")
    hardware = {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count()}
    (HERE / "results" / "quickstart.json").write_text(json.dumps({"hardware": hardware, "rows": curves(records)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
