"""A run's folder in remote storage: any place that fsspec reaches, such as `s3://` or `gs://`, with a local copy to work in.

Object stores cannot rename or lock, but an uploaded object appears whole or not at all. So files are written locally and uploaded once complete; a block's
records are one file, and a block that runs twice writes the same.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selgrad import devices
from selgrad.errors import SelgradError, UsageError


def is_remote(place: str | Path) -> bool:
    """Returns whether a place is a URL and not a path."""
    return "://" in str(place)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return filesystem
    except ImportError as error:
        raise UsageError(f"{url!r}: {error}") from None
    except ValueError as error:
        raise UsageError(f"{url!r}: {error}; give a folder, or a place that fsspec knows, such as s3://bucket/run") from None


class Mirror:
    """A remote folder and its local copy.

    Args:
      url: URL of the folder.
      local: folder of the copy; by default one of this user's, the same whenever this place is used, so that nothing is read twice.

    Raises:
      UsageError: if fsspec cannot reach the place.
    """

    def __init__(self, url: str, local: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self._files, self._root = _filesystem(self.url)
        self.local = devices.user_cache() / "runs" / hashlib.sha256(self.url.encode()).hexdigest()[:16] if local is None else local
        self.local.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, tuple[int, int]] = {}

    @classmethod
    def private(cls, url: str) -> Mirror:
        """Returns a mirror whose copy belongs to this process alone, in the system's folder for temporary files."""
        return cls(url, Path(tempfile.mkdtemp(prefix="selgrad-run-")))

    def fetch(self, name: str = "") -> None:
        """Downloads a file, or all files of a folder, unless they are here already.

        Raises:
          SelgradError: if the place cannot be read.
        """
        where = f"{self._root}/{name}".rstrip("/")
        try:
            self._files.invalidate_cache()
            remote_files: dict[str, Any] = self._files.find(where, detail=True) if self._files.exists(where) else {}
            for path, facts in remote_files.items():
                inside = path[len(self._root) :].lstrip("/")
                target = self.local / inside
                if not target.exists() or target.stat().st_size != facts["size"] or inside == "plan.json":
                    target.parent.mkdir(parents=True, exist_ok=True)
                    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
                    self._files.get_file(path, str(temporary))
                    os.replace(temporary, target)
                self._known[inside] = _state(target)
        except OSError as error:
            raise SelgradError(f"cannot read {self.url!r}: {error}") from None

    def publish(self) -> None:
        """Uploads what was written here since the last call, and removes there what was removed here.

        Raises:
          SelgradError: if the place cannot be written; the local files stay.
        """
        try:
            present = dict(self._present())
            # A plan names blocks that others will ask for, so the files they need are uploaded before it.
            for inside in sorted(present, key=lambda name: (name == "plan.json", name)):
                if self._known.get(inside) != present[inside]:
                    where = f"{self._root}/{inside}"
                    self._files.makedirs(where.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(self.local / inside), where)
                    self._known[inside] = present[inside]
            for inside in self._known.keys() - present.keys():
                if self._files.exists(f"{self._root}/{inside}"):
                    self._files.rm_file(f"{self._root}/{inside}")
                del self._known[inside]
        except OSError as error:
            raise SelgradError(f"cannot write to {self.url!r}: {error}; what is finished lies in {str(self.local)!r}, run the same command again") from None

    def _present(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in self.local.rglob("*"):
            inside = path.relative_to(self.local)
            if path.is_file() and not any(part.startswith(".") or ".orbax-checkpoint-tmp" in part for part in inside.parts):
                yield inside.as_posix(), _state(path)


def _state(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size
