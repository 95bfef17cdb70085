"""A loaded text data set: padded token ids, labels, and the public facts about them.

Every loader of text ends in `make_text`, which takes the requested part, tokenizes and pads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from selgrad.base import Batch, TextSpec
from selgrad.data import tokenizer as tokenizers
from selgrad.errors import DataError, UsageError, first_line


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """Sentences in memory.

    Attributes:
      tokens: (N, length) int32, padded at the end.
      valid: (N, length) bool, False on padding.
      labels: (N,) int32.
      spec: length, classes, vocabulary and special tokens.
      tokenizer: of the tokens.
    """

    tokens: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int32]
    spec: TextSpec
    tokenizer: tokenizers.Tokenizer

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: int, batch_size: int) -> Batch:
        """Returns batch `index`, which starts at sample index * batch_size.

        Raises:
          UsageError: if the data set is too small.
        """
        start, stop = index * batch_size, (index + 1) * batch_size
        if stop > len(self):
            raise UsageError(f"batch {index} of {batch_size} samples needs {stop} samples and the data set holds {len(self)}; raise count")
        return self.rows(slice(start, stop))

    def rows(self, chosen: slice | npt.NDArray[np.int64]) -> Batch:
        """Returns samples by their numbers."""
        return Batch(jnp.asarray(self.tokens[chosen]), jnp.asarray(self.labels[chosen]), jnp.asarray(self.valid[chosen]))

    def padded(self, length: int) -> TextDataset:
        """Pads the sentences to a length that is at least their own."""
        more = ((0, 0), (0, length - self.tokens.shape[1]))
        tokens, valid = np.pad(self.tokens, more, constant_values=self.spec.pad_id), np.pad(self.valid, more)
        return dataclasses.replace(self, tokens=tokens, valid=valid, spec=dataclasses.replace(self.spec, shape=(length,)))

    def decode(self, tokens: Iterable[Any]) -> str:
        """Returns the text of one sequence, without special tokens."""
        return self.tokenizer.decode([int(i) for i in tokens])


def make_text(
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    num_classes: int,
    tokenizer: str | tokenizers.Tokenizer,
    max_length: int,
    count: int | None,
    offset: int,
    source: str,
) -> TextDataset:
    """Tokenizes and wraps the sentences that a loader read.

    Args:
      texts: one sentence each.
      labels: one in [0, num_classes) each.
      num_classes: of the labels.
      tokenizer: `words` (the words of all the texts), a folder, a name on the hub, or a loaded tokenizer.
      max_length: tokens, special ones included, to which a sentence is cut.
      count: samples to keep, None for all.
      offset: samples to leave out first.
      source: name of the data in errors.

    Raises:
      UsageError: if the requested part does not exist, or `max_length` leaves no room for a word.
      DataError: if there are no sentences, or a label is out of range.
    """
    if max_length < 4:
        raise UsageError(f"max_length={max_length} leaves no room for words; give at least 4")
    if not texts or len(texts) != len(labels):
        raise DataError(f"{source}: {len(texts)} sentences and {len(labels)} labels do not belong together")
    if min(labels) < 0 or max(labels) >= num_classes:
        raise DataError(f"{source}: labels from {min(labels)} to {max(labels)} lie outside 0 .. {num_classes - 1}")
    stop = len(texts) if count is None else offset + count
    if offset < 0 or (count is not None and count < 1) or stop > len(texts) or offset >= len(texts):
        raise UsageError(f"{source}: offset={offset}, count={count} asks for samples {offset} .. {stop - 1}; there are {len(texts)}")
    coder = tokenizers.make(tokenizer, texts) if isinstance(tokenizer, str) else tokenizer
    closing = [] if coder.end_id is None else [coder.end_id]
    sequences = []
    for text in texts[offset:stop]:
        ids = coder.encode(text)
        if len(ids) > max_length:
            ids = [*ids[: max_length - len(closing)], *closing]
        if not ids:
            raise DataError(f"{source}: the sentence {text!r} has no tokens")
        sequences.append(ids)
    length = max(map(len, sequences))
    tokens = np.full((len(sequences), length), coder.pad_id, np.int32)
    valid = np.zeros((len(sequences), length), bool)
    for i, ids in enumerate(sequences):
        tokens[i, : len(ids)], valid[i, : len(ids)] = ids, True
    spec = TextSpec((length,), num_classes, coder.size, coder.pad_id, coder.start_id, coder.end_id, coder.special_ids)
    return TextDataset(tokens, valid, np.asarray(labels[offset:stop], np.int32), spec, coder)


def read_lines(file: Path, encoding: str = "utf-8") -> list[str]:
    r"""Reads the lines of a file: only \n, \r\n and \r end a line, and a byte-order mark is not part of the first one.

    Raises:
      DataError: if it cannot be read in that encoding.
    """
    try:
        # In text mode these three become \n; str.splitlines() would also split at eight other characters.
        with file.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline=None) as stream:
            lines = stream.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(file)!r} is not readable text in {encoding} ({error}); fetch it again, or save it in {encoding}") from None
    if any("\0" in line for line in lines):
        raise DataError(f"{str(file)!r} holds NUL bytes, so it is not text in {encoding}, but perhaps in UTF-16; save it in {encoding}")
    return lines[:-1] if lines[-1] == "" else lines


def from_hub(repository: str, configuration: str | None, split: str, text: str, label: str) -> tuple[list[str], list[int]]:
    """Loads sentences and labels of a data set on the Hugging Face hub.

    Raises:
      UsageError: if the optional package is not installed.
      DataError: if the data set could not be fetched.
    """
    import importlib

    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(
            f"{repository!r} comes from the hub through the package datasets; install the extra selgrad[hub], or set path to local files"
        ) from None
    try:
        loaded = datasets.load_dataset(repository, configuration, split=split)
        return [str(t) for t in loaded[text]], [int(x) for x in loaded[label]]
    except Exception as error:  # the hub's client raises errors of many packages; each means that the set could not be fetched
        raise DataError(f"{repository!r} could not be loaded: {type(error).__name__}: {first_line(error)}; set path to local files") from None
