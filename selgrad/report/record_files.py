"""The record files of a sweep: one for each block as it ends, and a few large ones once there are many.

A large file names in its metadata the blocks that it holds, and appears by a rename before their own files go. So a kill at any moment leaves every cell, and
readers pass over what the large files hold already. Nothing here imports JAX.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from selgrad.errors import SelgradError

_BLOCKS = b"selgrad.blocks"
_LARGE = "part-"
_FILES, _ROWS = 2**14, 2**14
"""Blocks in a large file, at most, and rows that are written together."""


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
        """All records, in no order; equal texts of a column are one object.

        Raises:
          SelgradError: if a file is damaged.
        """
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            # Not one schema for all: a sweep over images and text has columns of both, and a column may be empty in the first file alone.
            table = pa.concat_tables(pool.map(_read_coded, [*self.large, *self.small.values()]), promote_options="permissive")
        frame: pd.DataFrame = table.unify_dictionaries().to_pandas(split_blocks=True, self_destruct=True)
        for name, column in frame.items():
            if isinstance(column.dtype, pd.CategoricalDtype):
                texts = np.asarray([*column.cat.categories, None], object)
                frame[name] = pd.Series(texts[column.cat.codes.to_numpy()], dtype=object, index=frame.index)
        return frame

    def compact(self, at_least: int, write: Callable[[Path, Callable[[Path], None]], None]) -> None:
        """Puts the files of blocks together in large ones if there are so many; the caller is the only one who writes.

        Args:
          at_least: files.
          write: has a function write a file that then appears whole.

        Raises:
          SelgradError: if the disk is full, or a file is damaged.
        """
        for file in self._leftovers:
            file.unlink(missing_ok=True)
        if len(self.small) < at_least:
            return
        names = list(self.small)
        schema = self._common_schema()
        for at in range(0, len(names), _FILES):
            part = names[at : at + _FILES]
            metadata = {**(schema.metadata or {}), _BLOCKS: json.dumps(part).encode()}
            write(self._folder / f"{_LARGE}{part[0]}.parquet", functools.partial(self._write, part, schema.with_metadata(metadata)))
            for name in part:
                self.small[name].unlink()

    def _common_schema(self) -> pa.Schema:
        """Of all small files together."""
        schemas = [_schema(file) for file in self.small.values()]
        return pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive").with_metadata(schemas[0].metadata)

    def _write(self, names: list[str], schema: pa.Schema, path: Path) -> None:
        """Some thousand rows at a time, so that little is held at once and readers skip what they do not want."""
        with pq.ParquetWriter(path, schema) as writer:
            tables: list[pa.Table] = []
            for name in names:
                tables.append(_read(self.small[name]))
                if sum(map(len, tables)) >= _ROWS or name == names[-1]:
                    whole = pa.concat_tables([*tables, schema.remove_metadata().empty_table()], promote_options="permissive")
                    writer.write_table(whole.select(schema.names).cast(schema))
                    tables = []


_APART = ("cell_id", "attack_report")
"""Texts of which every cell has its own."""


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _read(file: Path, coded: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(file, read_dictionary=coded).read()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _read_coded(file: Path) -> pa.Table:
    """With the few texts of a column, and which of them each row has."""
    return _read(file, [field.name for field in _schema(file) if pa.types.is_string(field.type) and field.name not in _APART])


def _blocks_of(file: Path) -> list[str]:
    try:
        blocks: list[str] = json.loads((_schema(file).metadata or {})[_BLOCKS])
        return blocks
    except (KeyError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> SelgradError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SelgradError(f"{str(file)!r} is damaged ({reason}); remove it and run the same sweep again, only its blocks are repeated")
