"""What is lost when a command is ended at a random moment, again and again, and the same command goes on each time.

Command: uv run --extra federation python benchmarks/kills.py [--kills 50] [--kinds images text ...]   (a quarter of an hour a kind on 2 cores; Linux)
Setting: a sweep over images, one over text, a federated run, `train` and `train-lm`, each a process of its own that ends by SIGKILL, SIGTERM or SIGINT by turns,
  after a time drawn evenly from 0 to 1.1 times what the whole takes undisturbed. When it comes to its end it begins anew, until so many have ended early. Then all
  that it leaves is compared with that of a run that nothing disturbed: of records every column by cell to the last bit but times and the run's name; of a
  federated run each round's clients, mask and accuracy; of a training the weights' file.
Expected: nothing lost, nothing twice, nothing different; an exit code of 130 or 143 and no traceback.
Leaves: benchmarks/results/kills.json.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
import yaml
from faults import CONFIG, compare

IMAGES = {**CONFIG, "name": "images"}
TEXT = {
    "name": "text", "dataset": {"name": "sentences", "count": 3}, "model": {"name": "bert", "size": "tiny"}, "metric": ["random", "magnitude"],
    "ratio": [0, 0.3], "encryption": "none", "block_size": 2, "gallery": 1, "attack": {"name": "tag", "num_steps": 10, "learning_rate": 0.1},
}  # fmt: skip
FEDERATION = {
    "dataset": {"name": "digits", "count": 300}, "test": {"name": "digits", "count": 200, "offset": 300}, "model": {"name": "mlp", "width": 16}, "rounds": 6,
    "clients": {"count": 3}, "local": {"num_steps": 5, "batch_size": 16}, "ratio": 0.2, "verify": False,
}  # fmt: skip
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def _records(out: Path):
    from selgrad.report.tables import read_records

    return read_records(out)


def _rounds(out: Path):
    rounds = pd.read_parquet(out / "rounds.parquet")[["round", "num_clients", "num_selected", "num_total", "accuracy"]]
    return rounds.reset_index(drop=True)


def _weights(out: Path) -> str:
    found = sorted(out.rglob("*.safetensors"))
    if found:
        return hashlib.sha256(found[0].read_bytes()).hexdigest()
    from selgrad.weights import read

    return hashlib.sha256(b"".join(name.encode() + leaf.tobytes() for name, leaf in sorted(read(out / "weights").items()))).hexdigest()


def _same_rounds(found, plain) -> dict:
    lost = len(set(plain["round"]) - set(found["round"]))
    return {"cells": len(found), "lost": lost, "doubled": int(found["round"].duplicated().sum()), "different": int(not found.equals(plain))}


KINDS = {
    "images": (["sweep", "{config}", "--out", "{out}"], IMAGES, _records, None),
    "text": (["sweep", "{config}", "--out", "{out}"], TEXT, _records, None),
    "federated": (["federate", "{config}", "--out", "{out}"], FEDERATION, _rounds, _same_rounds),
    "train": (["train", "--dataset", "digits", "--model", "mlp:width=16", "--epochs", "60", "--out", "{out}"], None, _weights, None),
    "train-lm": (["train-lm", "--dataset", "sentences", "--steps", "40", "--batch-size", "4", "--out", "{out}"], None, _weights, None),
}
"""What is run, its configuration, what it leaves, and how two of these are compared."""


class Kind:
    def __init__(self, name: str, folder: Path) -> None:
        command, config, self._read, self._same = KINDS[name]
        self.folder, self.out = folder, folder / "out"
        if config is not None:
            (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        self._command = [part.format(config=folder / "config.yaml", out=self.out) for part in command]
        self._log = (folder / "stderr").open("w+")

    def start(self) -> subprocess.Popen:
        self._log.seek(0)
        self._log.truncate()
        return subprocess.Popen([sys.executable, "-m", "selgrad", *self._command], stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True)

    def said(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def left(self):
        return self._read(self.out)

    def compare(self, plain) -> dict:
        if self._same is not None:
            return self._same(self.left(), plain)
        if isinstance(plain, str):
            return {"cells": 1, "lost": 0, "doubled": 0, "different": int(self.left() != plain)}
        return compare(self.out, plain)


def measured(name: str, kills: int, draw: random.Random, folder: Path) -> dict:
    kind = Kind(name, folder)
    kind.start().wait()  # what is compiled is kept for the others
    shutil.rmtree(kind.out)
    started = time.perf_counter()
    if kind.start().wait():
        raise SystemExit(kind.said())
    seconds, plain = time.perf_counter() - started, kind.left()
    row: dict = {"kind": name, "seconds": seconds, "kills": dict.fromkeys((one.name for one in SIGNALS), 0), "whole_runs": 0}
    row |= {"lost": 0, "doubled": 0, "different": 0, "tracebacks": 0, "other_exit_codes": 0, "processes_left": 0}
    shutil.rmtree(kind.out)
    done = 0
    while done < kills or kind.out.exists():
        process, end = kind.start(), time.monotonic() + (draw.uniform(0, 1.1 * seconds) if done < kills else 1e6)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        if process.poll() is None:
            which = list(SIGNALS)[done % len(SIGNALS)]
            process.send_signal(which)
            code = process.wait(60)
            done += 1
            row["kills"][which.name] += 1
            # A signal that comes before Python listens, or after all was done, has the code of that moment.
            if code not in (SIGNALS[which], -which, 0):
                row["other_exit_codes"] += 1
                print(name, which.name, code, kind.said()[-500:], flush=True)
            row["tracebacks"] += "Traceback" in kind.said()
            if "Traceback" in kind.said():
                print(name, which.name, code, kind.said()[-1500:], flush=True)
        elif process.returncode:
            raise SystemExit(f"{name}: {process.returncode}: {kind.said()}")
        else:
            row["whole_runs"] += 1
            for key, count in kind.compare(plain).items():
                if key in row:
                    row[key] += count
            shutil.rmtree(kind.out, ignore_errors=True)
    time.sleep(5)
    left = [
        one.info["pid"]
        for one in psutil.process_iter(["pid", "cmdline"])
        if str(folder) in " ".join(one.info["cmdline"] or []) and one.info["pid"] != os.getpid()
    ]
    return {**row, "processes_left": len(left)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    import jax

    file = Path(__file__).parent / "results" / "kills.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    for name in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(name, arguments.kills, random.Random(0), Path(folder))
        print(row, flush=True)
        kept = [old for old in kept if old["kind"] != name] + [row]
        result = {"hardware": {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count()}, "rows": kept}
        file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
