"""What any process can do for a sweep, given its folder alone: plan it, run one of its blocks, compare its masks.

These are what executors hand to other machines. Each reads the folder and writes files that appear whole; none takes a lock, and what is done twice is the
same.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from selgrad.errors import OutOfMemoryError, SelgradError
from selgrad.sweep.costs import Costs
from selgrad.sweep.plan import Plan
from selgrad.sweep.run import Sweep


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process works for a sweep, as whoever sent it stood.

    Attributes:
      out: the folder or URL of the sweep.
      folder: where paths in the configuration begin.
      path: where modules are found.
      memory_share: of the machine, that this process may take: several work on one.
    """

    out: str
    folder: str
    path: tuple[str, ...]
    memory_share: float = 1.0

    @classmethod
    def here(cls, out: str, memory_share: float = 1.0) -> Place:
        """As this process stands."""
        return cls(out, os.getcwd(), tuple(sys.path), memory_share)

    def enter(self) -> None:
        """Makes this process stand there."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        os.environ["SELGRAD_MEMORY_SHARE"] = repr(self.memory_share)
        # Before anything computes: where compiled programs are kept, and how many devices there are.
        from selgrad import devices

        devices.configure()


class Ended(NamedTuple):
    """How a block ended: a message where it failed for good."""

    how: Literal["done", "too large", "failed"]
    message: str = ""


@functools.lru_cache(maxsize=1)
def _sweep(out: str) -> Sweep:
    """The sweep of a folder, kept: compiled programs and masks are used again by the next block."""
    return Sweep.of_folder(out)


@functools.lru_cache(maxsize=1)
def _costs(out: str) -> Costs | None:
    """What `plan` measured, or whoever began the sweep."""
    return _sweep(out).costs()


def plan(out: str) -> Plan:
    """Plans a sweep whose configuration lies in its folder, proves its encryption, and keeps what blocks start from."""
    sweep = _sweep(out)
    made = sweep.plan()
    sweep.costs()
    sweep.keep_inputs()
    sweep.folder.publish()
    return made


def attempt(what: Literal["plan", "compare"], out: str) -> Plan | Ended | None:
    """`plan` or `compare`, or what there is to say where it failed: errors of one process are read in another."""
    try:
        if what == "plan":
            return plan(out)
        compare(out)
    except SelgradError as error:
        return Ended("failed", str(error))
    return None


def run_block(out: str, block: str) -> Ended:
    """Runs one block of a planned sweep, unless its records are there.

    Args:
      out: the sweep's folder or URL.
      block: its identity.
    """
    try:
        sweep = _sweep(out)
        part = sweep.block(block)
        if not sweep.is_done(part):
            sweep.folder.fetch(f"checkpoints/{block}")
            sweep.run_block(part, _costs(out))
    except OutOfMemoryError as error:
        return Ended("too large", str(error))
    except SelgradError as error:
        return Ended("failed", str(error))
    return Ended("done")


def compare(out: str) -> None:
    """Compares the masks of every two metrics of a planned sweep."""
    sweep = _sweep(out)
    sweep.equivalence()
    sweep.folder.publish()
