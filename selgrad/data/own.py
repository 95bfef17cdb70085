"""User-defined data: arrays of images and labels, or sentences with a tokenizer.

They are checked like a loader's file, and hashed by content where they become part of an experiment's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selgrad.callables import constant, is_factory, unusable
from selgrad.data.dataset import Dataset, Normalisation, make
from selgrad.data.text import TextDataset, make_text
from selgrad.data.tokenizer import Tokenizer, of_library
from selgrad.errors import DataError, UsageError

_WANTED = "a pair of arrays (images, labels), a pair (sentences, tokenizer), a Dataset, or a function of keyword arguments that returns one"


def from_arrays(images: Any, labels: Any, *, num_classes: int | None = None, normalisation: Normalisation = "none", source: str = "arrays") -> Dataset:
    """Makes a data set from images in memory.

    Args:
      images: (N, H, W, C) or (N, H, W); uint8, or floats in [0, 1].
      labels: (N,) integers.
      num_classes: one more than the largest label by default.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
      source: name of the data in errors.

    Raises:
      DataError: if shapes do not match, labels are out of range, or pixels lie outside [0, 1].

    >>> import numpy as np
    >>> from_arrays(np.zeros((2, 8, 8), np.uint8), [0, 1]).spec.shape
    (8, 8, 1)
    """
    pixels, ids = np.asarray(images), np.asarray(labels)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"{source}: labels of shape {ids.shape} and type {ids.dtype} are not one integer an image; give class numbers from 0 on")
    classes = int(ids.max()) + 1 if num_classes is None and len(ids) else num_classes or 1
    return make(pixels, ids, num_classes=classes, count=None, offset=0, normalisation=normalisation, source=source)


def as_tokenizer(tokenizer: Any) -> str | Tokenizer:
    """Makes a tokenizer from a name or folder, a tokenizer of the packages tokenizers and transformers, or one of ours.

    Raises:
      UsageError: if it is none of these.
    """
    if isinstance(tokenizer, str | Tokenizer):
        return tokenizer
    if isinstance(tokenizer, Path):
        return str(tokenizer)
    if hasattr(tokenizer, "token_to_id") and hasattr(tokenizer, "get_vocab_size"):
        return of_library(tokenizer)
    if hasattr(tokenizer, "all_special_ids") and hasattr(tokenizer, "encode"):
        special = tuple(sorted(tokenizer.all_special_ids))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return Tokenizer(
            encode=lambda text: list(tokenizer.encode(text)),
            decode=lambda ids: str(tokenizer.decode([i for i in ids if i not in special])).strip(),
            size=max(tokenizer.get_vocab().values()) + 1 if hasattr(tokenizer, "get_vocab") else len(tokenizer),
            pad_id=0 if pad is None else pad,
            start_id=tokenizer.cls_token_id,
            end_id=tokenizer.sep_token_id,
            special_ids=special,
        )
    raise UsageError(f"{type(tokenizer).__name__} is not a tokenizer; give 'words', a folder, or one of the packages tokenizers or transformers")


def from_sentences(sentences: Sequence[str], tokenizer: Any = "words", labels: Sequence[int] | None = None, *, max_length: int = 32) -> TextDataset:
    """Makes a data set from sentences in memory.

    Args:
      sentences: one text per sample.
      tokenizer: "words", a folder, a name on the hub, or a tokenizer of the packages tokenizers or transformers.
      labels: one class number per sentence; alternating 0 and 1 by default, for models that ignore them.
      max_length: tokens to which a sentence is cut.

    Raises:
      DataError: if there are no sentences, or a label is out of range.
      UsageError: if the tokenizer is not a known kind of tokenizer.

    >>> from_sentences(["the cat sat", "a dog ran"]).decode([2, 4, 5])
    'a cat'
    """
    if labels is not None and not all(isinstance(label, int | np.integer) and not isinstance(label, bool) for label in labels):
        raise DataError(f"sentences: labels {list(labels)[:4]} are not integers; give class numbers from 0 on")
    ids = [i % 2 for i in range(len(sentences))] if labels is None else [int(label) for label in labels]
    return make_text(
        list(sentences), ids, num_classes=max(ids, default=0) + 1 if labels is not None else 2, tokenizer=as_tokenizer(tokenizer), max_length=max_length,
        count=None, offset=0, source="sentences",
    )  # fmt: skip


def _is_sentences(item: Any) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(text, str) for text in item)


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of a data set: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not a data set or a factory of one.
    """
    if isinstance(item, Dataset | TextDataset):
        return constant(item)
    if isinstance(item, tuple) and len(item) in (2, 3) and _is_sentences(item[0]):
        return constant(from_sentences(item[0], item[1], *item[2:]))
    if isinstance(item, tuple) and len(item) == 2 and all(hasattr(array, "shape") or isinstance(array, list) for array in item):
        return constant(from_arrays(*item))
    if callable(item) and is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("dataset", item, _WANTED)
