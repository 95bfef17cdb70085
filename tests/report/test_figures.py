"""Figures leave the caller's matplotlib as it was: notebooks draw their own after a sweep."""

import subprocess
import sys

CODE = """
import sys
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("svg")
from matplotlib import pyplot as plt

from selgrad.report import figures

seconds = {f"{p}_seconds": 0.1 for p in ("train", "encrypt", "add", "decrypt", "agree", "evaluate")}
sizes = {f"{p}_bytes": 10 for p in ("weights", "plain", "sealed", "mask", "agreement")}
rows = [{"round": number, "accuracy": 0.5, **seconds, **sizes} for number in (1, 2)]
figures.federation(pd.DataFrame(rows), Path(sys.argv[1]))
assert matplotlib.get_backend() == "svg" and not plt.get_fignums()
"""


def test_the_backend_and_the_open_figures_stay_the_callers(tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "federation.png").stat().st_size > 5000 and (tmp_path / "federation.svg").exists()
