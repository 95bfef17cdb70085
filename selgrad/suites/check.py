"""A check of a recommendation: the ratio that it names, tried on inputs and weights that had no part in finding it.

The attacks may have a larger budget than those of the search, which tries many ratios where this tries one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from selgrad.config import SweepConfig
from selgrad.errors import UsageError
from selgrad.report.statistics import upper_bound
from selgrad.report.verdicts import worst_at
from selgrad.suites.decide import Answer, Question
from selgrad.suites.search import Arm, Runner, Search
from selgrad.sweep.executors.protocol import Executor
from selgrad.sweep.run import OnEvent


@dataclasses.dataclass(frozen=True)
class Checked:
    """How a recommendation fared on inputs and weights that had no part in it.

    Attributes:
      arm: label of the metric and selector that were tried.
      ratio: the ratio that was tried.
      read, num_cells: cells that an attack reads, of those on which one works at all.
      unresolved: cells on which attacks ended too early.
      bound: on the success rate, with unresolved cells counted as read, at the confidence of the question.
      verdict: "held" where the bound lies at or below the tolerated rate, "did not hold" where a larger share of the cells is read, else "undecided".
      suite: label of the suite that attacked them, whose budget may be larger than that of the search.
    """

    arm: str
    ratio: float
    read: int
    num_cells: int
    unresolved: int
    bound: float
    verdict: str
    suite: str


def tried(
    config: SweepConfig, search: Search, arm: Arm, answer: Answer, question: Question, out: Path, executor: Executor, on_event: OnEvent
) -> Checked | None:
    """Tries the answer on as many inputs as a claim needs, taken from after those of the search, with weights of other seeds, by the attacks of `config`."""
    dataset = search.settings[0].specs[0]
    if answer.ratio == 1.0:
        return Checked(arm.label, 1.0, 0, 0, 0, 0.0, "held", config.suite)
    count = len(search.settings[0].dataset)
    fresh = {"offset": int(dataset.get("offset") or 0) + count, "count": count}
    if not set(fresh) <= set(dict(dataset.arguments)):
        return None
    seeds = [max(config.seeds) + 1 + i for i in range(len(config.seeds))]
    changes = {
        "dataset": (dataset.changed(**fresh),),
        "seeds": tuple(seeds),
        "ratio": (0.0, answer.ratio),
        "metric": (arm.metric,),
        "selector": (arm.selector,),
    }
    try:
        dataset.changed(**fresh).build()
    except UsageError as error:
        on_event(f"no check: there are no fresh inputs ({error})")
        return None
    # Each answer has a check, and a folder, of its own, and so has each suite that is not that of the search.
    suffix = "" if config.suite == search.config.suite else f"-{config.suite}"
    other = Search(config.model_copy(update=changes), out / f"{arm.metric.name}-{search.arms.index(arm)}-{answer.ratio:g}-{question.level}{suffix}")
    with other.lock():
        executor.plan(other, on_event)
        runner = Runner(other, executor, question.level, on_event=lambda line: on_event(f"check: {line}"))
        cells = range(min(other.num_cells, question.needed(0, answer.read + answer.unresolved)))
        runner.run([other.lane(other.arms[0], answer.ratio, cell) for cell in cells])
        worst = worst_at(other.records(), question.level)
        other.folder.compact()
    informative = worst[(worst["ratio"] == answer.ratio) & (worst["outcome"] != "attack failed")]
    read, unresolved = int((informative["outcome"] == "read").sum()), int((informative["outcome"] == "unresolved").sum())
    bound = upper_bound(read + unresolved, len(informative), 1 - question.error)
    verdict = "held" if bound <= question.rate else "did not hold" if read > question.rate * len(informative) else "undecided"
    return Checked(arm.label, answer.ratio, read, len(informative), unresolved, bound, verdict, config.suite)
