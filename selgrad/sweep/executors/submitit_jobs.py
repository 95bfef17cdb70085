"""Runs blocks on a SLURM cluster: arrays of jobs, requeued from the newest checkpoint where they are preempted or run out of time.

submitit submits and requeues jobs; see https://github.com/facebookincubator/submitit.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any, Literal

from selgrad.errors import SelgradError, UsageError
from selgrad.sweep import work
from selgrad.sweep.costs import Costs
from selgrad.sweep.executors.protocol import Executor, OnBlock, Queue
from selgrad.sweep.plan import BlockPlan, Plan
from selgrad.sweep.run import OnEvent, OnProgress, Sweep
from selgrad.sweep.work import Ended, Place


class Job:
    """The task of a job: blocks of one program, one after the other. A requeued job begins again and skips the blocks that are done.

    Args:
      place: where the job works.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, what: Literal["plan", "compare", "blocks"], blocks: Sequence[str] = ()) -> Any:
        """Plans, compares, or runs blocks and returns how each ended."""
        self._place.enter()
        if what == "blocks":
            return {block: work.run_block(self._place.out, block) for block in blocks}
        return work.attempt(what, self._place.out)

    def checkpoint(self, *arguments: Any) -> Any:
        """Returns what submitit requeues when a job is preempted: the same task, since a block resumes from its own checkpoint."""
        return importlib.import_module("submitit").helpers.DelayedSubmission(self, *arguments)


class SubmititJobs:
    """Runs blocks in jobs.

    Args:
      cluster: "slurm", "local" or "debug"; None means SLURM where it is available, and this machine otherwise.
      workers: number of jobs at once.
      retries: how often a block may be lost with its job.
      parameters: parameters of submitit.
    """

    def __init__(self, cluster: str | None, workers: int, retries: int, parameters: dict[str, Any]) -> None:
        try:
            self._submitit: Any = importlib.import_module("submitit")
        except ImportError:
            raise UsageError("--engine submitit needs submitit; install selgrad with the extra `submitit`: uv sync --extra submitit") from None
        self._cluster, self._workers, self._retries, self._parameters = cluster, workers, retries, parameters

    def _executor(self, sweep: Sweep) -> Any:
        # Job files lie where every machine of the cluster finds them: next to the records, or here if those lie in an object store.
        executor = self._submitit.AutoExecutor(folder=sweep.out / "jobs", cluster=self._cluster)
        known = {"slurm_array_parallelism": self._workers} if executor.cluster == "slurm" else {}
        executor.update_parameters(name="selgrad", **known, **self._parameters)
        return executor

    def _job(self, executor: Any, sweep: Sweep) -> Job:
        return Job(Place.here(sweep.place, 1.0 if executor.cluster == "slurm" else 1 / self._workers))

    def _alone(self, sweep: Sweep, what: str) -> Any:
        executor = self._executor(sweep)
        for attempt in range(self._retries + 1):
            job = executor.submit(self._job(executor, sweep), what)
            try:
                result = job.result()
            except Exception as error:  # submitit raises errors of many kinds for a job that died
                if attempt == self._retries:
                    raise SelgradError(f"job {job.job_id} failed {attempt + 1} times: {_reason(error)}; its log is {job.paths.stderr}") from None
                continue
            if isinstance(result, Ended):
                raise SelgradError(result.message)
            return result
        raise AssertionError

    def plan(self, sweep: Sweep, on_event: OnEvent) -> Plan:
        """Plans in a job, where the blocks will run."""
        sweep.publish_config()
        on_event("in a job")
        planned = self._alone(sweep, "plan")
        sweep.folder.reload()
        assert isinstance(planned, Plan)
        return planned

    def run(self, sweep: Sweep, plan: Plan, costs: Costs | None, on_block: OnBlock, on_progress: OnProgress) -> None:
        """Submits every block that has no record file, in arrays, until all have one."""
        queue, executor = Queue(sweep, plan.blocks, self._retries, on_block, on_progress), self._executor(sweep)
        while len(queue):
            parts = _parts(sweep, queue.all(), self._workers)
            with executor.batch():
                jobs = [executor.submit(self._job(executor, sweep), "blocks", [block.identity for block in part]) for part in parts]
            running = dict(zip(jobs, parts, strict=True))
            while running:
                for job in [running_job for running_job in running if running_job.done()]:
                    part = running.pop(job)
                    try:
                        ended = job.result()
                    except Exception as error:  # as above
                        for block in part:
                            queue.lost(block, _reason(error))
                        continue
                    for block in part:
                        queue.ended(block, ended[block.identity])
                time.sleep(0.5)
        if not (sweep.out / "equivalence.parquet").exists():
            self._alone(sweep, "compare")
        sweep.folder.fetch()

    def close(self) -> None:
        """Does nothing, since jobs end by themselves."""


def _parts(sweep: Sweep, blocks: Sequence[BlockPlan], workers: int) -> list[list[BlockPlan]]:
    """Groups blocks by program into as many jobs as can run at once or a few more, so that a job compiles its program once."""
    programs: dict[Any, list[BlockPlan]] = {}
    for block in blocks:
        programs.setdefault(sweep.program(block), []).append(block)
    size = max(1, -(-len(blocks) // workers))
    return [part[start : start + size] for part in programs.values() for start in range(0, len(part), size)]


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__


def submitit_jobs(
    *, cluster: str | None = None, workers: int = 1, timeout_min: int = 60, gpus_per_node: int | None = None, cpus_per_task: int | None = None,
    mem_gb: float | None = None, slurm_partition: str | None = None, slurm_account: str | None = None, retries: int = 3,
) -> Executor:  # fmt: skip
    """Runs blocks in the jobs of a SLURM cluster.

    Args:
      cluster: `slurm`, `local` (processes of this machine) or `debug` (this process); none means SLURM where it is available, and `local` otherwise.
      workers: number of jobs at once.
      timeout_min: time limit of a job in minutes; one that needs more is queued again and goes on from its checkpoint.
      gpus_per_node: number of GPUs of a job.
      cpus_per_task: number of cores of a job.
      mem_gb: memory of a job in GB.
      slurm_partition: partition in which jobs are queued.
      slurm_account: account to which jobs are charged.
      retries: how often a block may be lost with its job before the sweep ends.

    Raises:
      UsageError: if submitit is not installed.
    """
    asked = {
        "timeout_min": timeout_min, "gpus_per_node": gpus_per_node, "cpus_per_task": cpus_per_task, "mem_gb": mem_gb,
        "slurm_partition": slurm_partition, "slurm_account": slurm_account,
    }  # fmt: skip
    return SubmititJobs(cluster, workers, retries, {name: value for name, value in asked.items() if value is not None})
