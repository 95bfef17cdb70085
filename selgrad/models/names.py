"""Names of stored tensors: prefixes that wrappers add, old names, and the names in PyTorch and timm of layers that we name differently.

Names and layouts are facts about file formats: PyTorch stores a dense layer as (out, in) and a convolution as (out, in, height, width); Flax as (in, out) and
(height, width, in, out).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad.errors import DataError

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
_OLD = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))
_LAYERS = (
    # timm and Hugging Face vision transformers.
    (re.compile(r"^(vit|deit)\."), ""),
    (re.compile(r"^(encoder\.layer|blocks)\.(\d+)\."), r"layer_\2."),
    (re.compile(r"\battn\.qkv\."), "attention.qkv."),
    (re.compile(r"\battn\.proj\.|\battention\.output\.dense\."), "attention.output."),
    (re.compile(r"\bmlp\.fc1\.|\bintermediate\.dense\."), "mlp.up."),
    (re.compile(r"\bmlp\.fc2\.|(?<!attention\.)\boutput\.dense\."), "mlp.down."),
    (re.compile(r"\bnorm1\.|\blayernorm_before\."), "attention_norm."),
    (re.compile(r"\bnorm2\.|\blayernorm_after\."), "mlp_norm."),
    (re.compile(r"^layernorm\."), "norm."),
    (re.compile(r"^(patch_embed\.proj|embeddings\.patch_embeddings\.projection)\."), "patches."),
    (re.compile(r"^(cls_token|embeddings\.cls_token)$"), "class_token"),
    (re.compile(r"^(pos_embed|embeddings\.position_embeddings)$"), "positions"),
)
_PARTS = ("query", "key", "value")


def clean(name: str) -> str:
    """Strips the prefixes that wrappers add to a name and replaces old endings by their new form.

    >>> clean("module._orig_mod.bert.embeddings.LayerNorm.gamma")
    'bert.embeddings.LayerNorm.weight'
    """
    changed = True
    while changed:
        changed = False
        for wrapper in _WRAPPERS:
            if name.startswith(wrapper):
                name, changed = name.removeprefix(wrapper), True
    for pattern, new in _OLD:
        name = pattern.sub(new, name)
    return name


def cleaned(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all tensors under clean names.

    Raises:
      DataError: if two different tensors have one clean name, such as `gamma` beside `weight`: nobody knows which of them the network uses.
    """
    result: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in tensors.items():
        plain = clean(name)
        if plain in result and not (np.shape(result[plain]) == np.shape(value) and np.array_equal(result[plain], value)):
            raise DataError(f"the checkpoint holds {origin[plain]!r} and {name!r}, which are two values of one tensor; keep one")
        result[plain] = value
        origin.setdefault(plain, name)
    return result


def fused(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Joins separate query, key and value of vision transformers to one tensor, in that order, as timm and we store them."""
    result = dict(tensors)
    pattern = re.compile(r"(.*attention\.)attention\.query\.(weight|bias)$")
    for name in tensors:
        match = pattern.match(name)
        parts = [] if match is None else [f"{match[1]}attention.{part}.{match[2]}" for part in _PARTS]
        if match is not None and all(part in result for part in parts):
            result[f"{match[1]}qkv.{match[2]}"] = np.concatenate([result.pop(part) for part in parts], axis=0)
    return result


def renamed(name: str) -> str:
    """Translates layer names of timm and Hugging Face vision transformers to ours."""
    for pattern, new in _LAYERS:
        name = pattern.sub(new, name)
    return name


def turned(value: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """Returns a PyTorch weight in our layout where that gives the wanted shape; None where no layout does.

    A convolution over patches may also become a dense layer over their pixels.
    """
    options = {2: ((1, 0),), 4: ((2, 3, 1, 0),), 3: ((2, 1, 0),)}.get(value.ndim, ())
    for axes in options:
        transposed = value.transpose(axes)
        if transposed.shape == shape:
            return transposed
        if transposed.ndim == 4 and len(shape) == 2 and (int(np.prod(transposed.shape[:3])), transposed.shape[3]) == shape:
            return transposed.reshape(shape)
    return None
