"""The protocol of what runs the lanes of a block: compiled on devices, or one after the other on the host.

`held` is what a block works on, and `state` is what the next call needs; `notes` are the attacks' reports, which are text and so not part of the arrays that
Orbax keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from selgrad.base import Attack, Cache, Params, no_cache
from selgrad.experiment.types import Lanes, Tables
from selgrad.modality import Outcome

Weights = tuple[Params, ...]
"""Each round's global weights, leading axis (seeds,)."""
Reports = dict[tuple[int, int], str]
"""Reports of attacks as JSON, by (row, lane)."""
OnEvent = Callable[[str], None]


@runtime_checkable
class Engine(Protocol):
    """One attack on one setting, for a number of seeds and lanes.

    Attributes:
      attack: the attack that runs.
      num_steps: number of steps of a whole run.
      num_seeds, num_lanes: sizes of the two axes.
      compile_seconds: time spent on compilation.
      memory_bytes: memory of the largest phase, all devices together.
      shared_bytes: the part of it that all lanes share: tables, and what an attacker brings. The rest grows with the lanes.
    """

    attack: Attack
    num_steps: int
    num_seeds: int
    num_lanes: int
    compile_seconds: float
    memory_bytes: int
    shared_bytes: int

    def compile(self, tables: Tables, lanes: Lanes) -> None:
        """Does everything that takes time once and not for each block; shapes are enough."""
        ...

    def observe(self, tables: Tables, lanes: Lanes, cache: Cache | None = no_cache, on_event: OnEvent = lambda _: None) -> tuple[Any, Reports]:
        """Returns what the attackers of a block hold, with what an attack learns or fills in on the host, and the attack's report on that by lane."""
        ...

    def start(self, held: Any) -> Any:
        """Returns the state of every lane before its first step."""
        ...

    def advance(self, held: Any, state: Any, num_steps: int) -> Any:
        """Returns the state after `num_steps` more steps; finished lanes stay as they are. The state that is passed in must not be used again."""
        ...

    def finish(self, held: Any, state: Any) -> tuple[Outcome, Reports]:
        """Returns measures and reconstructions, and the attacks' reports."""
        ...

    def arrays(self, state: Any) -> tuple[Any, Sequence[str]]:
        """Returns a state as arrays and notes, to be kept in a checkpoint."""
        ...

    def restore(self, state: Any, arrays: Any, notes: Sequence[str]) -> Any:
        """Returns the state that `arrays` returned, on the devices where a fresh `state` lies."""
        ...
