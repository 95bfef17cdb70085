"""The tasks that any process can do for a sweep, given only its folder: plan it, run one of its blocks, compare its masks.

Executors hand these functions to other machines. Each reads the folder and writes files that appear whole; none takes a lock, and doing a task twice gives the
same result.
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
    """Where a process works for a sweep: the environment of the process that sent it.

    Attributes:
      out: the folder or URL of the sweep.
      folder: the working directory, to which paths in the configuration are relative.
      path: where modules are found.
      memory_share: share of the machine's memory that this process may take, since several may work on one machine.
    """

    out: str
    folder: str
    path: tuple[str, ...]
    memory_share: float = 1.0

    @classmethod
    def here(cls, out: str, memory_share: float = 1.0) -> Place:
        """Returns the place of this process."""
        return cls(out, os.getcwd(), tuple(sys.path), memory_share)

    def enter(self) -> None:
        """Moves this process to the place."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        os.environ["SELGRAD_MEMORY_SHARE"] = repr(self.memory_share)
        # Set before anything computes: where compiled programs are kept, and how many devices there are.
        from selgrad import devices

        devices.configure()


class Ended(NamedTuple):
    """How a block ended, with a message where it failed for good."""

    how: Literal["done", "too large", "failed"]
    message: str = ""


@functools.lru_cache(maxsize=1)
def _sweep(out: str) -> Sweep:
    """Returns the sweep of a folder, cached so that the next block uses its compiled programs and masks again."""
    return Sweep.of_folder(out)


@functools.lru_cache(maxsize=1)
def _costs(out: str) -> Costs | None:
    """Returns the costs that `plan`, or the process that began the sweep, measured."""
    return _sweep(out).costs()


def plan(out: str) -> Plan:
    """Plans a sweep whose configuration lies in its folder, proves its encryption, and keeps what blocks start from."""
    sweep = _sweep(out)
    planned = sweep.plan()
    sweep.costs()
    sweep.keep_inputs()
    sweep.folder.publish()
    return planned


def attempt(what: Literal["plan", "compare"], out: str) -> Plan | Ended | None:
    """Runs `plan` or `compare`; returns an error as a message, since another process reads it."""
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
      block: the block's identity.
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
