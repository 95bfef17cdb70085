"""Splits a sweep's axes into blocks, by pure functions, so that the same configuration and block sizes give the same blocks on any machine.

A lane is one (seed, metric, selector, sample, ratio); seeds are the rows of a block and lanes its columns.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from selgrad.config import SweepConfig
from selgrad.experiment import Lane
from selgrad.registry import Spec


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One compiled call: an attack on a setting, for some seeds times some lanes.

    Attributes:
      setting: index into the sweep's settings.
      attack: spec of the attack.
      seeds: one per row.
      lanes: one row of lanes per seed, all of one length.
      lanes_per_block: number of lanes of the program that runs the block, to which it is padded.
    """

    setting: int
    attack: Spec
    seeds: tuple[int, ...]
    lanes: tuple[tuple[Lane, ...], ...]
    lanes_per_block: int

    @property
    def num_cells(self) -> int:
        """The number of cells in the block."""
        return sum(map(len, self.lanes))

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the cells."""
        # Cached, since there are few specs and many cells.
        named = functools.cache(lambda spec: (spec.name, spec.arguments))
        numbers: dict[tuple[Spec, Spec], int] = {}
        cells = [(lane.seed, lane.sample, lane.ratio, numbers.setdefault((lane.metric, lane.selector), len(numbers))) for row in self.lanes for lane in row]
        chosen_by = [(named(metric), named(selector)) for metric, selector in numbers]
        return hashlib.sha256(repr((self.setting, named(self.attack), chosen_by, cells)).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep will run, decided once; the block sizes that determine it are kept in `plan.json`, so that a resumed sweep has the same blocks.

    Attributes:
      num_cells: number of all cells.
      blocks: the blocks in the order in which they run.
      memory_bytes: memory of the largest block.
      compile_seconds: time spent on compilation while planning.
      seconds: estimated run time of all blocks; lanes that finish early make it shorter.
      num_programs: number of compiled programs; 0 where all is done.
    """

    num_cells: int
    blocks: tuple[BlockPlan, ...]
    memory_bytes: int
    compile_seconds: float
    seconds: float
    num_programs: int = 0


def group_sizes(blocks: Iterable[BlockPlan], settings: Sequence[tuple[Spec, ...]]) -> dict[tuple[object, ...], int]:
    """Counts the cells of each group of `selgrad.report.groups`.

    Args:
      blocks: all blocks of the sweep.
      settings: data set, model, update and protection of each setting.
    """
    named = functools.cache(lambda spec: (spec.name, spec.arguments_json))
    counts: collections.Counter[tuple[object, ...]] = collections.Counter()
    for block in blocks:
        for row in block.lanes:
            for lane in row:
                specs = (*settings[block.setting], lane.metric, lane.selector, block.attack)
                counts[(*itertools.chain(*map(named, specs)), lane.ratio)] += 1
    return dict(counts)


def lanes_of_seed(config: SweepConfig, num_samples: int, seed: int) -> list[Lane]:
    """Returns every lane of a seed, ratios innermost."""
    axes = itertools.product(config.metric, config.selector, range(num_samples), config.ratio)
    return [Lane(seed, sample, metric, selector, ratio) for metric, selector, sample, ratio in axes]


def groups(config: SweepConfig, num_samples: int, seed: int, by_metric: bool) -> list[list[Lane]]:
    """Groups the lanes that may share a block: all, or those of one metric and selector where the attacker reads them."""
    lanes = lanes_of_seed(config, num_samples, seed)
    if not by_metric:
        return [lanes]
    return [[lane for lane in lanes if (lane.metric, lane.selector) == pair] for pair in itertools.product(config.metric, config.selector)]


def split(config: SweepConfig, num_samples: int, setting: int, attack: Spec, by_metric: bool, lanes_per_block: int) -> Iterator[BlockPlan]:
    """Yields the blocks of an attack on a setting.

    Args:
      config: the axes.
      num_samples: number of samples of the setting.
      setting: index of the setting.
      attack: spec of the attack.
      by_metric: whether a block holds one metric and selector only.
      lanes_per_block: the largest number of lanes in a block.
    """
    of_seeds = [groups(config, num_samples, seed, by_metric) for seed in config.seeds]
    for rows in zip(*of_seeds, strict=True):
        yield from cut(BlockPlan(setting, attack, config.seeds, tuple(map(tuple, rows)), lanes_per_block), lanes_per_block)


def cut(block: BlockPlan, lanes_per_block: int) -> Iterator[BlockPlan]:
    """Cuts a block into blocks of at most `lanes_per_block` lanes: of whole rows where a row fits, otherwise of parts of one row."""
    width = len(block.lanes[0])
    if width <= lanes_per_block:
        seeds_per_block = max(1, lanes_per_block // width)
        for start in range(0, len(block.seeds), seeds_per_block):
            rows = slice(start, start + seeds_per_block)
            yield BlockPlan(block.setting, block.attack, block.seeds[rows], block.lanes[rows], lanes_per_block)
    else:
        for seed, row in zip(block.seeds, block.lanes, strict=True):
            for start in range(0, width, lanes_per_block):
                yield BlockPlan(block.setting, block.attack, (seed,), (tuple(row[start : start + lanes_per_block]),), lanes_per_block)


def refined(blocks: Iterable[BlockPlan], sizes: Mapping[str, int]) -> Iterator[BlockPlan]:
    """Yields the blocks, with those that ran out of memory cut again, as often as they did.

    Args:
      blocks: the blocks in their order.
      sizes: lanes per block by the identity of a block that did not fit.
    """
    for block in blocks:
        # A block that is not full may hold the same cells in a smaller program.
        if sizes.get(block.identity, block.lanes_per_block) < block.lanes_per_block:
            yield from refined(cut(block, sizes[block.identity]), sizes)
        else:
            yield block


def block_shape(config: SweepConfig, num_samples: int, by_metric: bool, lanes_per_block: int) -> tuple[int, int]:
    """Returns seeds and lanes of the one program that all blocks of an attack on a setting share; smaller blocks are padded to it."""
    whole = len(groups(config, num_samples, config.seeds[0], by_metric)[0])
    return min(len(config.seeds), max(1, lanes_per_block // whole)), min(whole, lanes_per_block)


def most_updates(config: SweepConfig, num_samples: int, num_lanes: int) -> int:
    """Returns how many samples `num_lanes` neighbouring lanes of a seed can belong to at most, ratios being innermost."""
    return min(num_samples, (num_lanes - 2) // len(config.ratio) + 2)


def fitting(lanes_per_block: int, lanes: int, memory_bytes: int, shared_bytes: int, budget: int) -> int:
    """Returns a number of lanes per block that fits in memory, below one that does not.

    Args:
      lanes_per_block: the number that was tried.
      lanes: number of lanes of its program, padding included.
      memory_bytes: memory that the program needs; all but the shared part grows with the lanes.
      shared_bytes: the part of it that all lanes share.
      budget: free memory in bytes.

    >>> fitting(32, 32, 3300, 100, 900)
    8
    """
    each = max(1, memory_bytes - shared_bytes) / lanes
    return max(1, min(lanes_per_block - 1, int((budget - shared_bytes) / each)))
