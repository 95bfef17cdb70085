"""The definition of a measure: a name, a unit, a direction, and how to show it; reports, trackers and verdicts use these and hard-code no measure's name.

A measure is one entry of `selgrad.evaluation.MEASURES`, next to the function that computes it, so adding one touches one file. This module is cheap to import:
JAX is imported with the measures themselves, when they are first needed.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from selgrad.errors import UsageError, did_you_mean

Reads: TypeAlias = Literal["images", "sentences", "tokens", "labels", "others", "verdicts"]


LEVELS = ("nothing", "attribute", "recognisable", "exact")
"""How much of an input an attack recovered, in increasing order: its class or half of its words; enough to tell it from a thousand others; all of it."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One scalar that says how well an attack did.

    Attributes:
      name: its column in the records.
      title: as an axis or a table shows it, with its unit.
      about: one sentence for listings.
      of: the function that computes it; None if the engine does. Its arguments follow from `reads`.
      reads: "images": (spec, batch, aligned reconstruction) -> scalar, traced inside a compiled block; "labels": the same; "sentences": (truth, found) -> float
        of two decoded sentences, on the host; "tokens": (truth, found, content) -> float of (B, T) token ids and which of them are neither padding
        nor special; "others": the engine compares with other inputs of the data set, and there is no function.
      unit: such as "dB"; "" for a number without one.
      lower_is_better: whether a lower value is better for the attacker, as for an error.
      threshold: what an attack must pass to succeed if the user names none; None for measures that decide success only on request.
      headline: whether tables with room for a single measure of such data show this one.
      curve: whether reports plot it against the ratio.
      summary: whether trackers log its mean.
      limits: between which its values lie.
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
    limits: tuple[float, float] = (0.0, 1.0)

    @property
    def is_share(self) -> bool:
        """Whether its mean is a proportion of yes/no outcomes, with the confidence interval of a proportion."""
        return self.reads == "verdicts"

    def can_decide(self, threshold: float) -> bool:
        """Whether some values pass a threshold and others do not."""
        low, high = self.limits
        return low < threshold <= high if self.lower_is_better else low <= threshold < high

    def passed(self, value: float, threshold: float) -> bool:
        """Whether an attack with this value has succeeded."""
        return value < threshold if self.lower_is_better else value > threshold

    def rule(self, threshold: float) -> str:
        """The success rule in words, such as `mse < 0.001`."""
        return f"{self.name} {'<' if self.lower_is_better else '>'} {threshold:g}"

    def quality(self, value: float) -> str:
        """A value as it appears in a sentence, such as `21.3 dB PSNR`."""
        return " ".join(part for part in (f"{value:.3g}", self.unit, self.title.split(" (")[0]) if part)


def every() -> dict[str, Measure]:
    """All measures by name, in the order in which tables show them."""
    table: dict[str, Measure] = importlib.import_module("selgrad.evaluation").MEASURES
    return table


def named(name: str) -> Measure:
    """The measure with this name.

    Raises:
      UsageError: if there is no measure with this name.
    """
    known = every()
    if name not in known:
        raise UsageError(f"unknown measure {name!r}; {did_you_mean(name, known)}")
    return known[name]


def held(columns: Iterable[str], choose: Callable[[Measure], bool]) -> list[Measure]:
    """The chosen measures that have a column, in the order of tables."""
    available = set(columns)
    return [measure for measure in every().values() if measure.name in available and choose(measure)]
