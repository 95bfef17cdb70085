"""CoLA: sentences that linguists judged acceptable or not, from the original tab-separated files or the hub.

Warstadt, Singh, Bowman, "Neural Network Acceptability Judgments", TACL 2019 (warstadt2019cola).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selgrad.data.dataset import existing_file
from selgrad.data.text import TextDataset, from_hub, make_text, read_lines
from selgrad.errors import DataError

_FILES = {"train": "in_domain_train.tsv", "dev": "in_domain_dev.tsv", "out_of_domain": "out_of_domain_dev.tsv"}


def cola(
    *,
    path: str | None = None,
    split: Literal["train", "dev", "out_of_domain"] = "train",
    tokenizer: str = "words",
    max_length: int = 32,
    count: int | None = None,
    offset: int = 0,
) -> TextDataset:
    """Loads sentences labelled by acceptability, 2 classes.

    Args:
      path: folder that holds `cola_public/raw` or the files themselves; None fetches them from the hub.
      split: train, in-domain dev, or out-of-domain dev.
      tokenizer: `words`, a folder with tokenizer files, or a name on the hub.
      max_length: tokens to which a sentence is cut.
      count: samples to keep, all by default.
      offset: samples to leave out first.
    """
    if path is None:
        texts, labels = from_hub("nyu-mll/glue", "cola", "train" if split == "train" else "validation", "sentence", "label")
    else:
        root = Path(path).expanduser()
        inner = root / "cola_public" / "raw"
        file = existing_file(inner if inner.is_dir() else root, _FILES[split])
        texts, labels = [], []
        for number, line in enumerate(read_lines(file), 1):
            if not line.strip():
                continue
            fields = line.split("\t")
            if len(fields) != 4 or fields[1] not in ("0", "1"):
                raise DataError(f"{str(file)!r}, line {number}: not the four columns of CoLA (source, label, mark, sentence); the file is damaged")
            texts.append(fields[3])
            labels.append(int(fields[1]))
    return make_text(
        texts, labels, num_classes=2, tokenizer=tokenizer, max_length=max_length, count=count, offset=offset, source=f"cola {split}"
    )  # fmt: skip
