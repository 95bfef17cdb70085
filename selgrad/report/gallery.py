"""Reads back the reconstructions that a sweep kept next to its records: pixels, and sentences with the differences marked.

A damaged file is left out with a warning that names it, since the records hold all that is measured.
"""

from __future__ import annotations

import difflib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad import files
from selgrad.errors import SelgradError

_TITLES = ("setting", "title", "sample", "ratio", "metric", "selector", "attack")


class Images:
    """The images of a sweep's folder; each file is read once, however often `update` is called while the sweep runs.

    Args:
      out: the folder.

    Attributes:
      rows: one per reconstruction: its titles (setting, title, sample, ratio, metric, selector, attack), and `pixels`, (B, H, W, C) uint8.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / "reconstructions"
        self._seen: set[str] = set()
        self._truths: dict[int, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def update(self) -> None:
        """Reads what has been kept since the last call."""
        for file in sorted(self._folder.glob("*.npz")):
            if file.name not in self._seen:
                self._seen.add(file.name)
                if file.name.startswith("truth-"):
                    self._truths.update({int(file.stem.split("-")[1]): stored for stored in _read(file, ("pixels",)).values()})
                else:
                    stored = _read(file, (*_TITLES, "pixels"))
                    self.rows += [{name: values[i] for name, values in stored.items()} for i in range(len(stored.get("ratio", ())))]

    def truth(self, row: Mapping[str, Any]) -> Any:
        """Returns the true images of a row's client, (B, H, W, C) uint8; None where they are lost."""
        of_setting = self._truths.get(int(row["setting"]))
        return None if of_setting is None else of_setting[int(row["sample"])]

    def of(self, **titles: Any) -> list[dict[str, Any]]:
        """Returns the rows with these titles; none where two settings share them."""
        matches = [row for row in self.rows if all(row[name] == value for name, value in titles.items())]
        return matches if len({int(row["setting"]) for row in matches}) == 1 else []


def _read(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads arrays of one file; returns none, with a warning, where it is damaged."""
    try:
        with np.load(file) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        warnings.warn(f"{str(file)!r} is damaged ({type(error).__name__}); the report shows no pictures of it", stacklevel=2)
        return {}


def tile(batch: Any) -> npt.NDArray[Any]:
    """Returns a batch (B, H, W, C) as one picture, its images side by side."""
    return np.concatenate(list(batch), axis=1).squeeze()


def kept_sentences(out: Path) -> list[dict[str, Any]]:
    """Reads kept sentences, one entry per attack, sample, metric and ratio, with the titles that `Images` has, `truth` and `found`."""
    rows: list[dict[str, Any]] = []
    for file in sorted((out / "reconstructions").glob("*.json")):
        try:
            rows += files.read_json(file)["sentences"]
        except (SelgradError, KeyError) as error:
            warnings.warn(f"{error}; the report shows no sentences of it", stacklevel=2)
    return rows


def sentences(out: Path) -> list[dict[str, Any]]:
    """Returns `kept_sentences` in the order of a report, with what differs from the truth marked word by word (`pairs`)."""
    rows = kept_sentences(out)
    rows.sort(key=lambda r: (r["setting"], r["attack"], r["sample"], r["metric"], r["selector"], r["ratio"]))
    for row in rows:
        row["pairs"] = [mark(truth, sentence) for truth, sentence in zip(row["truth"], row["found"], strict=True)]
    return rows


def mark(truth: str, sentence: str) -> list[tuple[str, bool]]:
    """Splits a recovered sentence into (words, whether they are the truth's), by the longest matching runs.

    >>> mark("the cat sat down", "the dog sat down")
    [('the', True), ('dog', False), ('sat down', True)]
    """
    a, b = truth.split(), sentence.split()
    pieces: list[tuple[str, bool]] = []
    position = 0
    for match in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        if match.b > position:
            pieces.append((" ".join(b[position : match.b]), False))
        if match.size:
            pieces.append((" ".join(b[match.b : match.b + match.size]), True))
        position = match.b + match.size
    return pieces
