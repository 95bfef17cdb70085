"""selgrad on an accelerator: attacks by lanes beside the device's ceilings, metrics and masks of BERT-base, and a sweep beside the CPU's.

Command: benchmarks/gpu.sh [--minutes N] [--out FILE]; with --tiny each part once at its smallest, on any device, so that CI can run it
Time: nine minutes unless told otherwise; parts that do not fit in it are left out and named.
Setting: as benchmarks/engine.py; lanes in powers of four from 1 to 4096, until memory runs out. Ceilings are measured in the same process: a product of two
  square float32 matrices at full precision, and a copy. A share of the roofline is what XLA counts for a step (operations and bytes), over what the ceilings allow in
  its time. Peak bytes are the device's own count where it keeps one. The sweep runs on the device and in a process that sees the CPU alone.
Expected: nothing has been measured on an accelerator yet.
Leaves: benchmarks/results/gpu.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selgrad import devices

devices.configure()

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import engine

from selgrad import topk, trees

LAMP = {"num_steps": 10**6, "num_starts": 1, "num_start_permutations": 0, "num_moves": 1}
engine.CASES["bert tiny lamp"] = ("bert", {"size": "tiny"}, "lamp", LAMP, (1,), 1)
ITERATIONS = {"bert tiny lamp": 75}
"""Of a step that is a phase."""
CASES = (
    "lenet inverting_gradients", "lenet dlg", "cnn inverting_gradients", "resnet inverting_gradients", "bert tiny tag", "bert base tag", "bert tiny lamp",
)  # fmt: skip
SWEEP = {
    "name": "gpu", "dataset": {"name": "digits", "count": 2}, "model": {"name": "mlp", "width": 16, "activation": "sigmoid"}, "metric": ["random", "magnitude"],
    "ratio": [0, 0.2, 1], "attack": {"name": "inverting_gradients", "num_steps": 50}, "encryption": "none", "gallery": 0,
}  # fmt: skip


def peak():
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def attack(name, lanes, ceiling, looks=""):
    os.environ["SELGRAD_STRIDE"] = looks
    run, told, counted = engine.program(name, lanes)
    steps, started = 1, time.perf_counter()
    run(1)
    # As many steps as fill half a second.
    while (time.perf_counter() - started) < 0.5 and steps < 4096:
        started = time.perf_counter()
        run(steps)
        steps *= 2
    each = statistics.median(engine.seconds_per_step(run, steps, 3))
    least = max(counted["flops"] / ceiling["flops_per_second"], counted["bytes accessed"] / ceiling["bytes_per_second"])
    rate = lanes * ITERATIONS.get(name, 1) / each
    return {
        "case": name, "lanes": lanes, "steps_between_looks": looks or "by platform", "iterations_per_second": rate, "share_of_roofline": least / each, "steps_timed": steps,
        "bound_by": "bytes" if counted["bytes accessed"] / ceiling["bytes_per_second"] == least else "operations", "peak_bytes": peak(), **told,
    }  # fmt: skip


def masks(tiny):
    """Seconds to score and to mask a gradient of BERT-base's size, without a data set."""
    from selgrad.base import GradientContext
    from selgrad.gradients import UPDATES
    from selgrad.models import MODELS
    from selgrad.significance import METRICS

    model, update = MODELS["bert"](engine.TEXT, size="tiny" if tiny else "base", embedding="sent"), UPDATES["gradient"]()
    params, batch = jax.jit(model.init)(jax.random.key(0)), engine.batch(engine.TEXT, 0)
    grads = jax.jit(lambda p, b: update.client(model, p, b, jax.nn.one_hot(b.labels, 2)))(params, batch)
    found = {"entries": trees.size(grads)}
    for name in ("magnitude", "product", "sensitivity"):
        score = METRICS[name]()
        run = jax.jit(lambda p, b, g, score=score: score(GradientContext(model=model, params=p, batch=b, update=update, grads=g, key=jax.random.key(0))))
        found[f"{name}_seconds"] = engine.seconds(run, params, batch, grads, repeats=3)
    host, count = jax.tree.map(lambda leaf: np.abs(np.asarray(leaf)), grads), trees.count(0.1, found["entries"])
    found["mask_on_host_seconds"] = engine.seconds(lambda: topk.top_on_host(host, [count]), repeats=3)
    on_device = jax.jit(lambda g: trees.top(trees.rank(jax.tree.map(jnp.abs, g)), count))
    found["mask_on_device_seconds"] = engine.seconds(on_device, grads, repeats=1 if tiny else 3)
    return found


def sweep():
    """The largest differences of a sweep's records from those of the CPU."""
    code = f"import selgrad, sys; selgrad.run_sweep({SWEEP!r}, sys.argv[1], quiet=True)"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("device", "cpu"):
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"} if name == "cpu" else dict(os.environ)
            subprocess.run([sys.executable, "-c", code, f"{folder}/{name}"], check=True, env=environment)
        from selgrad import read_records

        a, b = (read_records(f"{folder}/{name}").sort_values("cell_id").reset_index(drop=True) for name in ("device", "cpu"))
    same = list(a["cell_id"]) == list(b["cell_id"]) and (a["num_selected"] == b["num_selected"]).all()
    return {
        "cells": len(a), "devices": sorted({*a["device"], *b["device"]}), "same_cells_and_counts": bool(same),
        "largest_difference_psnr": float((a["psnr"] - b["psnr"]).abs().max()), "same_verdicts": bool((a["success"] == b["success"]).all()),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    arguments = parser.parse_args()
    ends = time.perf_counter() + 60 * arguments.minutes
    device = jax.local_devices()[0]
    result = {
        "hardware": {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "python": sys.version.split()[0]},
        "tiny": arguments.tiny, "ceilings": engine.ceilings(512 if arguments.tiny else 8192, 2**18 if arguments.tiny else 2**28), "attacks": [], "left_out": [],
    }  # fmt: skip

    def keep():
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    keep()
    result["sweep"] = sweep()
    result["masks"] = masks(arguments.tiny)
    keep()
    names = CASES[:1] if arguments.tiny else CASES
    # Every case gets its share of what is left, so that a slow one leaves none out.
    for number, name in enumerate(names):
        until = time.perf_counter() + (ends - time.perf_counter()) / (len(names) - number)
        for lanes in (1,) if arguments.tiny else (1, 4, 16, 64, 256, 1024, 4096):
            if time.perf_counter() > until:
                result["left_out"].append(f"{name} from {lanes} lanes on: no time")
                break
            try:
                result["attacks"].append(attack(name, lanes, result["ceilings"]))
                print({key: result["attacks"][-1][key] for key in ("case", "lanes", "iterations_per_second", "share_of_roofline")}, flush=True)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                result["left_out"].append(f"{name} from {lanes} lanes on: out of memory")
                break
            keep()
        # What it costs that the host waits after every step.
        if time.perf_counter() < ends:
            result["attacks"].append(attack(name, 1, result["ceilings"], looks="1"))
            keep()
    keep()


if __name__ == "__main__":
    main()
