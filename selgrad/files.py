"""Atomic files, which exist completely or not at all, and text in UTF-8 regardless of the machine's locale.

selgrad writes all its files here, except keys and ciphertexts, which must also be private (`selgrad.encryption.wire`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selgrad.errors import BusyError, DamagedError, SelgradError, first_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_HERE = re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "here"
_SCRATCH = re.compile(r"\..+\.([A-Za-z0-9]+)-(\d+)\.tmp")
_FORGOTTEN = 3600.0
"""Seconds after which a temporary file is considered abandoned, even if another machine began it."""


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Writes a file under a temporary name, flushes it to disk, and renames it.

    Args:
      path: of the file; its folder is made if necessary.
      fill: writes the content to the path that it is given.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    scratch = path.with_name(f".{path.name}.{_HERE}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(scratch)
        with open(scratch, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        reason = error.strerror or first_line(error)
        raise SelgradError(f"cannot write {str(path)!r}: {reason}; make room or choose another --out, then run the same command") from None
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes as `write` does.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    write(path, lambda scratch: _fill(scratch, content))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 as `write` does.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    write_bytes(path, text.encode())


def checksum(content: Mapping[str, Any]) -> str:
    """A checksum of a JSON object that does not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as JSON as `write` does, with a checksum of its content.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    write_text(path, json.dumps({**content, "checksum": checksum(content)}, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote; files without a checksum are from older versions and are accepted unchecked.

    Raises:
      DamagedError: if the content differs from what was written.
    """
    try:
        content = json.loads(read_text(path))
        stored_checksum = content.pop("checksum", None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{str(path)!r} is damaged ({type(error).__name__})") from None
    if stored_checksum not in (None, checksum(content)):
        raise DamagedError(f"{str(path)!r} is damaged (its checksum is of other content)")
    result: dict[str, Any] = content
    return result


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, modification times and sizes of a folder's files, which show whether cached content is out of date; empty if there is no folder."""
    if not folder.is_dir():
        return ()
    entries = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in entries)


_SUMS = "SHA256SUMS"


def seal(folder: Path, names: Sequence[str] | None = None) -> None:
    """Writes the SHA-256 of a folder's files to `SHA256SUMS` in the folder, in the format that `sha256sum -c SHA256SUMS` reads.

    Args:
      folder: of the files.
      names: of the files to seal; None seals all files.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    if names is None:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    write_text(folder / _SUMS, "".join(f"{_sha256(folder / name)}  {name}\n" for name in names))


def unseal(folder: Path) -> None:
    """Removes what `seal` wrote, before the files are written again."""
    (folder / _SUMS).unlink(missing_ok=True)


def require_sealed(folder: Path) -> None:
    """Refuses a folder whose files differ from those that `seal` recorded; a folder that was never sealed is accepted.

    Raises:
      DamagedError: naming the first file that differs.
    """
    file = folder / _SUMS
    if not file.is_file():
        return
    try:
        lines = [line.split("  ", 1) for line in read_text(file).splitlines()]
        sums = {name: expected for expected, name in lines}
        if not sums:
            raise ValueError("no line")
    except (OSError, ValueError):
        raise DamagedError(f"{str(file)!r} is damaged; fetch the folder again, or remove this file if you are sure of the others") from None
    for name, expected in sums.items():
        try:
            same = _sha256(folder / name) == expected
        except (OSError, ValueError):
            same = False
        if not same:
            raise DamagedError(
                f"{str(folder / name)!r} is not what was written; it is damaged, fetch or write it again (or remove {_SUMS} if you changed it yourself)"
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _fill(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)


def read_text(path: Path) -> str:
    """Reads text in UTF-8, with or without a byte-order mark.

    Raises:
      OSError, UnicodeDecodeError: as `Path.read_text` does.
    """
    return path.read_text(encoding="utf-8-sig")


def write_table(path: Path, table: Any) -> None:
    """Writes a table as Parquet as `write` does, with a checksum for every page.

    Args:
      path: of the file.
      table: a pandas or pyarrow table.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = table if isinstance(table, pa.Table) else as_table(table)
    write(path, lambda scratch: pq.write_table(plain, scratch, write_page_checksum=True))


def as_table(frame: pd.DataFrame) -> pa.Table:
    """Converts a pandas table to pyarrow, with the same types under every version of pandas: pandas 3 would write text as `large_string`."""
    import pyarrow as pa

    table = pa.Table.from_pandas(frame, preserve_index=False)
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def read_table(path: Path, coded: Sequence[str] | None = None) -> Any:
    """Reads a Parquet file as a pyarrow table; a page whose checksum does not match is refused.

    Args:
      path: of the file.
      coded: text columns to read dictionary-encoded, as codes with the texts that they stand for.

    Raises:
      DamagedError: if it is not a complete Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, read_dictionary=None if coded is None else list(coded), page_checksum_verification=True) as file:
            return file.read()
    except (pa.ArrowException, OSError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise DamagedError(f"{str(path)!r} is damaged ({(str(error).splitlines() or [type(error).__name__])[0]})") from None


def read_frame(path: Path) -> Any:
    """Reads a Parquet file as `read_table` does, and returns a pandas table.

    Raises:
      DamagedError: if it is not a complete Parquet file.
    """
    table = read_table(path)
    try:
        return table.to_pandas()
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # from the pandas metadata in the file
        raise DamagedError(f"{str(path)!r} is damaged ({type(error).__name__})") from None


@contextlib.contextmanager
def locked(folder: Path, what: str, *, wait: bool = False, name: str = ".lock") -> Iterator[None]:
    """Locks a folder for this process, making it if necessary.

    Args:
      folder: to lock.
      what: describes what runs there, for the error message.
      wait: whether to wait for another process that holds the lock.
      name: of the file that is locked; a folder may have several.

    Raises:
      BusyError: if another process holds the lock, unless `wait`.
      SelgradError: if files cannot be locked there and SELGRAD_LOCK is not `off`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / name, "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise SelgradError(f"cannot write in {str(folder)!r}: {error.strerror}; choose another --out") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process is running a {what} in {str(folder)!r}; wait for it or choose another folder") from None
        except OSError as error:
            # Some network file systems do not support locks, or have them disabled.
            if os.environ.get("SELGRAD_LOCK") != "off":
                raise SelgradError(
                    f"{str(folder)!r} lies on a file system that cannot lock files ({errno.errorcode.get(error.errno or 0, error.errno)}: {error.strerror}); "
                    "choose an --out elsewhere, or set SELGRAD_LOCK=off and make sure that no other process uses the folder"
                ) from None
        yield


def sweep_up(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder and its subfolders; those of other machines are kept for an hour."""
    for scratch in folder.rglob(".*.tmp"):
        match = _SCRATCH.fullmatch(scratch.name)
        with contextlib.suppress(OSError):
            if match is None or not scratch.is_file():
                continue
            is_dead = match[1] == _HERE and not _runs(int(match[2]))
            if is_dead or time.time() - scratch.stat().st_mtime > _FORGOTTEN:
                scratch.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()
