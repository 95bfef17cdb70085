"""What runs the lanes of a block: compiled on devices, or one after the other on the host. Both honour one protocol.

What is held is what a block works on, and a state is whatever the next call needs; `notes` are what attacks say of themselves, which is text and so no
part of the arrays that Orbax keeps.
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
"""What attacks say of themselves as JSON, by (row, lane)."""
OnEvent = Callable[[str], None]


@runtime_checkable
class Engine(Protocol):
    """One attack on one setting, for a number of seeds and lanes.

    Attributes:
      attack: what runs.
      num_steps: of a whole run.
      num_seeds, num_lanes: sizes of the two axes.
      compile_seconds: spent.
      memory_bytes: of the largest phase, all devices together.
      shared_bytes: of these what all lanes share: tables, and what an attacker brings. The rest grows with the lanes.
    """

    attack: Attack
    num_steps: int
    num_seeds: int
    num_lanes: int
    compile_seconds: float
    memory_bytes: int
    shared_bytes: int

    def compile(self, tables: Tables, lanes: Lanes) -> None:
        """Everything that takes time once and not for each block; shapes will do."""
        ...

    def observe(self, tables: Tables, lanes: Lanes, cache: Cache | None = no_cache, on_event: OnEvent = lambda _: None) -> tuple[Any, Reports]:
        """What the attackers of a block hold, made once, with what an attack learns or fills in on the host; and what it says of that, by lane."""
        ...

    def start(self, held: Any) -> Any:
        """The state of every lane before its first step."""
        ...

    def advance(self, held: Any, state: Any, num_steps: int) -> Any:
        """The state after so many more steps; lanes that are done stay as they are. The state that is given is used up."""
        ...

    def finish(self, held: Any, state: Any) -> tuple[Outcome, Reports]:
        """Measures and reconstructions, and what attacks say of themselves."""
        ...

    def arrays(self, state: Any) -> tuple[Any, Sequence[str]]:
        """A state as arrays and notes, to be kept in a checkpoint."""
        ...

    def restore(self, state: Any, arrays: Any, notes: Sequence[str]) -> Any:
        """The state that `arrays` gave, on the devices where a fresh `state` lies."""
        ...
