"""The record files of a sweep: one for each block as it ends, and a few large ones once there are many.

A large file names in its metadata the blocks that it holds, and appears by a rename before their own files go. So a kill at any moment leaves every cell, and
readers pass over what the large files hold already. Nothing here imports JAX.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from selgrad.errors import SelgradError

_BLOCKS = b"selgrad.blocks"
_LARGE = "part-"
_ROWS = 2**20
"""Of a large file, at most."""


class RecordFiles:
    """The files of a sweep's folder as they are now.

    Args:
      out: the folder.

    Attributes:
      large: each large file with the blocks that it holds.
      small: the files of other blocks, by block.

    Raises:
      SelgradError: if a large file is damaged.
    """

    def __init__(self, out: str | Path) -> None:
        self._folder = Path(out) / "records"
        found: dict[str, Path] = {file.stem: file for file in sorted(self._folder.glob("*.parquet"))}
        self.large = {file: _blocks_of(file) for name, file in found.items() if name.startswith(_LARGE)}
        held = {block for blocks in self.large.values() for block in blocks}
        self.small = {name: file for name, file in found.items() if not name.startswith(_LARGE) and name not in held}
        # What a kill left between the rename and the removal.
        self._leftovers = [found[name] for name in held & found.keys()]

    @property
    def blocks(self) -> set[str]:
        """Every block that has records."""
        return {*self.small, *(block for blocks in self.large.values() for block in blocks)}

    def read(self) -> pd.DataFrame:
        """All records, in no order.

        Raises:
          SelgradError: if a file is damaged.
        """
        files = [*self.large, *self.small.values()]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            # Not one schema for all: a sweep over images and text has columns of both, and a column may be empty in the first file alone.
            table = pa.concat_tables(pool.map(_read, files), promote_options="permissive")
        frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
        return frame

    def compact(self, at_least: int) -> None:
        """Puts the files of blocks together in large ones if there are so many; the caller is the only one who writes.

        Raises:
          SelgradError: if the disk is full, or a file is damaged.
        """
        from selgrad.devices import write_atomically

        for file in self._leftovers:
            file.unlink(missing_ok=True)
        if len(self.small) < at_least:
            return
        for names, table in self._groups():
            metadata = {**(table.schema.metadata or {}), _BLOCKS: json.dumps(names).encode()}
            target, whole = self._folder / f"{_LARGE}{names[0]}.parquet", table.replace_schema_metadata(metadata)
            write_atomically(target, functools.partial(pq.write_table, whole))
            for name in names:
                self.small[name].unlink()

    def _groups(self) -> Iterator[tuple[list[str], pa.Table]]:
        names: list[str] = []
        tables: list[pa.Table] = []
        rows = 0
        for name, file in self.small.items():
            names.append(name)
            tables.append(_read(file))
            rows += len(tables[-1])
            if rows >= _ROWS:
                yield names, pa.concat_tables(tables, promote_options="permissive").combine_chunks()
                names, tables, rows = [], [], 0
        if names:
            yield names, pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _read(file: Path) -> pa.Table:
    try:
        return pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _blocks_of(file: Path) -> list[str]:
    try:
        blocks: list[str] = json.loads((pq.read_schema(file).metadata or {})[_BLOCKS])
        return blocks
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> SelgradError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SelgradError(f"{str(file)!r} is damaged ({reason}); remove it and run the same sweep again, only its blocks are repeated")
