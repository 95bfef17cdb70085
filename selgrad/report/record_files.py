"""The record files of a sweep: one for each block as it ends, and a few large ones once there are many.

A large file names in its metadata the blocks that it holds, and appears by a rename before their own files are removed. So a kill at any moment loses no cell,
and readers skip what the large files hold already. Other files in the folder (copies that a file manager made, another sweep's files) are named and left out,
and each cell counts once. Nothing here imports JAX.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from selgrad import files
from selgrad.errors import DamagedError, SelgradError, first_line

_SWEEP = b"selgrad.sweep"
"""In a file's metadata: the identity of the configuration that its cells belong to."""
_BLOCKS = b"selgrad.blocks"
_FACTS = b"selgrad.facts"
"""In a file's metadata: a hash of its columns, types and number of rows, and of pandas' own metadata, which no Parquet checksum covers."""
_NAME = re.compile(r"(part-)?[0-9a-f]{16}")
_LARGE = "part-"
_FILES, _ROWS = 2**14, 2**14
"""The largest number of blocks in a large file, and the number of rows that are written together."""


class RecordFiles:
    """The files of a sweep's folder as they are now.

    Args:
      out: the folder.
      identity: identity of the sweep; None takes that of `plan.json`, or where there is none, the most frequent one among the files.

    Attributes:
      large: each large file with the blocks that it holds.
      small: the files of other blocks, by block.
      left_out: name of any other file there -> why it is left out.

    Raises:
      SelgradError: if a file is damaged.
    """

    def __init__(self, out: str | Path, identity: str | None = None) -> None:
        self._folder = Path(out) / "records"
        # Some tools keep hidden files of their own next to others (._NAME.parquet).
        named = {file.stem: file for file in sorted(self._folder.glob("*.parquet"))}
        self.left_out = {file.name: "a copy, or no file of selgrad" for name, file in named.items() if not _NAME.fullmatch(name)}
        matched = {name: file for name, file in named.items() if _NAME.fullmatch(name)}
        sweeps = {name: sweep_of(file) for name, file in matched.items()}
        self._sweeps = list(sweeps.values())
        known = collections.Counter(sweep for sweep in sweeps.values() if sweep)
        mine = identity or _planned(Path(out)) or next((sweep for sweep, _ in known.most_common(1)), "")
        for name in [name for name, sweep in sweeps.items() if sweep and mine and sweep != mine]:
            self.left_out[matched.pop(name).name] = "of another sweep"
        self.large = {file: _blocks_of(file) for name, file in matched.items() if name.startswith(_LARGE)}
        held = {block for blocks in self.large.values() for block in blocks}
        self.small = {name: file for name, file in matched.items() if not name.startswith(_LARGE) and name not in held}
        # Files that a kill between the rename and the removal left behind.
        self._leftovers = [matched[name] for name in held & matched.keys()]

    @property
    def blocks(self) -> set[str]:
        """Every block that has records."""
        return {*self.small, *(block for blocks in self.large.values() for block in blocks)}

    def is_of(self, identity: str) -> bool:
        """Returns whether every file says that it belongs to this sweep."""
        return bool(self._sweeps) and set(self._sweeps) == {identity}

    def read(self) -> pd.DataFrame:
        """Reads all records, in no particular order, each cell once; equal texts of a column are one object.

        It warns of files that are left out, and of cells that occur twice.

        Raises:
          SelgradError: if a file is damaged.
        """
        for name, why in self.left_out.items():
            warnings.warn(f"{str(self._folder / name)!r} is left out: it is {why}", stacklevel=2)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            # The files have different schemas: a sweep over images and text has columns of both, and a column may be empty in the first file alone.
            read = [*self.large, *self.small.values()]
            tables = list(pool.map(_read_coded, read))
        origin = np.repeat(np.arange(len(read)), [len(part) for part in tables])
        table = pa.concat_tables(tables, promote_options="permissive")
        del tables
        frame: pd.DataFrame = table.unify_dictionaries().to_pandas(split_blocks=True, self_destruct=True)
        for name, column in frame.items():
            if isinstance(column.dtype, pd.CategoricalDtype):
                texts = np.asarray([*column.cat.categories, None], object)
                frame[name] = pd.Series(texts[column.cat.codes.to_numpy()], dtype=object, index=frame.index)
        twice = frame["cell_id"].duplicated() if "cell_id" in frame else pd.Series(False, index=frame.index)
        if twice.any():
            names = ", ".join(sorted(read[file].name for file in set(origin[twice.to_numpy()])))
            warnings.warn(f"{str(self._folder)!r} holds {int(twice.sum())} cells twice, the second time in {names}; each counts once", stacklevel=2)
            frame = frame[~twice].reset_index(drop=True)
        return frame

    def compact(self, at_least: int) -> None:
        """Merges the files of blocks into large ones if there are enough of them; the caller must be the only writer.

        Args:
          at_least: number of files from which on they are merged.

        Raises:
          SelgradError: if the disk is full, or a file is damaged.
        """
        for file in self._leftovers:
            file.unlink(missing_ok=True)
        if len(self.small) < at_least:
            return
        names = list(self.small)
        schema = self._common_schema()
        for start in range(0, len(names), _FILES):
            part = names[start : start + _FILES]
            metadata = {**{name: text for name, text in (schema.metadata or {}).items() if name != _FACTS}, _BLOCKS: json.dumps(part).encode()}
            files.write(self._folder / f"{_LARGE}{part[0]}.parquet", functools.partial(self._write, part, schema.with_metadata(metadata)))
            for name in part:
                self.small[name].unlink()

    def _common_schema(self) -> pa.Schema:
        """Returns the schema of all small files together."""
        schemas = [_schema(file) for file in self.small.values()]
        return pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive").with_metadata(schemas[0].metadata)

    def _write(self, names: list[str], schema: pa.Schema, path: Path) -> None:
        """Writes some thousand rows at a time, so that little is held in memory and readers can skip what they do not need."""
        num_rows = 0
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            tables: list[pa.Table] = []
            for name in names:
                tables.append(_read(self.small[name]))
                if sum(map(len, tables)) >= _ROWS or name == names[-1]:
                    whole = pa.concat_tables([*tables, schema.remove_metadata().empty_table()], promote_options="permissive")
                    writer.write_table(whole.select(schema.names).cast(schema))
                    num_rows += len(whole)
                    tables = []
            writer.add_key_value_metadata({_FACTS: _facts(schema, num_rows)})


def write_block(file: Path, records: pd.DataFrame, identity: str) -> None:
    """Writes the records of one block, with the identity of the sweep that they belong to.

    Raises:
      SelgradError: if the disk is full or not writable.
    """
    table = files.as_table(records)
    metadata = {**(table.schema.metadata or {}), _SWEEP: identity.encode()}
    files.write_table(file, table.replace_schema_metadata({**metadata, _FACTS: _facts(table.schema, len(table))}))


def sweep_of(file: Path) -> str:
    """Returns the identity of the sweep whose cells a file holds; empty where the file does not say.

    Raises:
      SelgradError: if it is damaged.
    """
    return (_schema(file).metadata or {}).get(_SWEEP, b"").decode("ascii", "replace")


_APART = ("cell_id", "attack_report")
"""Text columns of which every cell has its own value."""


def _facts(schema: pa.Schema, num_rows: int) -> bytes:
    plain = ((field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type) for field in schema)
    content = [num_rows, *(f"{name} {'string' if pa.types.is_large_string(kind) else kind}" for name, kind in plain)]
    return hashlib.sha256(repr(content).encode() + (schema.metadata or {}).get(b"pandas", b"")).hexdigest().encode()


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(first_line(error), file) from None


def _read(file: Path, coded: list[str] | None = None) -> pa.Table:
    try:
        table = files.read_table(file, coded=coded)
        table.validate(full=True)
        written = (pq.read_metadata(file).metadata or {}).get(_FACTS)
    except DamagedError as error:
        raise _damaged(str(error).partition("is damaged (")[2].rstrip(")"), file) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(type(error).__name__, file) from None
    # Files from other programs or older versions may lack this hash; a file of selgrad's own has some metadata.
    gone = not table.schema.metadata and "selgrad_version" in table.column_names
    if gone or written not in (None, _facts(table.schema, len(table))):
        raise _damaged("its columns are not those that were written", file)
    return table


def _read_coded(file: Path) -> pa.Table:
    """Reads a file with its text columns dictionary-encoded; other programs write texts as `large_string`."""
    texts = [field.name for field in _schema(file) if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return _read(file, [name for name in texts if name not in _APART])


def _blocks_of(file: Path) -> list[str]:
    try:
        blocks: Any = json.loads((_schema(file).metadata or {})[_BLOCKS])
        return [str(block) for block in blocks]
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(type(error).__name__, file) from None


def _planned(out: Path) -> str:
    """Returns the identity in `plan.json`, or "" where it cannot be read."""
    try:
        return str(json.loads(files.read_text(out / "plan.json"))["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _damaged(reason: str, file: Path) -> SelgradError:
    return SelgradError(f"{str(file)!r} is damaged ({reason}); remove it and run the same sweep again, only its blocks are repeated")
