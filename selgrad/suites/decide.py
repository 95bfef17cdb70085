"""Which cell to run next: a search for the smallest share of encrypted entries at which attacks succeed on few inputs, with a confidence.

The functions are pure: they map what is known of each ratio to the cells that are wanted, or to the answer, so that the same records always lead to the same
search. The success rate is assumed to fall as more is encrypted. There are three steps:

1. bisection over the ratios, by the first inputs alone: a ratio at which more of them are read than is tolerated is too small;
2. the smallest remaining ratio is tested on other inputs, until the success rate is shown to lie below the tolerated one (`evidence_below`), or until that
   looks unlikely, and then the bisection continues above it; each such test spends six tenths of the remaining error. Inputs on which attacks ended too
   early are counted as read before the verdict is "protected": a few of them cost more inputs, many leave the question unresolved;
3. the largest ratio that does not protect is shown not to.

A guess is right now and then, and an input is told from a thousand others by chance once in a thousand times, so no single success decides anything.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

from selgrad.errors import UsageError
from selgrad.measures import LEVELS
from selgrad.report.statistics import anytime_bound, cells_needed, evidence_above, evidence_below

RATIOS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""The ratios among which the search looks; at 1 nothing is visible, and nothing is run."""

Tried = Mapping[int, Mapping[int, str]]
"""Index of a ratio -> index of a cell -> its outcome (`selgrad.report.verdicts.OUTCOMES`)."""


@dataclasses.dataclass(frozen=True)
class Question:
    """The question that a search answers for each metric.

    Attributes:
      level: the level that no attack may reach.
      rate: share of inputs on which it may still be reached, including those that guessing reaches.
      chance: share of inputs on which guessing reaches it.
      confidence: of the interval; each end has half of the error.
      pilot: number of inputs that guide the bisection; as many more where these are inconclusive.
      chunk: number of cells requested at once; a test requests as many again as it has.
      ratios: the ratios among which the search looks, ascending; the last one is 1.

    Raises:
      UsageError: if a value is invalid; the message names the value and the remedy.
    """

    level: str = "recognisable"
    rate: float = 0.05
    chance: float = 0.0
    confidence: float = 0.95
    pilot: int = 9
    chunk: int = 6
    ratios: tuple[float, ...] = RATIOS

    def __post_init__(self) -> None:
        if self.level not in LEVELS[1:]:
            raise UsageError(f"level={self.level!r}; known: {', '.join(LEVELS[1:])}")
        for name in ("rate", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name):g} must lie between 0 and 1")
        if not 0 <= self.chance < self.rate:
            raise UsageError(f"rate={self.rate:g}: guessing alone reaches level {self.level!r} on {self.chance:.3g} of the inputs; tolerate more than that")
        for name in ("pilot", "chunk"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if list(self.ratios) != sorted(set(self.ratios)) or self.ratios[0] <= 0 or self.ratios[-1] != 1:
            raise UsageError(f"ratios={list(self.ratios)} must ascend from above 0 to 1")

    @property
    def error(self) -> float:
        """The error of one end of the interval."""
        return (1 - self.confidence) / 2

    @property
    def expected(self) -> float:
        """The success rate that a test expects to see at a ratio that protects."""
        return max(self.chance, self.rate / 10)

    def error_of(self, failures: int) -> float:
        """Returns the error of a test that follows `failures` failed ones."""
        return self.error * 0.6 * 0.4**failures

    def needed(self, failures: int, successes: int = 0) -> int:
        """Returns how many cells a test needs, `successes` of them read, after `failures` failed tests."""
        return cells_needed(self.rate, self.expected, self.error_of(failures), successes)

    def most(self, failures: int) -> int:
        """Returns the number of cells beyond which a test is given up: what it would need with one success more than guessing has."""
        count = self.needed(failures)
        while count < (longer := self.needed(failures, math.ceil(self.chance * count) + 1)):
            count = longer
        return count


class Wanted(NamedTuple):
    """Cells that would advance the search: the index of their ratio and the indices of the cells."""

    ratio: int
    cells: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The ratio that protects.

    Attributes:
      verdict: "protected", even if every unresolved input were read; "unresolved", where few inputs were read and attacks ended too early on more than that
        allows; "too few inputs", where the data ran out first; "encrypt everything", where only that helps; "attacks fail", where encrypting nothing is safe
        too, by these attacks.
      ratio: the ratio from which on the success rate lies below the tolerated one; NaN where attacks fail.
      low: the largest ratio that was shown not to protect, 0 where none was.
      read, num_cells, unresolved: at `ratio`, of the cells that were not used to find it.
      bound: on the success rate at `ratio`, with the confidence of one end, wherever the search stopped, with the unresolved counted as read.
    """

    verdict: str
    ratio: float
    low: float
    read: int = 0
    num_cells: int = 0
    unresolved: int = 0
    bound: float = 0.0


def _informative(outcomes: Mapping[int, str]) -> list[str]:
    """Returns the outcomes that say something about the mask; where the attack fails with nothing encrypted, a cell says nothing."""
    return [outcome for outcome in outcomes.values() if outcome != "attack failed"]


_DOUBT, _HALF = 0.1, 0.3
"""A ratio is given up where as many successes or more are less probable than this at the tolerated rate: at once, and after all pilots have been tried."""


def step(question: Question, tried: Tried, num_cells: int) -> Wanted | Answer:
    """Returns the cells to run next, or the answer.

    Args:
      question: what is asked.
      tried: the outcomes so far.
      num_cells: number of available cells; twice `pilot` of them, or half of all, guide the bisection, and the others are for tests.
    """
    rate = question.rate
    pilots = range(min(2 * question.pilot, (num_cells + 1) // 2))
    first, others = pilots[: question.pilot], range(len(pilots), num_cells)
    known = lambda index: tried.get(index, {})

    def of(index: int, cells: range) -> tuple[int, int, int]:
        """Returns how many of the cells were read, how many say something, and how many of these are unresolved."""
        informative = _informative({cell: outcome for cell, outcome in known(index).items() if cell in cells})
        return informative.count("read"), len(informative), informative.count("unresolved")

    def more(index: int, among: range, count: int) -> Wanted | None:
        left = [cell for cell in among if cell not in known(index)][: max(1, count)]
        return Wanted(index, tuple(left)) if left else None

    def failures(index: int) -> int:
        """Counts the tests below a ratio, each of which has failed once a larger one is tested."""
        return sum(of(below, others)[1] > 0 for below in range(index))

    def too_often(index: int) -> bool:
        return any(_surprise(*of(index, cells)[:2], rate) < _DOUBT for cells in (range(num_cells), others))

    def given_up(index: int) -> bool:
        read, trials, _ = of(index, others)
        # A test that has passed is not given up because of the last cell that it needed.
        passed = trials > 0 and evidence_below(read, trials, rate, question.expected) >= 1 / question.error_of(failures(index))
        # Without more inputs a larger ratio may still be shown to protect, if these are enough for another test.
        ended = all(cell in known(index) for cell in others) and question.needed(failures(index) + 1) <= trials
        return not passed and (too_often(index) or ended or trials >= question.most(failures(index)))

    low, high, last = -1, len(question.ratios) - 1, len(question.ratios) - 1
    while high - low > 1:
        middle = (low + high) // 2
        read, trials, _ = of(middle, range(num_cells))
        if given_up(middle):
            low = middle
        elif (wanted := more(middle, first, -(-question.chunk // 2))) is not None:
            return wanted
        elif not trials:
            # Attacks may work on few inputs.
            if len(known(middle)) < math.log(question.error) / math.log1p(-rate) and (wanted := more(middle, range(num_cells), question.chunk)) is not None:
                return wanted
            return Answer("attacks fail", math.nan, 0.0)
        elif read > rate * trials and (wanted := more(middle, pilots, question.chunk)) is not None:
            return wanted
        elif _surprise(read, trials, rate) < _HALF:
            low = middle
        else:
            high = middle
        if high - low == 1 and (above := [index for index in range(high + 1, last) if known(index) and too_often(index)]):
            # More is read above than here, against the assumption, so this is no answer.
            low, high = max(above), last
    failed = failures(high)
    read, trials, unresolved = of(high, others)
    everything = high == len(question.ratios) - 1
    error = question.error_of(failed)
    below = lambda successes: everything or evidence_below(successes, trials, rate, question.expected) >= 1 / error
    # Unresolved cells are counted as read where there are enough inputs to afford it.
    at_worst = read + unresolved
    is_shown, is_safe = below(read), below(at_worst)
    counted = at_worst if is_shown and question.needed(failed, at_worst) <= len(others) else read
    if not below(counted) and (wanted := more(high, others, min(max(question.chunk, trials), question.needed(failed, counted) - trials))) is not None:
        return wanted
    shown = [index for index in range(high) if _shown(question, *of(index, range(num_cells))[:2])]
    if low >= 0 and low not in shown and (wanted := more(low, pilots, question.chunk)) is not None:
        return wanted
    verdict = "encrypt everything" if everything else "too few inputs" if not is_shown else "protected" if is_safe else "unresolved"
    bound = 0.0 if everything else anytime_bound(at_worst, trials, rate, question.expected, error)
    return Answer(verdict, question.ratios[high], question.ratios[max(shown)] if shown else 0.0, read, trials, unresolved, bound)


@functools.lru_cache(maxsize=4096)
def _surprise(successes: int, trials: int, rate: float) -> float:
    """Returns the probability of at least `successes` successes at a rate."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, trials, rate))


def _shown(question: Question, read: int, trials: int) -> bool:
    """Returns whether a ratio is shown not to protect; since it may be any of the ratios, each has its share of the error."""
    return evidence_above(read, trials, question.rate) >= len(question.ratios) / question.error
