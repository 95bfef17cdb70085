"""Which cell to run next: a search for the smallest share of encrypted entries at which attacks succeed on few inputs, with a confidence.

Pure: from what is known of each ratio to the cells that are wanted, or to the answer, so that the same records always lead to the same search. Success is
taken to fall as more is encrypted. Three steps:

1. bisection over the ratios, by the first inputs alone: a ratio at which more of them are read than is tolerated needs more;
2. the smallest ratio that is left is tested on other inputs, until the success rate is shown to lie below the one that is tolerated (`evidence_below`), or
   until it looks otherwise, and then the bisection goes on above it; each such test has six tenths of the error that was left. Inputs on which attacks ended
   too early are counted as read before "protected" is said: a few of them cost more inputs, many leave the question unresolved;
3. the largest ratio that does not protect is shown not to.

A guess is right now and then, and an input told from a thousand others once in a thousand times, so no single success decides anything.
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
"""Among which the search looks; with 1 nothing is visible, and nothing is run."""

Tried = Mapping[int, Mapping[int, str]]
"""Place of a ratio -> number of a cell -> its outcome (`selgrad.report.verdicts.OUTCOMES`)."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of each metric.

    Attributes:
      level: that no attack may reach.
      rate: share of inputs on which it may be reached after all, what guessing reaches included.
      chance: share of inputs on which guessing reaches it.
      confidence: of each end of the interval half the error of this.
      pilot: inputs of the bisection; as many more where these are not clear.
      chunk: cells that are asked for at once; a test asks for as many again as it has.
      ratios: among which it looks, ascending; the last one is 1.

    Raises:
      UsageError: naming the value and the remedy.
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
        """Of one end of the interval."""
        return (1 - self.confidence) / 2

    @property
    def expected(self) -> float:
        """Success rate of a ratio that protects, of which a test expects to see it."""
        return max(self.chance, self.rate / 10)

    def error_of(self, failures: int) -> float:
        """Of a test after so many that failed."""
        return self.error * 0.6 * 0.4**failures

    def needed(self, failures: int, successes: int = 0) -> int:
        """Cells with so many successes that a test needs after so many that failed."""
        return cells_needed(self.rate, self.expected, self.error_of(failures), successes)

    def most(self, failures: int) -> int:
        """Cells beyond which a test is given up: those that it would need with one success more than guessing has."""
        count = self.needed(failures)
        while count < (longer := self.needed(failures, math.ceil(self.chance * count) + 1)):
            count = longer
        return count


class Wanted(NamedTuple):
    """Cells that would bring the search on: a place in the ratios and the numbers of the cells."""

    ratio: int
    cells: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The ratio that protects.

    Attributes:
      verdict: "protected", even if all that attacks left open were read; "unresolved", where few inputs were read and attacks ended too early on more than that
        allows; "too few inputs", where the data ended first; "encrypt everything", where only that helps; "attacks fail", where nothing encrypted is safe too,
        by these attacks.
      ratio: from which on the success rate lies below the one that is tolerated; NaN where attacks fail.
      low: the largest ratio that was shown not to protect, 0 where none was.
      read, num_cells, unresolved: at `ratio`, of the cells that were not used to find it.
      bound: on the success rate at `ratio`, with the confidence of one end, wherever the search stopped; where protected, with the unresolved counted as read.
    """

    verdict: str
    ratio: float
    low: float
    read: int = 0
    num_cells: int = 0
    unresolved: int = 0
    bound: float = 0.0


def _told(outcomes: Mapping[int, str]) -> list[str]:
    """Of cells that say anything: where the attack fails with nothing encrypted they do not."""
    return [outcome for outcome in outcomes.values() if outcome != "attack failed"]


_DOUBT, _HALF = 0.1, 0.3
"""How improbable as many successes or more are, at the rate that is tolerated, where a ratio is given up at once, and where all pilots have been tried."""


def step(question: Question, tried: Tried, num_cells: int) -> Wanted | Answer:
    """The next cells, or the answer.

    Args:
      question: that is asked.
      tried: what is known.
      num_cells: that there are; twice `pilot` of them, or half of all, guide the bisection, and the others test.
    """
    rate = question.rate
    pilots = range(min(2 * question.pilot, (num_cells + 1) // 2))
    first, others = pilots[: question.pilot], range(len(pilots), num_cells)
    known = lambda place: tried.get(place, {})

    def of(place: int, cells: range) -> tuple[int, int, int]:
        """Read, of so many that say anything, and so many of these unresolved."""
        told = _told({cell: outcome for cell, outcome in known(place).items() if cell in cells})
        return told.count("read"), len(told), told.count("unresolved")

    def more(place: int, among: range, count: int) -> Wanted | None:
        left = [cell for cell in among if cell not in known(place)][: max(1, count)]
        return Wanted(place, tuple(left)) if left else None

    def failures(place: int) -> int:
        """Tests below a ratio, each of which has failed once a larger one is tested."""
        return sum(of(below, others)[1] > 0 for below in range(place))

    def given_up(place: int) -> bool:
        read, told, _ = of(place, others)
        # A test that has been passed is not given up by the last cell that it needed.
        passed = told > 0 and evidence_below(read, told, rate, question.expected) >= 1 / question.error_of(failures(place))
        unlikely = any(_surprise(*of(place, cells)[:2], rate) < _DOUBT for cells in (range(num_cells), others))
        # Without more inputs a larger ratio may still be shown to protect, if these are enough for another test.
        ended = all(cell in known(place) for cell in others) and question.needed(failures(place) + 1) <= told
        return not passed and (unlikely or ended or told >= question.most(failures(place)))

    low, high = -1, len(question.ratios) - 1
    while high - low > 1:
        middle = (low + high) // 2
        read, told, _ = of(middle, range(num_cells))
        if given_up(middle):
            low = middle
        elif (wanted := more(middle, first, -(-question.chunk // 2))) is not None:
            return wanted
        elif not told:
            # Attacks may work on few inputs.
            if len(known(middle)) < math.log(question.error) / math.log1p(-rate) and (wanted := more(middle, range(num_cells), question.chunk)) is not None:
                return wanted
            return Answer("attacks fail", math.nan, 0.0)
        elif read > rate * told and (wanted := more(middle, pilots, question.chunk)) is not None:
            return wanted
        elif _surprise(read, told, rate) < _HALF:
            low = middle
        else:
            high = middle
    failed = failures(high)
    read, told, unresolved = of(high, others)
    everything = high == len(question.ratios) - 1
    error = question.error_of(failed)
    below = lambda successes: everything or evidence_below(successes, told, rate, question.expected) >= 1 / error
    # What is open is taken for read, where there are inputs enough to bear it.
    at_worst = read + unresolved
    is_shown, is_safe = below(read), below(at_worst)
    counted = at_worst if is_shown and question.needed(failed, at_worst) <= len(others) else read
    if not below(counted) and (wanted := more(high, others, min(max(question.chunk, told), question.needed(failed, counted) - told))) is not None:
        return wanted
    shown = [place for place in range(high) if _shown(question, *of(place, range(num_cells))[:2])]
    if low >= 0 and low not in shown and (wanted := more(low, pilots, question.chunk)) is not None:
        return wanted
    verdict = "encrypt everything" if everything else "too few inputs" if not is_shown else "protected" if is_safe else "unresolved"
    bound = 0.0 if everything else anytime_bound(at_worst if is_safe else read, told, rate, question.expected, error)
    return Answer(verdict, question.ratios[high], question.ratios[max(shown)] if shown else 0.0, read, told, unresolved, bound)


@functools.lru_cache(maxsize=4096)
def _surprise(successes: int, trials: int, rate: float) -> float:
    """The probability of so many successes or more at a rate."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, trials, rate))


def _shown(question: Question, read: int, told: int) -> bool:
    """Whether a ratio is shown not to protect; any of the ratios may be the one, so each has its part of the error."""
    return evidence_above(read, told, question.rate) >= len(question.ratios) / question.error
