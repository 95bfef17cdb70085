"""What a measure is: a name, a unit, a direction, and how to show it; reports, trackers and verdicts read these and know no measure by name.

A measure is one entry of `selgrad.evaluation.MEASURES` beside the function that computes it, so a new one touches one file. This module is light: JAX is
imported with the measures themselves, when they are first asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from selgrad.errors import UsageError, did_you_mean

Reads: TypeAlias = Literal["images", "sentences", "tokens", "labels", "others", "verdicts"]


LEVELS = ("nothing", "attribute", "recognisable", "exact")
"""What an attack got of an input, each more than the one before: its class, or half of its words; enough to tell it from a thousand others; all of it."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One scalar that says how well an attack did.

    Attributes:
      name: the column of the records.
      title: as an axis or a table shows it, with its unit.
      about: one sentence for a list.
      of: the function that computes it; None where the engine does. What it takes follows from `reads`.
      reads: "images": (spec, batch, aligned reconstruction) -> scalar, traced inside a compiled block; "labels": the same; "sentences": (truth, found) -> float
        of two decoded sentences, on the host; "tokens": (truth, found, content) -> float of (B, T) token ids and which of them are neither padding
        nor special; "others": the engine compares with other inputs of the data set, and there is no function.
      unit: such as "dB"; "" for a number without one.
      lower_is_better: for the attacker; an error, not a quality.
      threshold: what an attack must pass to succeed where a user names none; None for measures that nobody is judged by unasked.
      headline: whether tables that have room for one measure of such data show this one.
      curve: whether reports draw it against the ratio.
      summary: whether trackers log its mean.
    """

    name: str
    title: str
    about: str = ""
    of: Callable[..., Any] | None = None
    reads: Reads = "images"
    unit: str = ""
    lower_is_better: bool = False
    threshold: float | None = None
    headline: bool = False
    curve: bool = False
    summary: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it is a mean of yes and no, whose interval is that of a share."""
        return self.reads == "verdicts"

    def passed(self, value: float, threshold: float) -> bool:
        """Whether an attack with this value has succeeded."""
        return value < threshold if self.lower_is_better else value > threshold

    def rule(self, threshold: float) -> str:
        """The success rule in words, such as `mse < 0.001`."""
        return f"{self.name} {'<' if self.lower_is_better else '>'} {threshold:g}"

    def quality(self, value: float) -> str:
        """A value as a sentence shows it, such as `21.3 dB PSNR`."""
        return " ".join(part for part in (f"{value:.3g}", self.unit, self.title.split(" (")[0]) if part)


def every() -> dict[str, Measure]:
    """All measures by name, in the order in which tables show them."""
    table: dict[str, Measure] = importlib.import_module("selgrad.evaluation").MEASURES
    return table


def named(name: str) -> Measure:
    """One measure.

    Raises:
      UsageError: if there is none of that name.
    """
    known = every()
    if name not in known:
        raise UsageError(f"unknown measure {name!r}; {did_you_mean(name, known)}")
    return known[name]


def held(columns: Iterable[str], choose: Callable[[Measure], bool]) -> list[Measure]:
    """Those measures of which there is a column, in the order of tables."""
    available = set(columns)
    return [measure for measure in every().values() if measure.name in available and choose(measure)]
