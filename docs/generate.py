"""Writes the pages that follow from the code: the configuration's keys and the records' columns.

Run: uv run python docs/generate.py   (a test says when it is due)
"""

from pathlib import Path
from typing import Any

from selgrad.config import EncryptionConfig, RoundsConfig, Section, SuccessConfig, SweepConfig, WandbConfig
from selgrad.federation.config import ClientsConfig, Content, FaultConfig, KeysConfig, LocalConfig
from selgrad.registry import REGISTRIES, describe
from selgrad.sweep.records import COLUMNS

HERE = Path(__file__).parent


def _kind(name: str, annotation: Any) -> str:
    if name in REGISTRIES:
        return "names, an axis"
    if name == "encryption":
        return "a mapping or none"
    if name in ("ratio", "seeds"):
        return "numbers, an axis"
    if name == "public":
        return "a data set"
    return "a mapping" if isinstance(annotation, type) and issubclass(annotation, Section) else describe(annotation)


def _default(field: Any) -> str:
    return "needed" if field.is_required() else "`" + str(field.default).replace("None", "none") + "`"


def _table(section: type[Section]) -> str:
    rows = [
        f"| `{name}` | {_kind(name, field.annotation).replace('|', chr(92) + '|')} | {_default(field)} | {field.description} |"
        for name, field in section.model_fields.items()
    ]
    return "\n".join(["| key | value | default | |", "|---|---|---|---|", *rows])


VARIABLES = {
    "JAX_COMPILATION_CACHE_DIR": "Folder in which JAX keeps compiled programs; by default `selgrad/compiled` in the user's folder for caches, at most 2 GB.",
    "SELGRAD_COMPILATION_CACHE": "`off` keeps no compiled programs on disk.",
    "SELGRAD_FACTORS": "`0` writes every gradient out instead of reading a batch of one's dense layers as outer products: slower, and equal but for rounding.",
    "SELGRAD_LOCK": "`off` goes on where the file system of a sweep's folder cannot lock files; make sure that no other process uses the folder.",
    "SELGRAD_MEMORY_SHARE": "Of the memory that blocks may take, the part that this process may; executors set it where several workers share a machine.",
    "XLA_FLAGS": "XLA's own; where it does not say how many devices a CPU has, it has one a core.",
}
"""What the environment may say."""


def configuration() -> str:
    """The page of keys."""
    parts = [
        "# Configuration\n\nWritten by `docs/generate.py` from the schemas; a key that is not listed is refused, with the nearest one that is.\n",
        "## A sweep\n\nNames are those of `selgrad list`, places (`file.py:attribute`), or mappings of a name and arguments; a list is an axis of the grid.\n",
        _table(SweepConfig),
    ]
    for title, section in (("encryption", EncryptionConfig), ("rounds", RoundsConfig), ("success", SuccessConfig), ("wandb", WandbConfig)):
        parts += [f"\n### `{title}`\n\n{(section.__doc__ or '').strip()}\n", _table(section)]
    parts += ["\n## A federated run\n", _table(Content)]
    for title, section in (("clients", ClientsConfig), ("local", LocalConfig), ("encryption", KeysConfig), ("faults", FaultConfig)):
        parts += [f"\n### `{title}` of a federated run\n\n{(section.__doc__ or '').strip()}\n", _table(section)]
    rows = [f"| `{name}` | {about} |" for name, about in VARIABLES.items()]
    parts += ["\n## Environment variables\n\nNone of them changes what a sweep is, so a folder goes on under others.\n", "| variable | |", "|---|---|", *rows]
    return "\n".join(parts) + "\n"


def records() -> str:
    """The page of columns."""
    rows = [f"| `{name}` | {kind} | {about} |" for name, (kind, about) in COLUMNS.items()]
    head = (
        '# Records\n\nWritten by `docs/generate.py` from `selgrad.sweep.records`. One row a cell; `pandas.read_parquet("DIR/records")` or '
        '`polars.read_parquet("DIR/records/*.parquet")`.\n'
    )
    return "\n".join([head, "| column | type | |", "|---|---|---|", *rows]) + "\n"


PAGES = {"configuration.md": configuration, "records.md": records}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
