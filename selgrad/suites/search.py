"""An adaptive sweep: cells are chosen as verdicts need them, run as blocks, and kept like any sweep's records; what is on record is never run again.

`selgrad.suites.decide` says which cells are wanted, and this module runs them: for each, the attacks of a suite, cheapest first, until one reads the input.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad.errors import SelgradError
from selgrad.experiment import Lane
from selgrad.registry import Spec
from selgrad.report.record_files import RecordFiles
from selgrad.report.verdicts import reached, worst_at
from selgrad.suites.decide import Answer, Question, Wanted, step
from selgrad.sweep.executors.protocol import Executor
from selgrad.sweep.plan import BlockPlan, Plan
from selgrad.sweep.run import OnEvent, Sweep


class Arm(NamedTuple):
    """What a defender can choose besides the ratio."""

    metric: Spec
    selector: Spec

    @property
    def label(self) -> str:
        """The metric, and the selector unless it is global_top."""
        return self.metric.label if self.selector.label == "global_top" else f"{self.metric.label} / {self.selector.label}"


class Search(Sweep):
    """A sweep of one setting whose cells are chosen one after the other.

    Its configuration lists the attacks in the order in which they are tried, and every ratio that may be asked for, including 0.
    """

    scattered = True

    def _split(self, index: int, attack: Spec, lanes_per_block: int) -> list[BlockPlan]:
        """Returns one block that stands for all: whichever cells are wanted, the same program runs them."""
        config, number = self.config, self.settings[index].num_samples
        lanes = [Lane(config.seeds[0], index % number, config.metric[0], config.selector[0], config.ratio[-1]) for index in range(lanes_per_block)]
        return [BlockPlan(index, attack, config.seeds[:1], (tuple(lanes),), lanes_per_block)]

    def equivalence(self) -> pd.DataFrame:
        """Returns an empty table: few masks are made, and they are not compared."""
        return pd.DataFrame()

    @property
    def arms(self) -> list[Arm]:
        """Every metric with every selector."""
        return [Arm(metric, selector) for metric in self.config.metric for selector in self.config.selector]

    @property
    def num_cells(self) -> int:
        """Cells at one ratio: every sample once, since a sample's other seeds say little that is new."""
        return self.settings[0].num_samples

    @functools.cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        """The sample of each cell, in random order, since data sets are often sorted by class."""
        return np.random.default_rng(self.num_cells).permutation(self.num_cells)

    def lane(self, arm: Arm, ratio: float, cell: int) -> Lane:
        """Returns the lane of a cell: each cell has its own sample, seeds take turns every three cells, which one block attacks, and all metrics share them."""
        seeds = self.config.seeds
        return Lane(seeds[cell // 3 % len(seeds)], int(self._order[cell]), arm.metric, arm.selector, ratio)

    def records(self) -> pd.DataFrame:
        """Reads the records that are there so far."""
        record_files = RecordFiles(self.out)
        return record_files.read() if record_files.blocks else pd.DataFrame()

    def blocks_of(self, attack: Spec, lanes: Iterable[Lane]) -> list[BlockPlan]:
        """Groups cells into blocks of one seed, and of one metric and selector where the attacker reads them."""
        built, size = self._attacks[attack], self.folder.block_sizes[f"0:{attack.label}"]
        groups: dict[Any, list[Lane]] = {}
        for lane in dict.fromkeys(lanes):
            groups.setdefault((lane.seed, (lane.metric, lane.selector) if built.evidence else None), []).append(lane)
        return [
            BlockPlan(0, attack, (group[0].seed,), (tuple(group[start : start + size]),), size)
            for group in groups.values()
            for start in range(0, len(group), size)
        ]


Key = tuple[str, str, str, float, int, int]


def _key(attack: str, lane: Lane) -> Key:
    # With nothing encrypted all metrics and selectors are the same.
    chosen = ("", "") if lane.ratio == 0 else (lane.metric.label, lane.selector.label)
    return attack, *chosen, lane.ratio, lane.sample, lane.seed


@dataclasses.dataclass
class Runner:
    """Runs the cells that a search wants.

    Attributes:
      search: the search, already planned.
      executor: runs the blocks.
      level: the level at which an input counts as read, after which no other attack is tried on it.
      on_block: called with an attack's short name and the records of each block.
      on_event: called with a line.
    """

    search: Search
    executor: Executor
    level: str
    on_block: Callable[[str, pd.DataFrame], None] = lambda *_: None
    on_event: OnEvent = lambda _: None

    def __post_init__(self) -> None:
        self._known: dict[Key, bool] = {}
        self._learn(self.search.records())

    def _learn(self, records: pd.DataFrame) -> None:
        if records.empty:
            return
        for row in reached(records, self.level).itertuples():
            chosen = ("", "") if row.ratio == 0 else (row.metric_label, row.selector_label)
            key = (row.attack_label, *chosen, float(row.ratio), int(row.sample), int(row.seed))
            self._known[key] = bool(row.success)

    @property
    def num_known(self) -> int:
        """The number of attacks that were run, now or before."""
        return len(self._known)

    def run(self, lanes: Sequence[Lane]) -> None:
        """Runs every attack on cells with nothing encrypted; on the others until one reads them, and then with nothing encrypted on those that none did."""
        plain = [lane for lane in lanes if lane.ratio == 0]
        waiting = [lane for lane in lanes if lane.ratio > 0]
        for attack in self.search.config.attack:
            self._attack(attack, [*plain, *waiting])
            waiting = [lane for lane in waiting if not self._known[_key(attack.label, lane)]]
        if waiting:
            # A defence is not credited where the attack fails anyway; all metrics share these.
            self.run(list({(lane.sample, lane.seed): dataclasses.replace(lane, ratio=0.0) for lane in waiting}.values()))

    def _attack(self, attack: Spec, lanes: Sequence[Lane]) -> None:
        wanted = list({key: lane for lane in lanes if (key := _key(attack.label, lane)) not in self._known}.values())
        if not wanted:
            return
        blocks = self.search.blocks_of(attack, wanted)
        plan = Plan(len(wanted), tuple(blocks), 0, 0.0, 0.0)
        block_records: list[pd.DataFrame] = []

        def on_block(short: str, records: pd.DataFrame) -> None:
            block_records.append(records)
            self.on_block(short, records)

        progress = {"cells": 0.0}

        def on_progress(cells: float, line: str) -> None:
            progress["cells"] += cells
            self.on_event(f"{line}: {progress['cells']:.0f} of {len(wanted)} cells")

        self.executor.run(self.search, plan, None, on_block, on_progress)
        done = {block.identity for block in blocks} - {block.identity for block in self.search.missing(blocks)}
        self._learn(pd.concat(block_records, ignore_index=True) if block_records else pd.DataFrame())
        if len(done) == len(blocks) and any(_key(attack.label, lane) not in self._known for lane in wanted):
            self._learn(self.search.records())
        missing = [lane for lane in wanted if _key(attack.label, lane) not in self._known]
        if missing:
            raise SelgradError(f"{attack.label} left {len(missing)} cells without a record; run the same command again")


def outcomes(search: Search, records: pd.DataFrame, level: str, ratios: Sequence[float]) -> dict[str, dict[int, dict[int, str]]]:
    """Returns arm -> index of a ratio -> index of a cell -> outcome, as `decide.step` reads them."""
    by_arm: dict[str, dict[int, dict[int, str]]] = {arm.label: {} for arm in search.arms}
    if records.empty:
        return by_arm
    worst = worst_at(records, level)
    worst = worst[is_informative(worst, records, len(search.config.attack))]
    cells = {(lane.sample, lane.seed): cell for cell in range(search.num_cells) for lane in [search.lane(search.arms[0], 0.0, cell)]}
    named = {(arm.metric.label, arm.selector.label): arm.label for arm in search.arms}
    places = {ratio: index for index, ratio in enumerate(ratios)}
    for row in worst.itertuples():
        arm, index = named.get((row.metric_label, row.selector_label)), places.get(row.ratio)
        cell = cells.get((row.sample, row.seed))
        if arm is not None and index is not None and cell is not None:
            by_arm[arm].setdefault(index, {})[cell] = row.outcome
    return by_arm


def is_informative(worst: pd.DataFrame, records: pd.DataFrame, num_attacks: int) -> pd.Series:
    """Returns which rows of `worst_at` say something: a cell that is not read does once every attack has tried it, also with nothing encrypted.

    A run may have ended in between, and an input that one attack has read is not given to the next.
    """
    whole = _complete(records, num_attacks)
    tried = [{_mask(row), _PLAIN} <= whole.get((row.sample, row.seed), set()) for row in worst.itertuples()]
    return (worst["outcome"] == "read") | pd.Series(tried, index=worst.index, dtype=bool)


def tried_by_all(records: pd.DataFrame, num_attacks: int) -> pd.Series:
    """Returns which records are of a mask and an input that every attack has tried."""
    whole = _complete(records, num_attacks)
    tried = [_mask(row) in whole.get((row.sample, row.seed), set()) for row in records.itertuples()]
    return pd.Series(tried, index=records.index, dtype=bool)


_PLAIN = ("", "", 0.0)


def _mask(row: Any) -> tuple[str, str, float]:
    """Returns which mask a record is of; with nothing encrypted all metrics and selectors are the same."""
    return _PLAIN if row.ratio == 0 else (row.metric_label, row.selector_label, row.ratio)


def _complete(records: pd.DataFrame, num_attacks: int) -> dict[tuple[int, int], set[tuple[str, str, float]]]:
    """Returns (sample, seed) -> those of its masks on which every attack has been tried; with nothing encrypted all metrics are the same."""
    plain = records["ratio"] == 0
    keys = records[["ratio", "sample", "seed", "attack_label"]].assign(
        metric=records["metric_label"].astype(str).where(~plain, ""), selector=records["selector_label"].astype(str).where(~plain, "")
    )
    tried = keys.groupby(["metric", "selector", "ratio", "sample", "seed"], sort=False, observed=True)["attack_label"].nunique()
    complete: dict[tuple[int, int], set[tuple[str, str, float]]] = {}
    for metric, selector, ratio, sample, seed in tried[tried == num_attacks].index:
        complete.setdefault((sample, seed), set()).add((metric, selector, ratio))
    return complete


def answers(search: Search, runner: Runner, question: Question, on_round: Callable[[dict[str, Answer | Wanted]], None] = lambda _: None) -> dict[str, Answer]:
    """Runs cells until every arm has its answer.

    Args:
      search: the search, already planned.
      runner: runs its cells.
      question: what is asked.
      on_round: called with what each arm wants, or has been answered, before each round of cells.

    Returns:
      Arm -> answer.
    """
    while True:
        tried = outcomes(search, search.records(), question.level, question.ratios)
        state = {arm.label: step(question, tried[arm.label], search.num_cells) for arm in search.arms}
        on_round(state)
        wanted = [(arm, state[arm.label]) for arm in search.arms]
        lanes = [search.lane(arm, question.ratios[result.ratio], cell) for arm, result in wanted if isinstance(result, Wanted) for cell in result.cells]
        if not lanes:
            return {label: result for label, result in state.items() if isinstance(result, Answer)}
        before = runner.num_known
        runner.run(lanes)
        if runner.num_known == before:
            raise SelgradError(f"records of this search have disappeared from {str(search.out)!r}; choose another --out, or run the same command again")
