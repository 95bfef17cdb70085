"""What selgrad makes of its own files when a bit of them is another, or their end is missing.

Command: uv run --extra federation python benchmarks/damage.py [--count 1000] [--more]   (half an hour on 2 cores, and two hours for the federated run;
  every 50 damages are kept, and --more goes on after them)
Setting: the folders of a sweep over images and one over text with everything that a sweep writes, of a federated run with its participants' enrolments and what they
  have answered, of `train`, of `train-lm`, and the keys of the encryption. Each time one file of a kind is damaged (a bit at a random place, or a cut at one), and the
  folder is used as its owner would: the same sweep again and its report, the same run again, the weights read, the participant asked again. Then what comes out is
  compared with what came out before.
Counted: `same`, nothing changed (a bit of padding, a figure that is made anew); `named`, one line of selgrad's own says what is damaged; `warned`, it goes on and says
  so; `wrong and silent`; `traceback`, any other error.
Expected: wrong and silent 0, traceback 0.
Leaves: benchmarks/results/damage.json.
"""

import argparse
import collections
import json
import os
import random
import shutil
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from faults import TIMES
from kills import FEDERATION, IMAGES, TEXT

from selgrad.errors import SelgradError


def rows(table: pd.DataFrame, key: str) -> str:
    """A table as text, without times, in one order."""
    kept = [name for name in table.columns if name not in TIMES and not name.endswith("_seconds")]
    return table[kept].sort_values(key, ignore_index=True).to_json()


class Sweep:
    """A sweep's folder: the same sweep again, and its report."""

    def __init__(self, config: dict) -> None:
        self.config = config

    def make(self, folder: Path) -> None:
        from selgrad import run_sweep
        from selgrad.report.page import make_report

        run_sweep(self.config, folder, quiet=True)
        make_report(folder)

    def use(self, folder: Path) -> str:
        from selgrad import run_sweep
        from selgrad.report.page import make_report

        found = rows(run_sweep(self.config, folder, quiet=True), "cell_id")
        make_report(folder)
        return found


class Federated:
    """A federated run's folder: the same run again, and every participant as a new process finds itself."""

    def make(self, folder: Path) -> None:
        from selgrad import federate

        federate({**FEDERATION, "rounds": 2}, folder, quiet=True)

    def use(self, folder: Path) -> str:
        from selgrad import federate
        from selgrad.federation.enrolment import Enrolment, Seat

        found = [rows(federate({**FEDERATION, "rounds": 2}, folder, quiet=True), "round")]
        for number in range(4):
            seat = Seat(Enrolment.load(folder / "enrolment" / str(number)), folder / "enrolment" / str(number))
            found.append(repr((seat.enrolment, seat.enrolment.shared, seat.enrolment.secret, seat.enrolment.client_key)))
            found += [repr(seat.answered(kind)) for kind in ("agree", "train", "decrypt", "choose")] + [
                repr(seat.kept(name)) for name in ("mac", "mask", "weights")
            ]
        return str(hash(tuple(found)))


class Weights:
    """What `train` or `train-lm` left: the weights, and the same training again."""

    def __init__(self, text: bool) -> None:
        self.text = text

    def _train(self, folder: Path):
        from selgrad import language_model, training
        from selgrad.registry import make_spec

        data = make_spec("dataset", "sentences" if self.text else "digits", {} if self.text else {"count": 100}).build()
        if self.text:
            return data, language_model.train(data, folder, num_steps=2, batch_size=4)
        return data, training.train(data, make_spec("model", "mlp", {"width": 8}), folder, recipe=training.Recipe(num_epochs=1))

    def make(self, folder: Path) -> None:
        self._train(folder)

    def use(self, folder: Path) -> str:
        from selgrad import language_model, weights

        data, result = self._train(folder)
        if self.text:
            leaves = jax.tree.leaves(language_model.load(str(folder), data.spec)[1])
        else:
            leaves = [leaf for _, leaf in sorted(weights.read(folder / "weights").items())]
        return repr(result) + str(hash(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)))


class Keys:
    """Keys of the encryption, and an upload."""

    VALUES = np.linspace(-0.5, 0.5, 500)

    def make(self, folder: Path) -> None:
        from selgrad import encryption

        holder = encryption.KeyHolder()
        holder.save(folder)
        encryption.Client(holder.client_key()).encrypt_file(folder / "upload.bin", self.VALUES, "mask")

    def use(self, folder: Path) -> str:
        from selgrad import encryption
        from selgrad.encryption.roles import read_private

        holder = encryption.KeyHolder.load(folder)
        sealed = encryption.Client(read_private(folder / "client.key")).encrypt(self.VALUES, "mask")
        total = encryption.Aggregator().add([sealed, (folder / "upload.bin").read_bytes()])
        return str(hash(holder.decrypt(total, "mask").tobytes()))


SMALL = {"dataset": {"name": "digits", "count": 2}, "seeds": [0], "attack": {"name": "idlg", "num_steps": 3}, "block_size": 2}
FOLDERS = {
    "images": Sweep({**IMAGES, **SMALL}), "text": Sweep({**TEXT, "dataset": {"name": "sentences", "count": 2}}), "federated": Federated(), "train": Weights(False),
    "train-lm": Weights(True), "keys": Keys(),
}  # fmt: skip


def kind_of(path: Path) -> str:
    """Files that are alike but for a number or a hash."""
    parts = ["*" if len(part) >= 12 or part.rsplit(".", 1)[0].isdigit() else part for part in path.parts]
    return "/".join([*parts[:-1], "*" + path.suffix if parts[-1] == "*" else parts[-1]])


def damaged(raw: bytes, draw: random.Random) -> tuple[bytes, str]:
    at = draw.randrange(len(raw))
    if draw.random() < 0.5:
        return raw[:at], "cut"
    changed = bytearray(raw)
    changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed), "bit"


def tried(folder, before: str, root: Path) -> tuple[str, str]:
    """What became of one damaged folder, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            after = folder.use(root)
        except SelgradError as error:
            return ("named" if str(error) and "\n" not in str(error).strip() else "traceback"), str(error)
        except Exception as error:  # what is counted here
            return "traceback", f"{type(error).__name__}: {error}"
    words = [str(one.message) for one in said if issubclass(one.category, UserWarning)]
    if after == before:
        return ("warned" if words else "same"), " ".join(words)[:200]
    return ("warned" if words else "wrong and silent"), " ".join(words)[:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="damages of a folder, shared by its kinds of files")
    parser.add_argument("--folders", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--more", action="store_true", help="go on after the damages that damage.json counts, up to COUNT")
    arguments = parser.parse_args()
    file = Path(__file__).parent / "results" / "damage.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    for name in arguments.folders:
        folder = FOLDERS[name]
        with tempfile.TemporaryDirectory() as scratch:
            whole, root = Path(scratch) / "whole", Path(scratch) / "used"
            whole.mkdir()
            folder.make(whole)
            shutil.copytree(whole, root)
            before = folder.use(root)
            found = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size and path.name != ".lock"]
            kinds = collections.defaultdict(list)
            for path in found:
                kinds[kind_of(path)].append(path)
            counts: dict = {kind: collections.Counter() for kind in kinds}
            done = next((row for row in kept if row["folder"] == name), None) if arguments.more else None
            for kind, count in (done["kinds"] if done else {}).items():
                counts.setdefault(kind, collections.Counter()).update(count)
            for number in range(done["damages"] if done else 0, arguments.count):
                draw = random.Random(f"{name} {number}")
                kind = list(kinds)[number % len(kinds)]
                path = draw.choice(kinds[kind])
                shutil.rmtree(root)
                shutil.copytree(whole, root)
                content, how = damaged((whole / path).read_bytes(), draw)
                (root / path).write_bytes(content)
                what, said = tried(folder, before, root)
                counts[kind][what] += 1
                if what in ("wrong and silent", "traceback"):
                    print(name, path, how, what, said[:300], flush=True)
                if number % 50 == 49 or number + 1 == arguments.count:
                    row = {"folder": name, "damages": number + 1, "kinds": {kind: dict(count) for kind, count in counts.items()}}
                    row |= {"all": dict(sum(counts.values(), collections.Counter()))}
                    print(name, number + 1, row["all"], flush=True)
                    kept = [old for old in kept if old["folder"] != name] + [row]
                    result = {"hardware": {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count()}, "rows": kept}
                    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
