"""Where the time of a sweep goes, phase by phase, and how many programs are compiled: a LeNet on CIFAR-10, BERT tiny on CoLA with TAG and DAGER, and LAMP.

Command: SELGRAD_DATA=FOLDER uv run python benchmarks/sweep_phases.py [--before FOLDER] [--repeats N]
  SELGRAD_DATA holds cifar10/cifar-10-batches-py, cola and tokenizers/bert-base-uncased. --before is a checkout of an older commit, whose sweeps are run in
  turns with these by the same interpreter.
Time: about a quarter of an hour on 2 cores, half an hour with --before.
Setting: 192 cells each for `lenet` (4 images, 3 metrics, 4 ratios, DLG with 5 outer steps and Inverting Gradients with 100, two rungs) and `cola` (4 sentences,
  TAG with 60 steps and DAGER, two rungs); 8 cells with 2 steps of LAMP for `lamp`, of which only the compilation is of interest. Every run is a process of its own
  with an empty folder for its results. `cold` has an empty cache of compiled programs, `warm` the one that `cold` left; an older commit without a cache is
  always cold. Phases are exclusive seconds of wall time on the thread that drives the sweep; imports are outside the total.
Expected: at most 25 to 30 compilations for LeNet; at most 20 s for LAMP's program.
Leaves: benchmarks/results/sweep_phases.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = {"name": "cola", "path": "cola", "max_length": 16, "count": 4, "offset": 40, "tokenizer": "tokenizers/bert-base-uncased"}
METRICS = ["random", "magnitude", {"name": "sensitivity", "target": "inputs", "num_probes": 16}]
SWEEPS = {
    "lenet": {
        "name": "lenet", "dataset": {"name": "cifar10", "path": "cifar10/cifar-10-batches-py", "count": 4}, "model": {"name": "lenet", "activation": "sigmoid"},
        "metric": METRICS, "ratio": [0, 0.1, 0.5, 0.9], "encryption": {"profile": "exact", "num_clients": 10},
        "attack": [{"name": "dlg", "num_steps": 5, "hidden": ["zero", "ignore"]}, {"name": "inverting_gradients", "num_steps": 100, "hidden": ["zero", "ignore"]}],
    },
    "cola": {
        "name": "cola", "dataset": TEXT, "model": {"name": "bert", "size": "tiny"}, "metric": METRICS, "ratio": [0, 0.2, 0.5, 0.95], "known_labels": True,
        "encryption": {"profile": "exact", "num_clients": 10},
        "attack": [
            {"name": "tag", "num_steps": 60, "start": "vocabulary", "learning_rate": 0.01, "hidden": ["zero", "ignore"]},
            {"name": "dager", "num_attempts": 1, "max_candidates": 32, "hidden": ["zero", "ignore"]},
        ],
    },
    "lamp": {
        "name": "lamp", "dataset": TEXT, "model": {"name": "bert", "size": "tiny"}, "metric": "random", "ratio": [0, 0.2], "known_labels": True,
        "encryption": "none", "attack": {"name": "lamp", "num_steps": 2},
    },
}  # fmt: skip


def worker():
    """Runs the sweep on standard input and prints one line of JSON; works on commits from before the phases had their present names too."""
    import collections
    import functools
    import threading
    import time

    from selgrad import devices

    devices.configure()
    import jax
    from jax import monitoring

    compiled = []
    told = lambda name, seconds, **_: compiled.append(seconds) if name.endswith("backend_compile_duration") else None
    monitoring.register_event_duration_secs_listener(told)
    try:
        from selgrad.experiment.block import Block
        from selgrad.experiment.choices import Choices
        from selgrad.experiment.host import HostBlock
        from selgrad.sweep import run as sweep
        from selgrad.sweep import runner
    except ImportError:
        from selgrad import runner, sweep
        from selgrad.experiment import Block, HostBlock, Setting

        Choices = Setting
    from selgrad.experiment import Setting

    seconds, stack = collections.defaultdict(float), []

    def timed(place, attribute, phase, wait=False):
        function = getattr(place, attribute, None)
        if function is None:
            return

        @functools.wraps(function)
        def inner(*arguments, **options):
            if threading.current_thread() is not threading.main_thread():
                return function(*arguments, **options)
            started = time.perf_counter()
            stack.append(0.0)
            try:
                found = function(*arguments, **options)
                return jax.block_until_ready(found) if wait else found
            finally:
                spent = time.perf_counter() - started
                seconds[phase] += spent - stack.pop()
                if stack:
                    stack[-1] += spent

        setattr(place, attribute, inner)

    timed(Block, "compile", "compiling attacks")
    for name in ("observe", "start", "advance", "finish"):
        timed(Block, name, "running attacks", wait=True)
    # On a thread of their own, or on the one that drives the sweep in older commits; what records are made of them counts with these.
    try:
        from selgrad.sweep.executors.local import _Run as run
    except ImportError:
        run = None
    timed(run, "_wait", "attacks on the host")
    for name in ("advance", "finish"):
        timed(HostBlock, name, "attacks on the host")
    for place, name in ((Setting, "_client"), (Setting, "_weights"), (Choices, "_scores")):
        timed(place, name, "weights, updates, scores")
    for name in ("_choose", "_ranks"):
        timed(Choices, name, "masks")
    timed(sweep.Sweep, "costs", "encryption")
    timed(sweep.Sweep, "plan", "the rest of planning")
    for name in ("_run_block", "prepare_block", "attack_block", "record_block"):
        timed(sweep.Sweep, name, "the rest of running: records, gallery")
    timed(runner, "make_report", "report")
    config = json.loads(sys.stdin.read())
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = runner.run_sweep(config, f"{folder}/out", wandb="disabled", quiet=True)
        total = time.perf_counter() - started
    phases = {name: round(value, 3) for name, value in sorted(seconds.items(), key=lambda item: -item[1])}
    phases["elsewhere"] = round(total - sum(seconds.values()), 3)
    print(json.dumps({"cells": len(records), "seconds": total, "compilations": len(compiled), "xla_seconds": sum(compiled), "phases": phases}))


def placed(value, data):
    """The configuration with paths below the data folder."""
    if isinstance(value, dict):
        return {k: str(data / v) if k in ("path", "tokenizer") else placed(v, data) for k, v in value.items()}
    return [placed(v, data) for v in value] if isinstance(value, list) else value


def measure(config, checkout, cache):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": cache}
    command = [sys.executable, __file__, "--worker"]
    done = subprocess.run(command, input=json.dumps(config), capture_output=True, text=True, env=environment, cwd=checkout)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return
    here, data = Path(__file__).parents[1], Path(os.environ["SELGRAD_DATA"]).resolve()
    import jax

    result = {
        "hardware": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__},
        "load_at_start": os.getloadavg()[0],
        "sweeps": {},
    }
    for name, config in SWEEPS.items():
        config, runs = placed(config, data), {}
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    runs.setdefault(kind, []).append(measure(config, here, cache))
            if arguments.before is not None and name != "lamp":
                with tempfile.TemporaryDirectory() as cache:
                    runs.setdefault("before", []).append(measure(config, arguments.before.resolve(), cache))
        for kind, every in runs.items():
            middle = sorted(every, key=lambda one: one["seconds"])[len(every) // 2]
            row = {**middle, "all_seconds": [one["seconds"] for one in every]}
            result["sweeps"].setdefault(name, {})[kind] = row
            print(name, kind, round(row["seconds"], 1), row["compilations"], row["phases"], flush=True)
        if "before" in runs:
            of = lambda kind, runs=runs: statistics.median(one["seconds"] for one in runs[kind])
            result["sweeps"][name]["share_of_before"] = {kind: of(kind) / of("before") for kind in ("cold", "warm")}
            print(name, result["sweeps"][name]["share_of_before"], flush=True)
    result["load_at_end"] = os.getloadavg()[0]
    (Path(__file__).parent / "results" / "sweep_phases.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
