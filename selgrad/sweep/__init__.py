"""Sweeps: plan -> blocks -> records, resumable at any moment.

A block's identity is the hash of its cells, its record file appears by an atomic rename, and a block whose file is there is never run
again. So the same command finishes a killed sweep, and its records equal those of an uninterrupted one.
"""

from selgrad.sweep.run import Sweep

__all__ = ["Sweep"]
