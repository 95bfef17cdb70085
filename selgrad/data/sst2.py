"""SST-2: phrases of film reviews with their sentiment, from GLUE's tab-separated files or the hub.

Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", EMNLP 2013 (socher2013sst).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selgrad.data.dataset import existing_file
from selgrad.data.text import TextDataset, from_hub, make_text, read_lines
from selgrad.errors import DataError


def sst2(
    *,
    path: str | None = None,
    split: Literal["train", "dev"] = "train",
    tokenizer: str = "words",
    max_length: int = 32,
    count: int | None = None,
    offset: int = 0,
) -> TextDataset:
    """Loads phrases labelled by sentiment, 2 classes.

    Args:
      path: folder with train.tsv and dev.tsv; None fetches them from the hub.
      split: train or dev.
      tokenizer: `words`, a folder with tokenizer files, or a name on the hub.
      max_length: tokens to which a sentence is cut.
      count: samples to keep, all by default.
      offset: samples to leave out first.
    """
    if path is None:
        texts, labels = from_hub("nyu-mll/glue", "sst2", "train" if split == "train" else "validation", "sentence", "label")
    else:
        file = existing_file(Path(path).expanduser(), f"{split}.tsv")
        lines = read_lines(file)
        if not lines or lines[0].split("\t") != ["sentence", "label"]:
            raise DataError(f"{str(file)!r} does not begin with the columns sentence and label; it is not a file of GLUE's SST-2")
        texts, labels = [], []
        for number, line in enumerate(lines[1:], 2):
            if not line.strip():
                continue
            sentence, _, label = line.rpartition("\t")
            if not sentence or label not in ("0", "1"):
                raise DataError(f"{str(file)!r}, line {number}: not a sentence and a label of 0 or 1; the file is damaged")
            texts.append(sentence.strip())
            labels.append(int(label))
    return make_text(
        texts, labels, num_classes=2, tokenizer=tokenizer, max_length=max_length, count=count, offset=offset, source=f"sst2 {split}"
    )  # fmt: skip
