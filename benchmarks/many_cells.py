"""How a sweep of 10^2 to 10^6 cells is resumed, read, reported and summarised in W&B: seconds and peak memory.

Command: uv run python benchmarks/many_cells.py [--cells 10000 1000000]   (seven minutes on 2 cores; Linux)
Setting: the plan of a real sweep (digits, an MLP, 5 metrics, 10 ratios, 5 attacks, seeds and samples by size) with faked numbers in its records, in blocks of
  256 lanes, each a file as a sweep writes it; then what a finished sweep does when it is run again. Each part is a process of its own.
Expected: at 10^6 cells all parts together within 60 s and 2 GB.
Leaves: benchmarks/results/many_cells.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("resume", "read", "report", "wandb")


def config(cells: int) -> dict:
    samples = {10**2: 2, 10**3: 4, 10**4: 10, 10**5: 100, 10**6: 500}[cells]
    attacks = [{"name": "idlg", "num_steps": steps} for steps in (10, 20)]
    attacks += [{"name": "inverting_gradients", "num_steps": 10, "hidden": rung} for rung in ("zero", "ignore", "average")]
    return {
        "name": f"cells-{cells}", "dataset": {"name": "digits", "count": samples}, "model": {"name": "mlp", "width": 8},
        "metric": ["random", "magnitude", "sensitivity", "product", "fisher"][: 1 if cells == 10**2 else 5], "ratio": [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1],
        "attack": attacks, "seeds": list(range(max(1, cells // (samples * 250)))), "encryption": "none", "gallery": 0, "block_size": 256,
    }  # fmt: skip


def fake(out: Path, cells: int) -> None:
    """Records of every block of the plan, with numbers that nothing computed."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from selgrad.config import parse
    from selgrad.sweep import Sweep
    from selgrad.sweep.executors.local import Local
    from selgrad.sweep.records import cell_id

    sweep = Sweep(parse(config(cells)), out)
    sweep.folder.block_sizes.update({f"0:{attack.label}": 256 for attack in sweep.config.attack})
    sweep.folder.save()
    blocks = sweep.blocks()
    small = {**config(10**4), "metric": ["random"], "ratio": [0], "seeds": 1, "dataset": {"name": "digits", "count": 1}, "attack": config(10**4)["attack"][:1]}
    with tempfile.TemporaryDirectory() as folder:
        one = Sweep(parse(small), folder)
        Local().run(one, one.plan(), None, lambda *_: None, lambda *_: None)
        template = pd.read_parquet(Path(folder) / "records")
    generator = np.random.default_rng(0)
    for block in blocks:
        lanes = [lane for row in block.lanes for lane in row]
        table = template.loc[[0] * len(lanes)].reset_index(drop=True)
        quality = generator.normal(20, 5, len(lanes)) - 10 * np.asarray([lane.ratio for lane in lanes])
        facts = {
            "cell_id": [cell_id(sweep.config, sweep.settings[0], block.attack, lane) for lane in lanes],
            "sweep": sweep.config.name, "attack": block.attack.name, "attack_label": block.attack.label, "attack_arguments": block.attack.arguments_json,
            "hidden": block.attack.get("hidden"), "metric": [lane.metric.name for lane in lanes], "metric_label": [lane.metric.label for lane in lanes],
            "metric_arguments": [lane.metric.arguments_json for lane in lanes], "ratio": [lane.ratio for lane in lanes],
            "sample": [lane.sample for lane in lanes], "seed": [lane.seed for lane in lanes], "psnr": quality, "success": quality > 25,
        }  # fmt: skip
        table = table.assign(**facts)
        sweep.record_file(block).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sweep.record_file(block))
    (out / "equivalence.parquet").unlink(missing_ok=True)
    pd.DataFrame(columns=["metric_a", "metric_b", "leaf", "identical"]).to_parquet(out / "equivalence.parquet")
    sweep.folder.write_text("config.yaml", json.dumps(sweep.config.to_dict()))


def part(name: str, out: Path, cells: int) -> None:
    from selgrad.report.page import make_report
    from selgrad.report.tables import read_records

    started = time.perf_counter()
    if name == "resume":
        from selgrad.config import parse
        from selgrad.sweep import Sweep

        sweep = Sweep(parse(config(cells)), out)
        plan = sweep.plan()
        assert (plan.num_cells, plan.num_programs, sweep.missing(plan.blocks)) == (cells, 0, [])
        sweep.folder.compact()
    elif name == "read":
        assert len(read_records(out)) == cells
    elif name == "report":
        make_report(out)
    else:
        from selgrad.tracking import make_tracker

        records = read_records(out)
        tracker = make_tracker("offline", out, "cells", "cells", {}, {"project": "selgrad", "entity": None, "group": None, "tags": [], "runs": "sweep"})
        tracker.open(["idlg"])
        tracker.finish(records, out / "figures")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = 1024 * int(lines["VmHWM"].split()[0])
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", type=int, nargs="*", default=[10**k for k in range(2, 7)])
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part, arguments.out, arguments.cells[0])
        return
    import jax

    # Compiled modules are kept, as they are for users: without them most of a short part is Python reading its libraries.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    result: dict = {"hardware": {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count(), "load": os.getloadavg()}, "cells": {}}
    for cells in arguments.cells:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            fake(out, cells)
            files = len(list((out / "records").iterdir()))
            found: dict = {"files": files}
            # Read once as the blocks left it, and after that compacted.
            for name in ("read", *PARTS, "report"):
                command = [sys.executable, __file__, "--part", name, "--out", str(out), "--cells", str(cells)]
                ran = subprocess.run(command, capture_output=True, text=True, env=environment)
                if ran.returncode:
                    raise SystemExit(ran.stderr)
                label = "read before compaction" if name == "read" and "read before compaction" not in found else "report again" if name in found else name
                found[label] = json.loads(ran.stdout.splitlines()[-1])
                print(cells, label, found[label], flush=True)
            found["files after"] = len(list((out / "records").iterdir()))
            timed = [found[name] for name in PARTS]
            found["together"] = {"seconds": sum(one["seconds"] for one in timed), "peak_bytes": max(one["peak_bytes"] for one in timed)}
            result["cells"][str(cells)] = found
    (Path(__file__).parent / "results" / "many_cells.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
