"""Benchmarks that CI cannot measure run there at their smallest, so that they still run where they can."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
