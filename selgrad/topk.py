"""Exact top-k and ranks of 10^8 entries on the host, in NumPy: XLA's CPU sort takes several times the memory and the time.

A mask at k entries needs no ranks: one pass counts scores by their upper bits, the few that share the upper bits of the k-th largest are counted again by their
lower bits, and every entry is compared with the k-th largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from selgrad.base import Ranks, Scores

Packed = npt.NDArray[np.uint8]
"""A mask of n entries in flattening order, 8 to a byte as in `numpy.packbits`."""

_BLOCK = 2**18
"""Entries processed together, so that intermediate results stay in the cache."""


def _order(scores: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Returns integers in the order of the scores (float32, others are rounded to it), with -0 equal to 0."""
    bits: npt.NDArray[np.int32] = (np.ascontiguousarray(scores, np.float32).reshape(-1) + np.float32(0)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits


def _blocks(scores: Scores, first: Sequence[bool] | None, group: bool) -> list[tuple[int, npt.NDArray[Any]]]:
    """Returns the start and the scores of each block of entries of the leaves in a group."""
    leaves = jax.tree.leaves(scores)
    chosen = list(first) if first is not None else [False] * len(leaves)
    starts = np.cumsum([0, *(int(np.prod(leaf.shape)) for leaf in leaves)])[:-1]
    flat = [(int(start), np.asarray(leaf).reshape(-1)) for start, leaf, yes in zip(starts, leaves, chosen, strict=True) if yes == group]
    return [(start + i, leaf[i : i + _BLOCK]) for start, leaf in flat for i in range(0, leaf.size, _BLOCK)]


def _histogram(blocks: Iterable[npt.NDArray[np.int32]]) -> npt.NDArray[np.int64]:
    """Counts entries by their upper 16 bits, the largest scores first."""
    counts = np.zeros(2**16, np.int64)
    for block in blocks:
        counts += np.bincount(2**15 + (block >> 16), minlength=2**16)
    return counts[::-1]


def _thresholds(keys: npt.NDArray[np.int32], counts: Sequence[int]) -> Iterator[tuple[np.int32, int]]:
    """Yields for each count k the k-th largest key, and the number of equal entries among the first k, by its upper and then its lower bits."""
    blocks = [keys[i : i + _BLOCK] for i in range(0, keys.size, _BLOCK)]
    ends = np.cumsum(_histogram(blocks))
    lower: dict[int, npt.NDArray[np.int64]] = {}
    for count in counts:
        bucket = int(np.searchsorted(ends, count))
        upper = 2**15 - 1 - bucket
        if bucket not in lower:
            lower_counts = np.zeros(2**16, np.int64)
            for block in blocks:
                lower_counts += np.bincount(block[block >> 16 == upper] & 0xFFFF, minlength=2**16)
            lower[bucket] = np.cumsum(lower_counts[::-1])
        inside = count - (int(ends[bucket - 1]) if bucket else 0)
        position = int(np.searchsorted(lower[bucket], inside))
        yield np.int32(upper * 2**16 + 2**16 - 1 - position), inside - (int(lower[bucket][position - 1]) if position else 0)


def top_on_host(scores: Scores, counts: Sequence[int], first: Sequence[bool] | None = None) -> Packed:
    """Returns the masks `rank_on_host(scores, first) < count` for several counts, packed: (len(counts), ceil(n / 8)).

    Args:
      scores: of one gradient, float32 (others are rounded to it); arrays that NumPy can read without copying.
      counts: numbers of selected entries, in [0, n].
      first: for each leaf, whether its entries come before those of all others.
    """
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(scores))
    result = np.empty((len(counts), -(-total // 8)), np.uint8)
    groups = []
    before = 0
    for group in (True, False):
        blocks = _blocks(scores, first, group)
        size = sum(block.size for _, block in blocks)
        keys, offset = np.empty(size, np.int32), 0
        for _, block in blocks:
            keys[offset : offset + block.size] = _order(block)
            offset += block.size
        inside = [min(max(count - before, 0), size) for count in counts]
        partial_counts = [count for count in inside if 0 < count < size]
        cuts = dict(zip(partial_counts, _thresholds(keys, partial_counts), strict=True))
        groups.append(([(start, block.size) for start, block in blocks], keys, inside, cuts))
        before += size
    mask = np.empty(total, bool)
    for k in range(len(counts)):
        for spans, keys, inside, cuts in groups:
            offset, left = 0, 0
            if inside[k] in cuts:
                value, left = cuts[inside[k]]
            for start, size in spans:
                part, out = keys[offset : offset + size], mask[start : start + size]
                offset += size
                if inside[k] not in cuts:
                    out[:] = inside[k] > 0
                    continue
                np.greater(part, value, out=out)
                if left:
                    # Of equal scores the first ones are selected.
                    equal = np.flatnonzero(part == value)[:left]
                    out[equal] = True
                    left -= len(equal)
        result[k] = np.packbits(mask)
    return result


def unpack(packed: Packed, like: Any) -> list[npt.NDArray[np.bool_]]:
    """Unpacks a mask by leaf, with the shapes of the leaves of `like`."""
    leaves = jax.tree.leaves(like)
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])
    bits = np.unpackbits(packed, count=int(ends[-1])).view(bool)
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(bits, ends[:-1]), leaves, strict=True)]


def counts(packed: Packed, sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Counts the entries of each leaf that a packed mask selects.

    Args:
      packed: one mask.
      sizes: of the leaves, each above 0.
    """
    return np.add.reduceat(np.unpackbits(packed, count=sum(sizes)), np.cumsum([0, *sizes])[:-1], dtype=np.int64)


def _parts(blocks: list[tuple[int, npt.NDArray[Any]]], start: int, stop: int) -> Iterator[npt.NDArray[np.uint64]]:
    """Yields, per block, the entries whose bucket, counted from the largest scores, lies in [start, stop): the descending key above, the index below."""
    for offset, block in blocks:
        descending = ~_order(block)
        bucket = (descending >> 16) + 2**15
        inside = np.flatnonzero((bucket >= start) & (bucket < stop))
        if len(inside):
            upper = (descending[inside].astype(np.int64) + 2**31).astype(np.uint64)
            yield (upper << np.uint64(32)) | (inside + offset).astype(np.uint64)


def rank_on_host(scores: Scores, first: Sequence[bool] | None = None, num_parts: int = 16) -> Ranks:
    """Computes `trees.rank`, and `trees.rank_first` of it where `first` is given.

    Entries are sorted in parts of neighbouring scores, so little memory is needed besides the scores and the ranks themselves.

    Args:
      scores: of one gradient, float32 (others are rounded to it); arrays that NumPy can read without copying.
      first: for each leaf, whether its entries come before those of all others.
      num_parts: more parts need less memory and more passes.
    """
    leaves, treedef = jax.tree.flatten(scores)
    ends = np.cumsum([0, *(int(np.prod(leaf.shape)) for leaf in leaves)])
    result = np.empty(ends[-1], np.int32)
    done = 0
    for group in (True, False):
        blocks = _blocks(scores, first, group)
        counts = _histogram(_order(block) for _, block in blocks)
        size, start = max(1, int(counts.sum()) // num_parts), 0
        while start < 2**16:
            # As many neighbouring buckets as fit in a part; a single one where it is larger.
            stop = start + max(1, int(np.searchsorted(np.cumsum(counts[start:]), size, side="right")))
            parts: Iterable[npt.NDArray[np.uint64]] = _parts(blocks, start, stop)
            # Equal scores, such as many zeros, are in order already.
            if counts[start:stop].sum() <= size or len({int(end >> 32) for part in _parts(blocks, start, stop) for end in (part.min(), part.max())}) > 1:
                parts = [np.sort(np.concatenate([*parts, np.zeros(0, np.uint64)]))]
            for part in parts:
                result[(part & np.uint64(0xFFFFFFFF)).astype(np.int64)] = np.arange(done, done + len(part), dtype=np.int32)
                done += len(part)
            start = stop
    return jax.tree.unflatten(treedef, [result[a:b].reshape(leaf.shape) for a, b, leaf in zip(ends[:-1], ends[1:], leaves, strict=True)])
