"""Data of one's own: arrays of images and labels, or sentences with a tokenizer.

What is given is checked like a loader's file, and hashed by content where it becomes part of an experiment's identity.
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
    """A data set from images in memory.

    Args:
      images: (N, H, W, C) or (N, H, W); uint8, or floats in [0, 1].
      labels: (N,) integers.
      num_classes: one more than the largest label by default.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
      source: what to call the data in errors.

    Raises:
      DataError: if shapes do not belong together, labels are out of range, or pixels lie outside [0, 1].

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


def as_tokenizer(given: Any) -> str | Tokenizer:
    """A tokenizer from a name or folder, one of the packages tokenizers and transformers, or one of ours.

    Raises:
      UsageError: if it is none of these.
    """
    if isinstance(given, str | Tokenizer):
        return given
    if isinstance(given, Path):
        return str(given)
    if hasattr(given, "token_to_id") and hasattr(given, "get_vocab_size"):
        return of_library(given)
    if hasattr(given, "all_special_ids") and hasattr(given, "encode"):
        special = tuple(sorted(given.all_special_ids))
        pad = given.pad_token_id if given.pad_token_id is not None else given.eos_token_id
        return Tokenizer(
            encode=lambda text: list(given.encode(text)),
            decode=lambda ids: str(given.decode([i for i in ids if i not in special])).strip(),
            size=max(given.get_vocab().values()) + 1 if hasattr(given, "get_vocab") else len(given),
            pad_id=0 if pad is None else pad,
            start_id=given.cls_token_id,
            end_id=given.sep_token_id,
            special_ids=special,
        )
    raise UsageError(f"{type(given).__name__} is not a tokenizer; give 'words', a folder, or one of the packages tokenizers or transformers")


def from_sentences(sentences: Sequence[str], tokenizer: Any = "words", labels: Sequence[int] | None = None, *, max_length: int = 32) -> TextDataset:
    """A data set from sentences in memory.

    Args:
      sentences: one text a sample.
      tokenizer: "words", a folder, a name on the hub, or a tokenizer of the packages tokenizers or transformers.
      labels: one class number a sentence; alternating 0 and 1 by default, for models that ignore them.
      max_length: tokens to which a sentence is cut.

    Raises:
      DataError: if there is nothing, or a label is out of range.
      UsageError: if the tokenizer is none.

    >>> from_sentences(["the cat sat", "a dog ran"]).decode([2, 4, 5])
    'a cat'
    """
    ids = [i % 2 for i in range(len(sentences))] if labels is None else [int(label) for label in labels]
    return make_text(
        list(sentences), ids, num_classes=max(ids, default=0) + 1 if labels is not None else 2, tokenizer=as_tokenizer(tokenizer), max_length=max_length,
        count=None, offset=0, source="sentences",
    )  # fmt: skip


def _is_sentences(item: Any) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(text, str) for text in item)


def adapt(item: Any) -> Callable[..., Any]:
    """A factory of a data set: a registry's own as it is, and one for what somebody brings.

    Raises:
      UsageError: if it is none.
    """
    if isinstance(item, Dataset | TextDataset):
        return constant(item)
    if isinstance(item, tuple) and len(item) in (2, 3) and _is_sentences(item[0]):
        return constant(from_sentences(item[0], item[1], *item[2:]))
    if isinstance(item, tuple) and len(item) == 2 and all(hasattr(one, "shape") or isinstance(one, list) for one in item):
        return constant(from_arrays(*item))
    if callable(item) and is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("dataset", item, _WANTED)
