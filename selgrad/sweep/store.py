"""The folder of a run: whose it is, who works in it, and where its files lie, here or elsewhere; every file appears whole or not at all.

`plan.json` names the configuration by its identity, so that a folder is continued by the same sweep and refused to another.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selgrad import __version__, devices
from selgrad.errors import SelgradError, UsageError
from selgrad.report.record_files import RecordFiles
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
        self._finished = RecordFiles(out).blocks

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
        self._finished = RecordFiles(self.out).blocks

    def _adopt(self) -> dict[str, Any]:
        file = self.out / "plan.json"
        if file.exists():
            try:
                saved: dict[str, Any] = json.loads(file.read_text())
                known = saved["identity"]
            except (ValueError, KeyError, TypeError):
                raise SelgradError(f"{str(file)!r} is damaged; remove the folder {str(self.out)!r} or choose another --out") from None
            if known != self._identity:
                raise UsageError(f"folder {str(self.out)!r} holds another sweep (its config.yaml differs, or your own code has changed); choose another --out")
            if saved.get("version") != __version__:
                raise UsageError(f"folder {str(self.out)!r} was begun by selgrad {saved.get('version')}, this is {__version__}; choose another --out")
            return saved
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{str(self.out)!r} is a file; choose a folder for --out")
        if self.out.is_dir() and (self.out / "records").is_dir() and any((self.out / "records").glob("*.parquet")):
            raise UsageError(f"folder {str(self.out)!r} holds records without a plan.json; choose another --out")
        return {"identity": self._identity, "run_id": uuid.uuid4().hex[:12], "version": __version__, "block_sizes": {}}

    def save(self) -> None:
        """Writes down what was decided."""
        self.write_text("plan.json", json.dumps(self.saved, indent=1, sort_keys=True))

    def write_text(self, name: str, text: str) -> None:
        """A text file in the folder."""

        def write(path: Path) -> None:
            path.write_text(text)

        devices.write_atomically(self.out / name, write)

    def record_file(self, block: str) -> Path:
        """Where a block writes its records."""
        return self.out / "records" / f"{block}.parquet"

    def has_records(self, block: str) -> bool:
        """Whether a block is finished."""
        return block in self._finished or self.record_file(block).exists()

    def compact(self, at_least: int = 64) -> None:
        """Puts the records of many blocks together; whoever holds the folder may do so while nobody writes there."""
        RecordFiles(self.out).compact(at_least, devices.write_atomically)
        self._finished = RecordFiles(self.out).blocks
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
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            handle = open(self.out / ".lock", "w")  # noqa: SIM115 (held until the end of the sweep)
        except OSError as error:
            raise SelgradError(f"cannot write in {str(self.out)!r}: {error.strerror}; choose another --out") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SelgradError(f"another process is running a sweep in {str(self.out)!r}; wait for it or choose another --out") from None
            except OSError as error:
                # Some network file systems have no locks, or have them switched off.
                if os.environ.get("SELGRAD_LOCK") != "off":
                    raise SelgradError(
                        f"{str(self.out)!r} lies on a file system that cannot lock files ({errno.errorcode.get(error.errno or 0, error.errno)}: "
                        f"{error.strerror}); choose an --out elsewhere, or set SELGRAD_LOCK=off and make sure that no other process uses the folder"
                    ) from None
            # Another process may have begun or ended a sweep here since this one looked.
            self.reload()
            yield
