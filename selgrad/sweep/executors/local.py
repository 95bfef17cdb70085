"""Runs blocks in this process, on its own devices, which do not wait for the host: a block's records are made while the next block runs.

Attacks that run on the host, such as DAGER, have threads of their own. `selgrad.experiment.block` spreads a block's lanes over the devices.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import pandas as pd

from selgrad import devices
from selgrad.errors import OutOfMemoryError, UsageError
from selgrad.sweep.costs import Costs
from selgrad.sweep.drive import Prepared
from selgrad.sweep.executors.protocol import Executor, OnBlock
from selgrad.sweep.plan import BlockPlan, Plan
from selgrad.sweep.run import OnEvent, OnProgress, Sweep


class _StoppedError(Exception):
    """Ends a thread whose sweep has ended."""


class _Counted:
    """Counts the progress of one block, so that it can be taken back if the block is run again in two halves."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.cells, self._on_progress = 0.0, on_progress

    def __call__(self, cells: float, line: str) -> None:
        self.cells += cells
        self._on_progress(cells, line)


class _Run:
    """One run of a sweep: the waiting blocks, and the threads besides the one that drives it."""

    def __init__(self, sweep: Sweep, plan: Plan, costs: Costs | None, on_block: OnBlock, on_progress: OnProgress) -> None:
        self._sweep, self._costs, self._on_block, self._on_progress = sweep, costs, on_block, on_progress
        self._ended: queue.SimpleQueue[tuple[BlockPlan, pd.DataFrame | BaseException]] = queue.SimpleQueue()
        # The lock guards progress and the waiting blocks.
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._on_device: deque[BlockPlan] = deque()
        self._on_host: deque[BlockPlan] = deque()
        self._writing: tuple[BlockPlan, Future[pd.DataFrame]] | None = None
        for part in plan.blocks:
            if sweep.is_done(part):
                on_progress(float(part.num_cells), "already done")
            else:
                (self._on_device if sweep.on_device(part) else self._on_host).append(part)

    def whole(self, num_threads: int, beside: bool) -> None:
        """Runs every block.

        Args:
          num_threads: number of threads for attacks on the host.
          beside: whether these run while a device is busy, or after all blocks that need one.
        """
        num_threads = min(num_threads, len(self._on_host))
        try:
            with devices.one_blas_thread(), ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as helper, ThreadPoolExecutor(max(1, num_threads)) as hosts:
                try:
                    threads = [hosts.submit(self._work, index) for index in range(num_threads)] if beside else []
                    self._drive(writer, helper if beside else None)
                    threads = threads or [hosts.submit(self._work, index) for index in range(num_threads)]
                    self._wait(threads)
                finally:
                    self._stopped.set()
        except BaseException:
            self._report_the_rest()
            raise

    def _progress(self, cells: float, line: str) -> None:
        """Reports the progress of a thread."""
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._on_progress(cells, line)

    def _next(self, waiting: deque[BlockPlan]) -> BlockPlan | None:
        with self._lock:
            return waiting.popleft() if waiting else None

    def _halve(self, part: BlockPlan, waiting: deque[BlockPlan], counted: _Counted) -> None:
        with self._lock:
            left = self._sweep.halve(part, waiting)
            waiting.clear()
            waiting.extend(left)
            self._on_progress(-counted.cells, f"out of memory at {part.lanes_per_block} lanes; going on with half as many")

    # Blocks on the devices

    def _drive(self, writer: ThreadPoolExecutor, helper: ThreadPoolExecutor | None) -> None:
        """Runs the blocks that need a device; at most one waits for its records, and at most one is prepared ahead."""
        prepared: Prepared | None = None
        ahead: Future[Prepared] | None = None
        while (part := self._next(self._on_device)) is not None:
            if self._writing is not None and self._writing[0].setting != part.setting:
                # Results computed on a setting may be dropped when the next one is used.
                self._finish()
            counted = _Counted(self._progress)
            try:
                prepared = self._sweep.prepare_block(part, counted) if ahead is None else ahead.result()
                ahead = None if helper is None else self._ahead(part, prepared, helper)
                attacked = self._sweep.attack_block(part, prepared, counted)
            except OutOfMemoryError:
                if ahead is not None:
                    # It was prepared for another block size than the one that will run now.
                    ahead.exception()
                    ahead = None
                self._halve(part, self._on_device, counted)
                continue
            finally:
                # What attackers held lies on the devices, where the next block needs the memory.
                prepared = None
            self._finish()
            self._writing = part, writer.submit(self._sweep.record_block, part, attacked, self._costs)
            self._take()
        self._finish()

    def _ahead(self, part: BlockPlan, prepared: Prepared, helper: ThreadPoolExecutor) -> Future[Prepared] | None:
        """Begins to prepare the following block, if that is work for the host and both fit on the device."""
        following = self._on_device[0] if self._on_device else None
        if following is None or following.setting != part.setting or not self._sweep.prepares(following):
            return None
        if prepared.engine.memory_bytes > devices.memory_budget() // 2:
            return None
        return helper.submit(self._sweep.prepare_block, following, self._progress)

    def _finish(self) -> None:
        """Waits for the records that are being written."""
        if self._writing is not None:
            (part, records), self._writing = self._writing, None
            self._on_block(part.attack.short, records.result())

    # Blocks on the host

    def _work(self, index: int) -> None:
        """Runs blocks on the host until none is left."""
        each = jax.local_devices()
        # Their computations on a device are spread over these; on a CPU each is a core.
        with jax.default_device(each[index % len(each)]):
            while not self._stopped.is_set() and (part := self._next(self._on_host)) is not None:
                counted = _Counted(self._progress)
                try:
                    try:
                        self._ended.put((part, self._sweep.run_block(part, self._costs, counted)))
                    except OutOfMemoryError:
                        self._halve(part, self._on_host, counted)
                except _StoppedError:
                    return
                except BaseException as error:
                    # Raised again by the thread that drives the sweep.
                    self._ended.put((part, error))
                    return

    def _wait(self, threads: Sequence[Future[None]]) -> None:
        while not all(thread.done() for thread in threads):
            self._take(timeout=0.5)
        self._take()

    def _take(self, timeout: float = 0.0) -> None:
        """Handles the blocks that threads have finished since the last call; with a timeout it waits for the first one."""
        while True:
            try:
                part, result = self._ended.get(timeout=timeout) if timeout else self._ended.get_nowait()
            except queue.Empty:
                return
            if isinstance(result, BaseException):
                raise result
            self._on_block(part.attack.short, result)
            timeout = 0.0

    def _report_the_rest(self) -> None:
        """Reports blocks whose records are there when a sweep ends early, since a resumed sweep will not run them again."""
        if self._writing is not None and self._writing[1].exception() is None:
            self._finish()
        while not self._ended.empty():
            part, result = self._ended.get()
            if not isinstance(result, BaseException):
                self._on_block(part.attack.short, result)


class Local:
    """Runs blocks in this process.

    Args:
      host_threads: number of blocks of host attacks that run at once; None means one on a CPU, and next to an accelerator one per core, at most four.
    """

    def __init__(self, host_threads: int | None = None) -> None:
        self._host_threads = host_threads

    def plan(self, sweep: Sweep, on_event: OnEvent) -> Plan:
        """Plans with this machine's memory."""
        return sweep.plan(on_event)

    def run(self, sweep: Sweep, plan: Plan, costs: Costs | None, on_block: OnBlock, on_progress: OnProgress) -> None:
        """Runs every block that has no record file, and compares masks at the end."""
        sweep.keep_inputs()
        on_cpu = jax.default_backend() == "cpu"
        # On a CPU a second thread would wait for the same memory.
        threads = self._host_threads or (1 if on_cpu else min(4, devices.num_cores()))
        # Where the devices are the cores, attacks on the host and on the device would compete for them, and the seconds of both would be meaningless.
        _Run(sweep, plan, costs, on_block, on_progress).whole(threads, beside=not on_cpu)
        sweep.equivalence()

    def close(self) -> None:
        """Does nothing, since there is nothing to release."""


def local(*, host_threads: int | None = None) -> Executor:
    """Runs blocks in this process, on all of its devices.

    Args:
      host_threads: number of blocks at once of attacks that run on the host, such as DAGER; none means one on a CPU, and next
        to an accelerator one for each core, at most four.

    Raises:
      UsageError: if there are fewer than one.
    """
    if host_threads is not None and host_threads < 1:
        raise UsageError(f"host_threads={host_threads} must be at least 1")
    return Local(host_threads)
