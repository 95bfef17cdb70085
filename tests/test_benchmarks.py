"""Benchmarks that CI cannot measure run there at their smallest, so that they still run where they can."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.once
def test_the_accelerators_script_runs_at_its_smallest(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    ran = subprocess.run([HERE / "gpu.sh", "--tiny", "--out", tmp_path / "gpu.json"], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["steps_between_looks"] for row in found["attacks"]] == ["by platform", "1"] and not found["left_out"]
    for row in found["attacks"]:
        # Shares may lie above 1 where counted bytes stay in a cache; neither may be nothing.
        assert row["iterations_per_second"] > 1 and row["share_of_roofline"] > 0.001
    assert found["sweep"]["same_cells_and_counts"] and found["sweep"]["largest_difference_psnr"] == 0, "the same device twice"
    assert found["masks"]["mask_on_host_seconds"] > 0


@pytest.mark.slow
@pytest.mark.once
def test_the_picture_in_readme_is_what_the_quickstart_draws(tmp_path):
    """Compares two of the five ratios, one with and one without encryption.

    A search that ends in noise ends in another noise in another block or on another machine: its PSNR is compared to 2 dB, and below 10 dB nothing else.
    """
    from selgrad import run_sweep
    from selgrad.quickstart import QUICKSTART

    specification = importlib.util.spec_from_file_location("quickstart", HERE / "quickstart.py")
    made = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(made)
    ratios = [0, 0.8]
    records = run_sweep({**QUICKSTART, "encryption": "none", "ratio": ratios}, tmp_path / "out", quiet=True)
    every = json.loads((HERE / "results" / "quickstart.json").read_text())["rows"]
    assert {row["ratio"] for row in every} == set(QUICKSTART["ratio"])
    kept = [row for row in every if row["ratio"] in ratios]
    found = made.curves(records)
    assert [[row[key] for key in made.KEYS] for row in found] == [[row[key] for key in made.KEYS] for row in kept]
    pictures = [row["psnr"] >= 10 for row in kept]
    assert sum(pictures) > len(kept) / 2
    for column in ("success", "psnr"):
        values = [np.asarray([row[column] for row in rows]) for rows in (found, kept)]
        np.testing.assert_allclose(*(one[pictures] for one in values), atol=2.0 if column == "psnr" else 0)
    np.testing.assert_allclose([row["psnr"] for row in found], [row["psnr"] for row in kept], atol=2.0)
    assert "docs/figures/quickstart.png" in (HERE.parent / "README.md").read_text()
