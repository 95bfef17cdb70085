"""Text from any file, line by line or in pieces of equal length, and tiny Shakespeare, which is such a file.

For language models, whose labels are the tokens themselves. Tiny Shakespeare: Karpathy, char-rnn, 2015 (karpathy2015charrnn).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selgrad.data.dataset import existing_file
from selgrad.data.text import TextDataset, make_text, read_lines
from selgrad.errors import DataError, UsageError


def _pieces(lines: list[str], words_per_piece: int) -> list[str]:
    words = " ".join(lines).split()
    return [" ".join(words[i : i + words_per_piece]) for i in range(0, len(words), words_per_piece)]


def text_file(
    *,
    path: str,
    unit: Literal["line", "piece"] = "line",
    words_per_piece: int = 16,
    tokenizer: str = "words",
    max_length: int = 32,
    count: int | None = None,
    offset: int = 0,
) -> TextDataset:
    """Loads one sample per non-empty line, or per piece of `words_per_piece` words; the class is 0 of 2.

    Args:
      path: of the file, in UTF-8.
      unit: line or piece.
      words_per_piece: words of a sample, for pieces.
      tokenizer: `words`, a folder with tokenizer files, or a name on the hub.
      max_length: tokens to which a sample is cut.
      count: samples to keep, all by default.
      offset: samples to leave out first.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"text file {str(file)!r} does not exist; set dataset.path to a file")
    if words_per_piece < 1:
        raise UsageError(f"words_per_piece={words_per_piece} must be at least 1")
    lines = [line.strip() for line in read_lines(file) if line.strip()]
    texts = lines if unit == "line" else _pieces(lines, words_per_piece)
    return make_text(
        texts, [0] * len(texts), num_classes=2, tokenizer=tokenizer, max_length=max_length, count=count, offset=offset, source=repr(str(file))
    )  # fmt: skip


def shakespeare(
    *,
    path: str,
    words_per_piece: int = 16,
    tokenizer: str = "words",
    max_length: int = 32,
    count: int | None = None,
    offset: int = 0,
) -> TextDataset:
    """Loads tiny Shakespeare in pieces of `words_per_piece` words; the class is 0 of 2.

    Args:
      path: folder that holds `input.txt`.
      words_per_piece: words of a sample.
      tokenizer: `words`, a folder with tokenizer files, or a name on the hub.
      max_length: tokens to which a sample is cut.
      count: samples to keep, all by default.
      offset: samples to leave out first.
    """
    file = existing_file(Path(path).expanduser(), "input.txt")
    return text_file(
        path=str(file), unit="piece", words_per_piece=words_per_piece, tokenizer=tokenizer, max_length=max_length, count=count, offset=offset
    )  # fmt: skip
