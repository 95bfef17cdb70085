"""The parity table of BERT and GPT-2: relative errors against float64 values computed with PyTorch, on both platforms.

Command: SELGRAD_REFERENCE=DIR uv run python benchmarks/parity/transformers.py   (five minutes on 2 cores)
Runs tests/parity/test_transformers.py, which measures and asserts, with the default Python and with Python 3.12, and collects what it measured.
Expected: below 1e-9 in float64 and 1e-4 in float32; 1e-7 in float64 after the logits of gpt2-lm, whose reference loss is rounded to float32.
Leaves: benchmarks/results/parity.json.
"""

import json
import os
import re
import subprocess
import tempfile
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLATFORMS = {"default": [], "3.12": ["--python", "3.12", "--isolated"]}


def main() -> None:
    if not os.environ.get("SELGRAD_REFERENCE"):
        raise SystemExit("set SELGRAD_REFERENCE to the folder of reference values")
    rows, platforms = [], {}
    for name, options in PLATFORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            run = ["uv", "run", *options]
            subprocess.run([*run, "pytest", "tests/parity/test_transformers.py", f"--junitxml={report}"], cwd=ROOT, check=True)
            told = subprocess.run(
                [*run, "python", "-c", "import jax, platform; print(platform.python_version(), jax.__version__)"],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            platforms[name] = dict(zip(("python", "jax"), told.stdout.split(), strict=True))
            for case in xml.etree.ElementTree.parse(report).iter("testcase"):
                model, dtype = (re.search(pattern, case.get("name", "")) for pattern in ("bert-classifier|gpt2-classifier|gpt2-lm", "float32|float64"))
                for item in case.iter("property"):
                    quantity, error, tolerance = item.get("value").split()
                    about = {"model": model.group(), "dtype": dtype.group(), "quantity": quantity, "platform": name}
                    rows.append({**about, "relative_error": float(error), "tolerance": float(tolerance)})
    rows.sort(key=lambda row: [row[k] for k in ("model", "dtype", "quantity", "platform")])
    result = {"platforms": platforms, "rows": rows}
    (ROOT / "benchmarks" / "results" / "parity.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(" ".join(f"{value}" for value in row.values()))


if __name__ == "__main__":
    main()
