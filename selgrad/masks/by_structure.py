"""Selection by the parts of a transformer: embedding rows, query-key-value blocks, heads, norms and biases, or adapters first.

Whole rows, columns or leaves are encrypted, in the order of their mean score, so a client can name them in a few bytes instead of an index list.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from selgrad import trees
from selgrad.base import Ranks, Scores, Selector
from selgrad.errors import UsageError

Part: TypeAlias = Literal["embedding_rows", "heads", "qkv_blocks", "norms_and_biases", "adapters"]

_LEAVES = {
    "embedding_rows": r"(.*/)?embedding$",
    "heads": r".*attention/(query|key|value|qkv)/(kernel|bias)$",
    "qkv_blocks": r".*attention/(query|key|value|qkv)/(kernel|bias)$",
    "norms_and_biases": r".*((norm|bn[^/]*)/(scale|bias)|bias)$",
    "adapters": r".*lora_[ab]$",
}


def _groups(path: str, shape: tuple[int, ...], part: str, num_heads: int) -> Array:
    """Returns each entry's group number within its leaf, for a leaf of the part; columns of query, key and value belong to heads."""
    if part == "embedding_rows":
        return jnp.broadcast_to(jnp.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)
    if part in ("heads", "qkv_blocks"):
        # GPT-2's fused kernel holds query, key and value side by side.
        blocks = 3 if path.split("/")[-2] == "qkv" else 1
        column = jnp.arange(shape[-1])
        width = shape[-1] // blocks
        group = column // width if part == "qkv_blocks" else (column % width) // (width // num_heads)
        return jnp.broadcast_to(group, shape)
    return jnp.zeros(shape, jnp.int32)


def by_structure(*, part: Part, num_heads: int = 1) -> Selector:
    """Ranks the entries of the named part before all others, group by group in the order of the groups' mean score.

    A group is a row of an embedding matrix, a head (its columns of query, key and value in one layer), a query, key or value block, a norm or
    bias vector, or an adapter. Entries inside a group are ordered by index; the rest of the tree is ordered by score.

    Args:
      part: which groups.
      num_heads: of the model, for `heads`.

    Raises:
      UsageError: when applied, if the tree has no such part, or a width is not a multiple of `num_heads`.
    """
    if num_heads < 1:
        raise UsageError(f"num_heads={num_heads} must be at least 1")

    def order(scores: Scores) -> Ranks:
        names, leaves = trees.paths(scores), jax.tree.leaves(scores)
        chosen = [bool(re.match(_LEAVES[part], name)) for name in names]
        if not any(chosen):
            raise UsageError(f"part={part!r} names no leaf of this gradient; is the embedding frozen, or the model no transformer?")
        keys: dict[str, int] = {}
        groups, offsets = [], 0
        for name, leaf, yes in zip(names, leaves, chosen, strict=True):
            if not yes:
                groups.append(jnp.full(leaf.size, -1, jnp.int32))
                continue
            if part == "heads" and leaf.shape[-1] % num_heads:
                raise UsageError(f"num_heads={num_heads} does not divide the width {leaf.shape[-1]} of {name!r}")
            local = _groups(name, leaf.shape, part, num_heads)
            count = {"embedding_rows": leaf.shape[0], "heads": num_heads, "qkv_blocks": 3 if "/qkv/" in name else 1}.get(part, 1)
            # A head is one group over the layer's kernels and biases; every other group belongs to one leaf.
            key = name.split("/attention/")[0] if part == "heads" else name
            if key not in keys:
                keys[key] = offsets
                offsets += count
            groups.append((keys[key] + local).reshape(-1).astype(jnp.int32))
        group, flat = jnp.concatenate(groups), trees.ravel(scores)
        group_ranks = trees.group_places(flat, jnp.where(group < 0, offsets, group), offsets + 1)
        rank_of_group = jnp.where(group < 0, offsets + 1, group_ranks[jnp.maximum(group, 0)])
        within = jnp.where(group < 0, trees.descending_ranks(flat), jnp.arange(flat.size))
        return trees.unravel(trees.inverse_permutation(jnp.lexsort((within, rank_of_group))), scores)

    return Selector(order)
