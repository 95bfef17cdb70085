"""The protocol of an executor, and the queue of blocks that wait for one.

Executors differ in how workers come and go; which block is next, and what happens to one that was lost or did not fit, is the same for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import pandas as pd

from selgrad import files
from selgrad.errors import SelgradError
from selgrad.sweep.costs import Costs
from selgrad.sweep.plan import BlockPlan, Plan
from selgrad.sweep.run import OnEvent, OnProgress, Sweep
from selgrad.sweep.work import Ended

OnBlock = Callable[[str, pd.DataFrame], None]
"""Called with an attack's short name and the records of a block that has ended."""


@runtime_checkable
class Executor(Protocol):
    """Runs the blocks of a sweep."""

    def plan(self, sweep: Sweep, on_event: OnEvent) -> Plan:
        """Plans on the machine where the blocks will run, since their size follows from the memory there."""
        ...

    def run(self, sweep: Sweep, plan: Plan, costs: Costs | None, on_block: OnBlock, on_progress: OnProgress) -> None:
        """Runs every block that has no record file, and compares masks at the end.

        Raises:
          SelgradError: if a block fails for good; what is finished is kept.
        """
        ...

    def close(self) -> None:
        """Releases the resources that the executor holds."""
        ...


class Queue:
    """The waiting blocks of a sweep, for executors whose workers come and go.

    Args:
      sweep: the sweep, already planned.
      blocks: the blocks of its plan.
      retries: how often a block may be lost with its worker before the sweep gives up.
      on_block, on_progress: called for each block that is done.
    """

    def __init__(self, sweep: Sweep, blocks: Iterable[BlockPlan], retries: int, on_block: OnBlock, on_progress: OnProgress) -> None:
        self._sweep, self._retries, self._on_block, self._on_progress = sweep, retries, on_block, on_progress
        self._waiting: list[BlockPlan] = []
        self._lost: Counter[str] = Counter()
        for block in blocks:
            if sweep.is_done(block):
                on_progress(float(block.num_cells), "already done")
            else:
                self._waiting.append(block)

    def __len__(self) -> int:
        """The number of waiting blocks."""
        return len(self._waiting)

    def take(self, program: Hashable = None, busy: Sequence[Hashable] = ()) -> BlockPlan | None:
        """Takes the next block: one of the program that the worker has compiled, else one of a program that no worker is busy with, else the first.

        Args:
          program: the program that the worker ran last; None where it has run nothing.
          busy: programs of the other workers.
        """
        if not self._waiting:
            return None
        programs = [self._sweep.program(block) for block in self._waiting]
        index = next((i for i, waiting_program in enumerate(programs) if waiting_program == program), None)
        if index is None:
            index = next((i for i, waiting_program in enumerate(programs) if waiting_program not in busy), 0)
        return self._waiting.pop(index)

    def all(self) -> list[BlockPlan]:
        """Takes every block."""
        taken, self._waiting = self._waiting, []
        return taken

    def ended(self, block: BlockPlan, how: Ended) -> None:
        """Handles the end of a block as its worker reported it.

        Raises:
          SelgradError: if the block failed for good.
        """
        if how.how == "failed":
            raise SelgradError(how.message)
        if how.how == "too large":
            self._waiting = self._sweep.halve(block, self._waiting)
            self._sweep.folder.publish()
            self._on_progress(0.0, f"out of memory at {block.lanes_per_block} lanes; going on with half as many")
            return
        self._sweep.folder.fetch(f"records/{block.identity}.parquet")
        records = files.read_frame(self._sweep.record_file(block))
        self._on_progress(float(block.num_cells), f"{block.attack.label} on {self._sweep.settings[block.setting].specs[1].label}")
        self._on_block(block.attack.short, records)

    def lost(self, block: BlockPlan, reason: str) -> None:
        """Puts a block back whose worker ended before the block did.

        Raises:
          SelgradError: if that has happened to the block too often.
        """
        if self._sweep.is_done(block):
            self.ended(block, Ended("done"))
            return
        self._lost[block.identity] += 1
        if self._lost[block.identity] > self._retries:
            raise SelgradError(f"block {block.identity} ({block.attack.label}) was lost {self._retries + 1} times, at last because {reason}")
        self._waiting.insert(0, block)
        self._on_progress(0.0, f"a worker ended before its block: {reason}; the block waits again")
