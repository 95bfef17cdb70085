"""Rotten Tomatoes: sentences of film reviews, from one file of negative and one of positive sentences, or from the hub.

Pang and Lee, "Seeing Stars", ACL 2005 (pang2005seeing); the files `rt-polarity.neg` and `.pos` are in the encoding cp1252.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

from selgrad.data.dataset import existing_file
from selgrad.data.text import TextDataset, from_hub, make_text, read_lines


def rotten_tomatoes(
    *,
    path: str | None = None,
    split: Literal["train", "validation", "test"] = "train",
    tokenizer: str = "words",
    max_length: int = 48,
    count: int | None = None,
    offset: int = 0,
) -> TextDataset:
    """Loads sentences labelled by sentiment, 2 classes; negative and positive ones alternate.

    Args:
      path: folder with `rt-polarity.neg` and `rt-polarity.pos`; None fetches the data set from the hub.
      split: of the hub; the original files have none.
      tokenizer: `words`, a folder with tokenizer files, or a name on the hub.
      max_length: tokens to which a sentence is cut.
      count: samples to keep, all by default.
      offset: samples to leave out first.
    """
    if path is None:
        texts, labels = from_hub("cornell-movie-review-data/rotten_tomatoes", None, split, "text", "label")
    else:
        root = Path(path).expanduser()
        lines = (read_lines(existing_file(root, f"rt-polarity.{end}"), "cp1252") for end in ("neg", "pos"))
        sides = [[line.strip() for line in side if line.strip()] for side in lines]
        pairs = [(text, label) for both in itertools.zip_longest(*sides) for label, text in enumerate(both) if text is not None]
        texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    return make_text(
        texts, labels, num_classes=2, tokenizer=tokenizer, max_length=max_length, count=count, offset=offset, source="rotten_tomatoes"
    )  # fmt: skip
