"""In this process, on its own devices: one block after the other, none of which is handed anywhere.

What every sweep did before there were others; a block's lanes are spread over the devices by `selgrad.experiment.block`.
"""

from __future__ import annotations

from selgrad.errors import OutOfMemoryError
from selgrad.sweep.costs import Costs
from selgrad.sweep.executors.protocol import Executor, OnBlock
from selgrad.sweep.plan import Plan
from selgrad.sweep.run import OnEvent, OnProgress, Sweep


class Local:
    """Runs blocks here."""

    def plan(self, sweep: Sweep, on_event: OnEvent) -> Plan:
        """Plans with this machine's memory."""
        return sweep.plan(on_event)

    def run(self, sweep: Sweep, plan: Plan, costs: Costs | None, on_block: OnBlock, on_progress: OnProgress) -> None:
        """Runs every block that has no record file, and compares masks at the end."""
        sweep.keep_inputs()
        waiting = list(plan.blocks)
        while waiting:
            part, *waiting = waiting
            if sweep.is_done(part):
                on_progress(float(part.num_cells), "already done")
                continue
            progressed = 0.0

            def advance(cells: float, line: str) -> None:
                nonlocal progressed
                progressed += cells
                on_progress(cells, line)

            try:
                records = sweep.run_block(part, costs, advance)
            except OutOfMemoryError:
                waiting = sweep.halve(part, waiting)
                on_progress(-progressed, f"out of memory at {part.lanes_per_block} lanes; going on with half as many")
                continue
            on_block(part.attack.short, records)
        sweep.equivalence()

    def close(self) -> None:
        """Holds nothing."""


def local() -> Executor:
    """Runs blocks in this process, on all of its devices."""
    return Local()
