"""What is lost when processes of a sweep are killed: workers, nodes and drivers, on one machine's processes, Ray and submitit.

Command: uv run python benchmarks/faults.py [--rounds N]   (a quarter of an hour on 2 cores; Linux; extras `ray` and `submitit`)
Setting: 96 cells in 32 blocks (digits, an MLP, two attacks). A fault is injected each time that a few further record files are there, by SIGKILL, or by the removal of
  a node from a Ray cluster, by turns a worker's and the one through which the driver had joined; after the driver is killed the same command goes on. Then the
  records are compared with those of one process that nothing disturbed: by cell, all columns to the last bit but times and the run's name.
Expected: no cell lost, none twice, none different.
Leaves: benchmarks/results/faults.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

CONFIG = {
    "name": "faults", "dataset": {"name": "digits", "count": 4}, "model": {"name": "mlp", "width": 12, "activation": "sigmoid"},
    "metric": ["random", "magnitude"], "ratio": [0, 0.2, 1], "encryption": "none", "seeds": [0, 1], "block_size": 3, "gallery": 1,
    "attack": [{"name": "idlg", "num_steps": 8, "memory": 10}, {"name": "inverting_gradients", "num_steps": 200}],
}  # fmt: skip
TIMES = ["score_seconds", "mask_seconds", "encrypt_seconds", "add_seconds", "decrypt_seconds", "attack_seconds", "run_id"]


class Run:
    """The command line in a process of its own, begun again where it is killed."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.out, self._engine, self._config = folder / "out", engine, folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
        self.go_on()

    def go_on(self) -> None:
        command = [sys.executable, "-m", "selgrad", "sweep", str(self._config), "--out", str(self.out), "--engine", self._engine]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def files(self) -> int:
        return len(list(self.out.glob("records/*.parquet")))

    def until(self, count: int) -> bool:
        """Whether so many record files came before the end."""
        while self.files() < count and self.process.poll() is None:
            time.sleep(0.02)
        return self.process.poll() is None

    def children(self, word: str) -> list[int]:
        found = []
        for one in psutil.process_iter(["pid", "name", "cmdline"]):
            if word in (one.info["name"] or "") or word in " ".join(one.info["cmdline"] or []):
                found.append(one.info["pid"])
        return [pid for pid in found if pid != os.getpid()]

    def end(self) -> None:
        _, error = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(error)


def kill(pid: int) -> int:
    try:
        os.kill(pid, signal.SIGKILL)
        return 1
    except ProcessLookupError:
        return 0


def compare(out: Path, plain) -> dict:
    from selgrad.report.tables import read_records

    found = read_records(out)
    a, b = (table.drop(columns=TIMES).sort_values("cell_id").reset_index(drop=True) for table in (plain, found))
    lost, doubled = set(a["cell_id"]) - set(b["cell_id"]), int(b["cell_id"].duplicated().sum())
    different = -1 if lost or doubled or len(a) != len(b) else int((~((a == b) | (a.isna() & b.isna())).all(axis=1)).sum())
    return {"cells": len(b), "lost": len(lost), "doubled": doubled, "different": different}


def here(run: Run, faults: int) -> int:
    """The one process of engine local."""
    done = 0
    for number in range(faults):
        if not run.until(2 + 3 * number):
            break
        run.process.kill()
        run.process.communicate()
        done += 1
        run.go_on()
    return done


def workers(word: str):
    def inject(run: Run, faults: int) -> int:
        done = 0
        for number in range(faults):
            if not run.until(2 + 3 * number):
                break
            found = run.children(word)
            done += kill(found[-1]) if found else 0
        return done

    return inject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    from selgrad import run_sweep

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = run_sweep(CONFIG, Path(folder) / "plain", quiet=True)

        def record(engine: str, fault: str, injected: int, out: Path) -> None:
            rows.append({"engine": engine, "fault": fault, "injected": injected, **compare(out, plain)})
            print(rows[-1], flush=True)

        for number in range(arguments.rounds):
            for engine, fault, inject in (
                ("local", "SIGKILL of the process", here),
                ("submitit:cluster=local,workers=2,retries=9", "SIGKILL of a job", workers("submitit.core._submit")),
            ):
                at = Path(folder) / f"{engine.split(':')[0]}-{number}"
                at.mkdir()
                run = Run(at, engine)
                injected = inject(run, 4)
                run.end()
                record(engine.split(":")[0], fault, injected, run.out)
            at = Path(folder) / f"ray-{number}"
            at.mkdir()
            with subprocess.Popen(
                [sys.executable, Path(__file__).parent / "ray_nodes.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as nodes:

                def do(what: str, nodes=nodes) -> str:
                    nodes.stdin.write(what + "\n")
                    nodes.stdin.flush()
                    return next(line for line in nodes.stdout if line.startswith("cluster")).split()[1]

                do("add")
                do("add")
                run = Run(at, f"ray:address={do('attach')},workers=2,retries=9")
                injected = dict.fromkeys(("worker", "node", "the driver's node", "driver"), 0)
                for step in range(2):
                    if run.until(2 + 9 * step):
                        found = run.children("ray::Worker")
                        injected["worker"] += kill(found[-1]) if found else 0
                    if run.until(5 + 9 * step):
                        do("remove")
                        do("add")
                        injected["node"] += 1
                    if run.until(7 + 9 * step):
                        do("detach")
                        do("add")
                        injected["the driver's node"] += 1
                    if run.until(10 + 9 * step):
                        do("attach")
                        run.process.kill()
                        run.process.communicate()
                        injected["driver"] += 1
                        run.go_on()
                run.end()
                nodes.stdin.close()
            record("ray", ", ".join(f"{count} x {name}" for name, count in injected.items()), sum(injected.values()), run.out)
    import jax

    result = {"hardware": {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count()}, "rows": rows}
    (Path(__file__).parent / "results" / "faults.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
