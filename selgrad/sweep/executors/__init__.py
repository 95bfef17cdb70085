"""Executors, which run the blocks of a sweep: this process, the actors of a Ray cluster, or the jobs of a SLURM cluster; one file each.

Scheduling is left to Ray and submitit; a sweep only says which blocks wait, and a block's records do not depend on who ran it.
"""

from collections.abc import Callable
from typing import Any

from selgrad.callables import constant, is_factory, unusable
from selgrad.sweep.executors.local import local
from selgrad.sweep.executors.protocol import Executor
from selgrad.sweep.executors.ray_actors import ray_actors
from selgrad.sweep.executors.submitit_jobs import submitit_jobs

__all__ = ["ENGINES", "Executor", "adapt"]

ENGINES = {"local": local, "ray": ray_actors, "submitit": submitit_jobs}


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of executors: a factory as it is, or one that returns a user's own executor.

    Raises:
      UsageError: if the item is neither.
    """
    if isinstance(item, Executor) and not isinstance(item, type):
        return constant(item)
    if is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("engine", item, "an object that honours selgrad.sweep.executors.Executor, or a function of keyword arguments that returns one")
