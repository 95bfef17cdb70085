"""The folder of a run: whose it is, who works in it, and where its files lie, here or elsewhere; every file appears whole or not at all.

`plan.json` names the configuration by its identity, so that a folder is continued by the same sweep and refused to another. It has a checksum; where it is
damaged or gone, a sweep goes on from `config.yaml` and the records, of which a cell that is there is not run again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selgrad import __version__, files
from selgrad.config import load
from selgrad.errors import DamagedError, SelgradError, UsageError
from selgrad.report.record_files import RecordFiles, sweep_of
from selgrad.sweep.remote import Mirror


class RunFolder:
    """The folder of a sweep.

    Args:
      out: made when it is first written to, continued if it holds the same sweep.
      identity: of the configuration.
      mirror: where the folder lies elsewhere, of which `out` is the copy here.

    Raises:
      UsageError: if the folder holds another sweep.
    """

    def __init__(self, out: Path, identity: str, mirror: Mirror | None = None) -> None:
        self.out, self._identity, self._mirror, self._sending = out, identity, mirror, threading.Lock()
        self.saved = self._adopt()
        # Looked up at once; what ends later has a file of its own.
        self._finished = RecordFiles(out, identity).blocks

    @property
    def run_id(self) -> str:
        """12 hexadecimal digits, the same whenever this sweep goes on."""
        return str(self.saved["run_id"])

    @property
    def block_sizes(self) -> dict[str, int]:
        """Lanes per block, once decided, by setting and attack."""
        sizes: dict[str, int] = self.saved["block_sizes"]
        return sizes

    @property
    def refined(self) -> dict[str, int]:
        """Lanes per block by the identity of a block that ran out of memory."""
        sizes: dict[str, int] = self.saved.setdefault("refined", {})
        return sizes

    def publish(self) -> None:
        """Sends what was written to where the folder lies, if that is elsewhere."""
        if self._mirror is not None:
            with self._sending:
                self._mirror.publish()

    def fetch(self, name: str = "") -> None:
        """Brings a file, or all files of a folder, from where the folder lies, if that is elsewhere."""
        if self._mirror is not None:
            self._mirror.fetch(name)

    def reload(self) -> None:
        """Reads again what was decided, by another process perhaps."""
        self.fetch("plan.json")
        self.saved = self._adopt()
        self._finished = RecordFiles(self.out, self._identity).blocks

    def _adopt(self) -> dict[str, Any]:
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{str(self.out)!r} is a file; choose a folder for --out")
        saved = _read_plan(self.out / "plan.json")
        if saved is None:
            return self._anew()
        if saved["identity"] != self._identity:
            raise UsageError(f"folder {str(self.out)!r} holds another sweep (its config.yaml differs, or your own code has changed); choose another --out")
        if saved.get("version") != __version__:
            raise UsageError(f"folder {str(self.out)!r} was begun by selgrad {saved.get('version')}, this is {__version__}; choose another --out")
        return saved

    def _anew(self) -> dict[str, Any]:
        """A plan where there is none: of a new folder, or of one whose plan is damaged or gone and that holds this sweep's records."""
        fresh = {"identity": self._identity, "run_id": uuid.uuid4().hex[:12], "version": __version__, "block_sizes": {}}
        known = RecordFiles(self.out, self._identity)
        if not (self.out / "plan.json").exists() and not known.blocks and not known.left_out:
            return fresh
        if not self._is_mine():
            raise UsageError(f"folder {str(self.out)!r} holds no readable plan.json, and its config.yaml is not that of this sweep; choose another --out")
        others = set(known.read()["selgrad_version"]) - {__version__} if known.blocks else set()
        if others:
            raise UsageError(f"folder {str(self.out)!r} was begun by selgrad {min(others)}, this is {__version__}; choose another --out")
        warnings.warn(f"{str(self.out / 'plan.json')!r} is damaged or gone; the sweep goes on from config.yaml and the records", stacklevel=2)
        return {**fresh, "recovered": True}

    def _is_mine(self) -> bool:
        """Whether `config.yaml` is of this sweep, or where that cannot be read, its records say that they are."""
        try:
            return load(self.out / "config.yaml").identity == self._identity
        except SelgradError:
            return RecordFiles(self.out, self._identity).is_of(self._identity)

    def require_inputs(self, digests: dict[str, str]) -> None:
        """Refuses to go on with other data under the same names: records of both would be one table.

        Args:
          digests: of what was read, by name.

        Raises:
          UsageError: if what was read is not what the sweep began with.
        """
        known = self.saved.setdefault("inputs", digests)
        changed = [name for name, digest in digests.items() if known.get(name, digest) != digest]
        if changed:
            raise UsageError(f"{changed[0]} has changed since the sweep in {str(self.out)!r} began, which would mix both; choose another --out, or put it back")
        known.update(digests)

    @property
    def is_recovered(self) -> bool:
        """Whether the plan was lost once, so that blocks may be cut otherwise than those that the records are of."""
        return bool(self.saved.get("recovered"))

    @functools.cached_property
    def cells(self) -> set[str]:
        """The `cell_id` of every record that was there when this was first asked for."""
        found = RecordFiles(self.out, self._identity)
        return set(found.read()["cell_id"]) if found.blocks else set()

    def save(self) -> None:
        """Writes down what was decided."""
        files.write_json(self.out / "plan.json", self.saved)

    def write_text(self, name: str, text: str) -> None:
        """A text file in the folder."""
        files.write_text(self.out / name, text)

    def record_file(self, block: str) -> Path:
        """Where a block writes its records."""
        return self.out / "records" / f"{block}.parquet"

    def has_records(self, block: str) -> bool:
        """Whether a block is finished."""
        file = self.record_file(block)
        return block in self._finished or (file.exists() and sweep_of(file) in ("", self._identity))

    def compact(self, at_least: int = 64) -> None:
        """Puts the records of many blocks together; whoever holds the folder may do so while nobody writes there."""
        RecordFiles(self.out, self._identity).compact(at_least)
        self._finished = RecordFiles(self.out, self._identity).blocks
        self.publish()

    def model_folder(self, setting: int, seed: int) -> Path:
        """Where the weights of a setting lie."""
        return self.out / "models" / f"setting-{setting}-seed-{seed}"

    def checkpoint_folder(self, block: str) -> Path:
        """Where a block's state lies while it runs."""
        return self.out / "checkpoints" / block

    def gallery_file(self, stem: str) -> Path:
        """Where reconstructions lie, without the ending that their modality gives them."""
        return self.out / "reconstructions" / stem

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
          SelgradError: if another process runs a sweep there.
        """
        with files.locked(self.out, "sweep"):
            # Another process may have begun or ended a sweep here since this one looked.
            self.reload()
            for name, why in RecordFiles(self.out, self._identity).left_out.items():
                warnings.warn(f"{str(self.out / 'records' / name)!r} is left out: it is {why}", stacklevel=4)
            files.sweep_up(self.out)
            yield


def _read_plan(file: Path) -> dict[str, Any] | None:
    """What was decided; None where there is no plan, or it is not as it was written."""
    try:
        saved = files.read_json(file)
        whole = isinstance(saved["identity"], str) and isinstance(saved["run_id"], str) and isinstance(saved["block_sizes"], dict)
    except (DamagedError, KeyError):
        return None
    return saved if whole else None
