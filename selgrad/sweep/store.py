"""The folder of a run: which sweep owns it, which process works in it, and where its files lie, here or remotely; every file appears whole or not at all.

`plan.json` names the configuration by its identity, so that the same sweep continues the folder and any other is refused. It has a checksum; where it is
damaged or gone, the sweep continues from `config.yaml` and the records, and no cell that is on record is run again.
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
      out: the folder; created when it is first written to, continued if it holds the same sweep.
      identity: identity of the configuration.
      mirror: the mirror of a remote folder, of which `out` is the local copy.

    Raises:
      UsageError: if the folder holds another sweep.
    """

    def __init__(self, out: Path, identity: str, mirror: Mirror | None = None) -> None:
        self.out, self._identity, self._mirror, self._sending = out, identity, mirror, threading.Lock()
        self.saved = self._adopt()
        # Read once; a block that ends later has a file of its own.
        self._finished = RecordFiles(out, identity).blocks

    @property
    def run_id(self) -> str:
        """12 hexadecimal digits, the same whenever this sweep is resumed."""
        return str(self.saved["run_id"])

    @property
    def block_sizes(self) -> dict[str, int]:
        """Lanes per block by setting and attack, once decided."""
        sizes: dict[str, int] = self.saved["block_sizes"]
        return sizes

    @property
    def refined(self) -> dict[str, int]:
        """Lanes per block by the identity of a block that ran out of memory."""
        sizes: dict[str, int] = self.saved.setdefault("refined", {})
        return sizes

    def publish(self) -> None:
        """Uploads what was written, if the folder is remote."""
        if self._mirror is not None:
            with self._sending:
                self._mirror.publish()

    def fetch(self, name: str = "") -> None:
        """Downloads a file, or all files of a folder, if the folder is remote."""
        if self._mirror is not None:
            self._mirror.fetch(name)

    def reload(self) -> None:
        """Reads the plan again, which another process may have changed."""
        self.fetch("plan.json")
        self.saved = self._adopt()
        self._finished = RecordFiles(self.out, self._identity).blocks

    def _adopt(self) -> dict[str, Any]:
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{str(self.out)!r} is a file; choose a folder for --out")
        saved = _read_plan(self.out / "plan.json")
        if saved is None:
            return self._new_plan()
        if saved["identity"] != self._identity:
            raise UsageError(f"folder {str(self.out)!r} holds another sweep (its config.yaml differs, or your own code has changed); choose another --out")
        if saved.get("version") != __version__:
            raise UsageError(f"folder {str(self.out)!r} was begun by selgrad {saved.get('version')}, this is {__version__}; choose another --out")
        return saved

    def _new_plan(self) -> dict[str, Any]:
        """Returns a plan for a new folder, or for one that holds this sweep's records and whose plan is damaged or gone."""
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
        """Returns whether `config.yaml` belongs to this sweep, or, where that cannot be read, whether the records say that they do."""
        try:
            return load(self.out / "config.yaml").identity == self._identity
        except SelgradError:
            return RecordFiles(self.out, self._identity).is_of(self._identity)

    def require_inputs(self, digests: dict[str, str]) -> None:
        """Refuses to continue with other data under the same names, since one table would mix the records of both.

        Args:
          digests: digests of the inputs that were read, by name.

        Raises:
          UsageError: if the inputs are not those that the sweep began with.
        """
        known = {**self._second_copy(), **self.saved.get("inputs", {})}
        changed = [name for name, digest in digests.items() if known.get(name, digest) != digest]
        if changed:
            raise UsageError(f"{changed[0]} has changed since the sweep in {str(self.out)!r} began, which would mix both; choose another --out, or put it back")
        self.saved["inputs"] = known = {**known, **digests}
        if self.out.is_dir() and self._second_copy() != known:
            files.write_json(self.out / "inputs.json", known)

    def _second_copy(self) -> dict[str, str]:
        """Returns the digests that `inputs.json` holds, for a folder whose plan is lost; empty where it is damaged or missing."""
        with contextlib.suppress(DamagedError):
            return {name: str(digest) for name, digest in files.read_json(self.out / "inputs.json").items()}
        return {}

    @property
    def is_recovered(self) -> bool:
        """Whether the plan was lost once, so that blocks may be cut differently from those that wrote the records."""
        return bool(self.saved.get("recovered"))

    @functools.cached_property
    def cells(self) -> set[str]:
        """The `cell_id` of every record that was there when this property was first read."""
        record_files = RecordFiles(self.out, self._identity)
        return set(record_files.read()["cell_id"]) if record_files.blocks else set()

    def save(self) -> None:
        """Writes the plan to `plan.json`."""
        files.write_json(self.out / "plan.json", self.saved)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file in the folder."""
        files.write_text(self.out / name, text)

    def record_file(self, block: str) -> Path:
        """Returns the file to which a block writes its records."""
        return self.out / "records" / f"{block}.parquet"

    def has_records(self, block: str) -> bool:
        """Returns whether a block is finished."""
        file = self.record_file(block)
        return block in self._finished or (file.exists() and sweep_of(file) in ("", self._identity))

    def compact(self, at_least: int = 64) -> None:
        """Merges the records of many blocks; only the process that holds the folder may do so, while no other writes there."""
        RecordFiles(self.out, self._identity).compact(at_least)
        self._finished = RecordFiles(self.out, self._identity).blocks
        self.publish()

    def model_folder(self, setting: int, seed: int) -> Path:
        """Returns the folder of a setting's weights."""
        return self.out / "models" / f"setting-{setting}-seed-{seed}"

    def checkpoint_folder(self, block: str) -> Path:
        """Returns the folder of a block's state while it runs."""
        return self.out / "checkpoints" / block

    def gallery_file(self, stem: str) -> Path:
        """Returns the path of reconstructions, without the ending that their modality adds."""
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
    """Reads a plan; returns None where there is none, or it is damaged."""
    try:
        saved = files.read_json(file)
        whole = isinstance(saved["identity"], str) and isinstance(saved["run_id"], str) and isinstance(saved["block_sizes"], dict)
    except (DamagedError, KeyError):
        return None
    return saved if whole else None
