"""Whether a sweep of many settings stays flat: resident memory and memory maps of the process as one setting after the other is compiled and run.

Command: uv run python benchmarks/many_settings.py [--settings N]   (half an hour on 2 cores for 300; Linux)
Setting: digits, as many MLPs as there are settings, each of another width so that none compiles like another, one metric, two ratios, Inverting Gradients with 5
  steps. Measured each time that a setting is planned, and each time that a block of it has run; an empty cache of compiled programs.
Expected: from the eighth setting on nothing grows with the settings; a process may have 65,530 maps by the kernel's default.
Leaves: benchmarks/results/many_settings.json.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np


def now(started: float) -> dict:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    return {"seconds": round(time.perf_counter() - started, 2), "bytes": 1024 * int(lines["VmRSS"].split()[0]), "maps": maps}


def config(settings: int) -> dict:
    return {
        "name": "settings", "dataset": {"name": "digits", "count": 1}, "model": [{"name": "mlp", "width": 8 + k} for k in range(settings)], "metric": "magnitude",
        "ratio": [0, 0.2], "attack": {"name": "inverting_gradients", "num_steps": 5}, "encryption": "none", "gallery": 0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=300)
    arguments = parser.parse_args()
    load, cache, folder = os.getloadavg()[0], tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = cache.name
    from selgrad import devices

    devices.configure()
    import jax

    from selgrad.config import parse
    from selgrad.sweep import Sweep
    from selgrad.sweep.executors.local import Local

    started, planned, run = time.perf_counter(), [], []
    sweep = Sweep(parse(config(arguments.settings)), folder.name)
    plan = sweep.plan(lambda _: planned.append(now(started)))
    Local().run(sweep, plan, None, lambda *_: run.append(now(started)), lambda *_: None)
    result = {
        "hardware": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__},
        "load_at_start": load,
        "settings": arguments.settings,
        "programs": plan.num_programs,
    }
    for phase, rows in (("planned", planned), ("run", run)):
        # A line through all but the first eight, which are held together.
        each = range(8, len(rows))
        slopes = {name: float(np.polyfit(each, [rows[k][name] for k in each], 1)[0]) for name in ("bytes", "maps")}
        result[phase] = {
            "largest": {name: max(row[name] for row in rows) for name in ("bytes", "maps")},
            "per_setting": slopes,
            "rows": rows[:: max(1, len(rows) // 30)],
        }
        print(phase, result[phase]["largest"], result[phase]["per_setting"], flush=True)
    result["seconds"] = time.perf_counter() - started
    (Path(__file__).parent / "results" / "many_settings.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
