"""Runs one block from its first step to its last, with checkpoints in between, so that a kill loses about a minute of work.

The module knows an engine's protocol and nothing about sweeps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from selgrad import checkpoints
from selgrad.errors import OutOfMemoryError
from selgrad.experiment.engine import Engine, Reports
from selgrad.modality import Outcome

CHECKPOINT_SECONDS = 60.0
"""A block that has run this long since its last checkpoint saves its attack state."""


class Prepared(NamedTuple):
    """A block before its first step: its program, what its attackers hold, and their reports on how they obtained it."""

    engine: Engine
    held: Any
    reports: Reports


class Attacked(NamedTuple):
    """The outcome of a block's attacks on the host, their reports, and their run time in `seconds`, without compilation and preparation."""

    outcome: Outcome
    reports: Reports
    seconds: float


def run_attacks(prepared: Prepared, series: checkpoints.Series, on_steps: Callable[[int], None], on_saved: Callable[[], None]) -> Attacked:
    """Runs the attacks of a prepared block; the arguments are those of `drive`."""
    engine, held, reports = prepared
    begun = time.perf_counter()
    outcome, attack_reports = engine.finish(held, drive(engine, held, series, on_steps, on_saved))
    outcome = jax.device_get(outcome)
    return Attacked(outcome, {**reports, **attack_reports}, time.perf_counter() - begun)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns the error that JAX raises when a device runs out of memory into an OutOfMemoryError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(str(error)) from None


def drive(engine: Engine, held: Any, series: checkpoints.Series, on_steps: Callable[[int], None], on_saved: Callable[[], None] = lambda: None) -> Any:
    """Runs all steps, from the start or from the newest checkpoint, and returns the state after the last one.

    Args:
      engine: the compiled engine.
      held: what its `observe` returned.
      series: checkpoints of the block.
      on_steps: called with the number of steps done since the last call.
      on_saved: called after each checkpoint.
    """
    state, total, done = engine.start(held), engine.num_steps, 0
    stored = series.newest(like=engine.arrays(state)[0])
    if stored is not None:
        done, state = stored.done, engine.restore(state, stored.arrays, stored.notes)
    saved = time.perf_counter()
    chunk = 1
    while done < total:
        before = time.perf_counter()
        chunk = min(chunk, total - done)
        state = jax.block_until_ready(engine.advance(held, state, chunk))
        now = time.perf_counter()
        done += chunk
        on_steps(chunk)
        # About a second between two looks at the clock: often enough for the progress bar, Ctrl-C and checkpoints, and rare enough to cost nothing.
        chunk = max(1, int(chunk * min(2.0, 1.0 / max(now - before, 1e-3))))
        if now - saved > CHECKPOINT_SECONDS and done < total:
            series.save(done, *engine.arrays(state))
            on_saved()
            saved = now
    return state
