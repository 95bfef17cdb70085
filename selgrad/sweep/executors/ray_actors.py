"""Runs blocks on a Ray cluster: actors hold compiled programs, and each runs one block at a time.

Ray Core places and restarts actors; see https://docs.ray.io/en/latest/ray-core/actors.html.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Hashable
from typing import Any

from selgrad.errors import SelgradError, UsageError, first_line
from selgrad.sweep import work
from selgrad.sweep.costs import Costs
from selgrad.sweep.executors.protocol import Executor, OnBlock, Queue
from selgrad.sweep.plan import BlockPlan, Plan
from selgrad.sweep.run import OnEvent, OnProgress, Sweep
from selgrad.sweep.work import Ended, Place
from selgrad.terminal import signals_kept

PATIENCE = 5.0
"""Seconds without news after which the driver asks whether its own node is alive."""


class NodeLostError(SelgradError):
    """The node through which the driver had joined the cluster ended."""


class Worker:
    """The class that runs as an actor."""

    def __init__(self, place: Place) -> None:
        place.enter()
        self._out = place.out

    def ready(self) -> int:
        """Returns the process id, once the actor has started."""
        return os.getpid()

    def attempt(self, what: Any) -> Plan | Ended | None:
        """Plans the sweep, or compares its masks."""
        return work.attempt(what, self._out)

    def run_block(self, block: str) -> Ended:
        """Runs one block."""
        return work.run_block(self._out, block)


class RayActors:
    """Runs blocks on actors.

    Args:
      address: address of the cluster; None starts one on this machine.
      workers: the largest number of actors; None means one per GPU, or one per machine where there are none.
      cpus, gpus: number of cores and GPUs that each actor reserves.
      retries: how often a block may be lost with its worker.
    """

    def __init__(self, address: str | None, workers: int | None, cpus: float, gpus: float, retries: int) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise UsageError("--engine ray needs Ray; install selgrad with the extra `ray`: uv sync --extra ray") from None
        # No usage statistics are sent.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._mine, self._address = not self._ray.is_initialized(), address
        if self._mine:
            self._connect()
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        on_gpus = sum(int(node.get("GPU", 0) // gpus) for node in alive) if gpus else 0
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self._workers, self._retries = workers or on_gpus or len(alive), retries
        # Actors on one machine share its memory; an actor on a GPU has that GPU's memory to itself.
        self._share = 1.0 if gpus else 1 / math.ceil(self._workers / max(1, len(alive)))
        # An actor that has planned holds compiled programs, and one that has run blocks holds masks, so it is kept for the next task.
        self._spare: Any = None

    def _connect(self) -> None:
        _require_answer(self._address)
        mine = {"include_dashboard": False} if self._address is None else {}
        try:
            with warnings.catch_warnings():
                # Workers without a GPU should see none, and Ray warns that this may change.
                warnings.simplefilter("ignore", FutureWarning)
                with signals_kept():
                    self._ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR, **mine)
        except (ConnectionError, ValueError) as error:
            raise SelgradError(f"no Ray cluster answers at {self._address!r}: {first_line(error)}") from None

    def _node(self) -> str:
        return str(self._ray.get_runtime_context().get_node_id())

    def _require_node(self) -> None:
        """Raises NodeLostError once the node through which this process had joined the cluster is dead.

        Ray ends the job of such a process without telling it: all of its requests then wait forever.
        """
        here = self._node()
        if not any(node["NodeID"] == here and node["Alive"] for node in self._ray.nodes()):
            raise NodeLostError(f"node {here[:8]}, through which this process was in the Ray cluster, ended")

    def _reconnect(self, error: NodeLostError, losses: int) -> None:
        if not self._mine or self._address is None or losses > self._retries:
            raise SelgradError(f"{error}; the same command goes on where this one ended") from None
        self._ray.shutdown()
        self._spare = None
        self._connect()

    def _start(self, sweep: Sweep) -> Any:
        if self._spare is not None:
            actor, self._spare = self._spare, None
            return actor
        return self._ray.remote(Worker).options(**self._options).remote(Place.here(sweep.place, self._share))

    def _alone(self, sweep: Sweep, what: str) -> Any:
        """Runs a task on one actor, and on another if that one is lost."""
        for attempt in range(1, self._retries + 2):
            actor = self._start(sweep)
            try:
                ref = actor.attempt.remote(what)
                while not self._ray.wait([ref], timeout=PATIENCE)[0]:
                    self._require_node()
                result = self._ray.get(ref)
                self._spare = actor
                if isinstance(result, Ended):
                    raise SelgradError(result.message)
                return result
            except NodeLostError as error:
                self._reconnect(error, attempt)
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:
                if attempt > self._retries:
                    raise SelgradError(f"the worker was lost {attempt} times, at last because {_reason(error)}") from None
        raise AssertionError

    def plan(self, sweep: Sweep, on_event: OnEvent) -> Plan:
        """Plans on an actor, where the blocks will run."""
        sweep.publish_config()
        on_event(f"on a Ray cluster with {self._workers} workers, through node {self._node()[:8]}")
        planned = self._alone(sweep, "plan")
        sweep.folder.reload()
        assert isinstance(planned, Plan)
        return planned

    def run(self, sweep: Sweep, plan: Plan, costs: Costs | None, on_block: OnBlock, on_progress: OnProgress) -> None:
        """Runs every block that has no record file; an actor has one block at a time, so losing it loses only that block."""
        queue = Queue(sweep, plan.blocks, self._retries, on_block, on_progress)
        losses = 0
        while len(queue):
            try:
                self._run(sweep, queue)
            except NodeLostError as error:
                losses += 1
                self._reconnect(error, losses)
                on_progress(0.0, f"{error}; going on through node {self._node()[:8]}")
        if not (sweep.out / "equivalence.parquet").exists():
            self._alone(sweep, "compare")
        sweep.folder.fetch()

    def _run(self, sweep: Sweep, queue: Queue) -> None:
        """Runs the blocks of a queue; raises NodeLostError after putting every unfinished block back into the queue."""
        actors: list[Any] = []
        pending: dict[Any, tuple[Any, BlockPlan | None]] = {}
        idle: list[Any] = []
        last: dict[Any, Hashable] = {}

        def start() -> None:
            actors.append(self._start(sweep))
            # A block is given only to an actor that has started, never to one that waits for a machine.
            pending[actors[-1].ready.remote()] = (actors[-1], None)

        try:
            for _ in range(min(self._workers, len(queue))):
                start()
            while len(queue) or any(block is not None for _, block in pending.values()):
                while idle and len(queue):
                    actor = idle.pop()
                    block = queue.take(last.get(actor), [program for other, program in last.items() if other != actor])
                    assert block is not None
                    last[actor] = sweep.program(block)
                    pending[actor.run_block.remote(block.identity)] = (actor, block)
                ended = self._ray.wait(list(pending), timeout=PATIENCE)[0]
                if not ended:
                    self._require_node()
                for ref in ended:
                    actor, block = pending.pop(ref)
                    try:
                        result = self._ray.get(ref)
                    except self._ray.exceptions.RayTaskError:
                        raise
                    except self._ray.exceptions.RayError as error:
                        actors.remove(actor)
                        last.pop(actor, None)
                        if block is not None:
                            queue.lost(block, _reason(error))
                        start()
                        continue
                    if block is not None:
                        queue.ended(block, result)
                    idle.append(actor)
            self._spare = idle[-1] if idle else None
        except NodeLostError:
            for _, block in pending.values():
                if block is not None:
                    queue.lost(block, "the node of this process ended")
            raise
        finally:
            for actor in actors:
                if actor is not self._spare:
                    self._ray.kill(actor)

    def close(self) -> None:
        """Leaves the cluster, unless the calling process had joined it before."""
        if self._spare is not None:
            self._ray.kill(self._spare)
            self._spare = None
        if self._mine:
            self._ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Checks that the cluster's address answers, since Ray itself would keep trying for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise SelgradError(f"no Ray cluster answers at {address!r}: {error.strerror or error}; give the address that `ray start --head` prints") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split(". ")[0].split())[:200]


def ray_actors(*, address: str | None = None, workers: int | None = None, cpus: float = 1.0, gpus: float = 0.0, retries: int = 3) -> Executor:
    """Runs blocks on the actors of a Ray cluster.

    Args:
      address: address of a running cluster, such as `auto` or `10.0.0.1:6379`; none starts one on this machine.
      workers: largest number of actors; none means one for each GPU, or one for each machine where `gpus` is 0.
      cpus: number of cores that each actor reserves.
      gpus: number of GPUs that each actor reserves.
      retries: how often a block may be lost with its worker before the sweep ends.

    Raises:
      UsageError: if Ray is not installed.
      SelgradError: if no cluster answers.
    """
    return RayActors(address, workers, cpus, gpus, retries)
