"""A sweep: it plans by memory, proves the encryption, and runs blocks, each of which leaves a record file.

The pure functions are in `plan`, built objects in `grid`, the columns of records in `records`, file locations in `store`, and the executors in `executors`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import jax
import pandas as pd
import yaml

from selgrad import checkpoints, devices, encryption, files
from selgrad.base import stride
from selgrad.config import SweepConfig, load, portable
from selgrad.errors import DamagedError, SelgradError
from selgrad.experiment import decode_lane
from selgrad.registry import Spec
from selgrad.report.record_files import write_block
from selgrad.sweep import records as rows
from selgrad.sweep.costs import Costs, measure_costs
from selgrad.sweep.drive import Attacked, Prepared, memory_errors, run_attacks
from selgrad.sweep.gallery import keep_gallery, keep_truth
from selgrad.sweep.grid import Grid
from selgrad.sweep.overlap import equivalence
from selgrad.sweep.plan import BlockPlan, Plan, fitting, refined, split
from selgrad.sweep.remote import Mirror, is_remote
from selgrad.sweep.store import RunFolder

OnEvent = Callable[[str], None]
OnProgress = Callable[[float, str], None]


class Sweep(Grid):
    """A sweep and its folder.

    Args:
      config: what to run.
      out: the folder, or a URL that fsspec reaches; created if it is missing, continued if it holds the same sweep.
      mirror: the mirror of the URL, where there is one already.

    Attributes:
      place: the folder or URL, as other processes find it.
      out: the local folder.

    Raises:
      UsageError: if the folder holds another sweep.
    """

    def __init__(self, config: SweepConfig, out: str | Path, mirror: Mirror | None = None) -> None:
        if mirror is None and is_remote(out):
            mirror = Mirror(str(out))
            mirror.fetch()
        super().__init__(config)
        self.out = Path(out) if mirror is None else mirror.local
        self.place = str(self.out.absolute()) if mirror is None else mirror.url
        self.folder = RunFolder(self.out, config.identity, mirror)
        self._encryption_note: str | None = None
        self._one_at_a_time = threading.RLock()
        self._named: dict[str, BlockPlan] = {}

    @classmethod
    def of_folder(cls, place: str) -> Sweep:
        """Returns the sweep whose configuration lies in its folder, for a process that works for the one that began it.

        Raises:
          SelgradError: if there is none, or the configuration differs from the plan's.
        """
        mirror = Mirror.private(place) if is_remote(place) else None
        for name in ("plan.json", "config.yaml", "decoders"):
            if mirror is not None:
                mirror.fetch(name)
        return cls(load((Path(place) if mirror is None else mirror.local) / "config.yaml"), place, mirror)

    @property
    def run_id(self) -> str:
        """The id of the run, the same whenever this sweep is resumed."""
        return self.folder.run_id

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder for this process."""
        return self.folder.lock()

    def record_file(self, plan: BlockPlan) -> Path:
        """Returns the file to which a block writes its records."""
        return self.folder.record_file(plan.identity)

    def is_done(self, plan: BlockPlan) -> bool:
        """Returns whether a block has its records."""
        if self.folder.has_records(plan.identity) or not self.folder.is_recovered:
            return self.folder.has_records(plan.identity)
        # The plan was lost, and blocks may be cut differently than before.
        return self.folder.cells.issuperset(rows.cell_ids(self.config, self.settings[plan.setting], plan))

    def missing(self, blocks: Iterable[BlockPlan]) -> list[BlockPlan]:
        """Returns the blocks that have no records yet, in their order."""
        return [block for block in blocks if not self.is_done(block)]

    # Planning

    def _split(self, index: int, attack: Spec, lanes_per_block: int) -> list[BlockPlan]:
        by_metric = self._attacks[attack].evidence
        whole = split(self.config, self.settings[index].num_samples, index, attack, by_metric, lanes_per_block)
        return list(refined(whole, self.folder.refined))

    def plan(self, on_event: OnEvent = lambda _: None) -> Plan:
        """Chooses block sizes by memory, compiles every program, and times two steps of each attack.

        Args:
          on_event: called with one line before each long operation.
        """
        self.folder.require_inputs(self.inputs())
        blocks: list[BlockPlan] = []
        memory, seconds, before = 0, 0.0, len(self._programs.compile_seconds)
        budget, sizes = devices.memory_budget(), self.folder.block_sizes
        for index in range(len(self.settings)):
            for attack in self.config.attack:
                name = f"{index}:{attack.label}"
                asked = self.config.block_size or devices.default_block_size()
                lanes_per_block = sizes.get(name) or max(1, asked // self._attacks[attack].num_restarts)
                finished = self._split(index, attack, lanes_per_block)
                if name in sizes and not self.missing(finished):
                    blocks.extend(finished)
                    continue
                while True:
                    parts = self._split(index, attack, lanes_per_block)
                    on_event(f"compiling {attack.label} for {self.settings[index].specs[1].label}")
                    engine = self._engine(parts[0])
                    if engine.memory_bytes <= budget or lanes_per_block == 1 or name in sizes:
                        break
                    # Memory grows with the lanes, so the size of a program that is too large tells how many lanes fit.
                    lanes = engine.num_seeds * engine.num_lanes
                    lanes_per_block = fitting(lanes_per_block, lanes, engine.memory_bytes, engine.shared_bytes, budget)
                    self._programs.drop(engine)
                if engine.memory_bytes > budget and name not in sizes:
                    raise SelgradError(
                        f"one cell of {attack.label} needs {engine.memory_bytes / 1e9:.1f} GB and {budget / 1e9:.1f} GB are free; "
                        "take fewer restarts, a smaller memory or a smaller model"
                    )
                sizes[name] = lanes_per_block
                missing = self.missing(parts)
                if missing:
                    held, _ = engine.observe(*self._arrays(missing[0], engine), None)
                    few = min(stride(), engine.num_steps)
                    state = jax.block_until_ready(engine.advance(held, engine.start(held), few))
                    started = time.perf_counter()
                    jax.block_until_ready(engine.advance(held, state, few))
                    seconds += (time.perf_counter() - started) / few * engine.num_steps * len(missing)
                memory = max(memory, engine.memory_bytes)
                blocks.extend(parts)
        self.folder.write_text("config.yaml", yaml.safe_dump(self.config.to_dict(), sort_keys=False))
        self.folder.save()
        compiled = self._programs.compile_seconds[before:]
        return Plan(sum(b.num_cells for b in blocks), tuple(self._ordered(blocks)), memory, sum(compiled), seconds, len(compiled))

    def publish_config(self) -> None:
        """Writes what another process needs to work for this sweep.

        Raises:
          UsageError: if the configuration holds objects of this process, which no other process can build.
        """
        self.folder.write_text("config.yaml", portable(self.config))
        self.folder.save()
        self.folder.publish()

    def block(self, identity: str) -> BlockPlan:
        """Returns the block of an identity, from the plan or from blocks that were cut since.

        Raises:
          SelgradError: if there is none.
        """
        if identity not in self._named:
            self.folder.reload()
            self._named = {block.identity: block for block in self.blocks()} if self.folder.block_sizes else {}
        if identity not in self._named:
            raise SelgradError(f"{self.place!r} has no block {identity!r}")
        return self._named[identity]

    def blocks(self) -> list[BlockPlan]:
        """Returns every block of a planned sweep, in the order in which they run."""
        sizes = self.folder.block_sizes
        pairs = itertools.product(range(len(self.settings)), self.config.attack)
        return self._ordered([block for index, attack in pairs for block in self._split(index, attack, sizes[f"{index}:{attack.label}"])])

    # Encryption

    def costs(self, on_event: OnEvent = lambda _: None) -> Costs | None:
        """Proves the round trip on real selected entries and measures its cost, as `measure_costs` does.

        Returns:
          The costs, or None where encryption is off or does not load here (`encryption_note` says why).
        """
        if self.config.encryption is None:
            return None
        self._encryption_note = encryption.unavailable()
        if self._encryption_note is not None:
            return None
        saved = self.folder.saved.setdefault("costs", {})
        before = len(saved)
        measured = measure_costs(self.config, self.config.encryption, self._each_setting(), saved, on_event)
        if len(saved) > before:
            self.folder.save()
        return measured

    @property
    def encryption_note(self) -> str | None:
        """The reason why there are no costs, or None."""
        return self._encryption_note

    # Running

    def keep_inputs(self) -> None:
        """Keeps what every block starts from next to the records: weights, and the truth for a gallery."""
        for index, setting in self._each_setting():
            # Weights depend on data and model; updates and protections share them.
            is_first = [other.specs[:2] for other in self.settings].index(setting.specs[:2]) == index
            for seed in self.config.seeds:
                folder = self.folder.model_folder(index, seed)
                if is_first and not folder.exists():
                    checkpoints.save_params(folder, setting.weights(seed))
            keep_truth(self.folder, self.config, index, setting)

    def halve(self, failed: BlockPlan, waiting: Iterable[BlockPlan]) -> list[BlockPlan]:
        """Returns what is left to run after a block ran out of memory: it and the others of its program cut in two, which is saved for a resumed sweep.

        Raises:
          SelgradError: if the block held one lane.
        """
        if failed.lanes_per_block == 1:
            raise SelgradError("the device ran out of memory with one lane in a block; finished blocks are kept, take fewer restarts or a smaller model")
        checkpoints.Series(self.folder.checkpoint_folder(failed.identity)).remove()
        alike = lambda block: (block.setting, block.attack, block.lanes_per_block) == (failed.setting, failed.attack, failed.lanes_per_block)
        left = self.missing([failed, *waiting])
        self.folder.refined.update({block.identity: failed.lanes_per_block // 2 for block in left if alike(block)})
        self.folder.save()
        return list(refined(left, self.folder.refined))

    def run_block(self, part: BlockPlan, costs: Costs | None, on_progress: OnProgress = lambda *_: None) -> pd.DataFrame:
        """Runs one block and writes its records. It reads nothing that other blocks write, so any process may run it, even twice.

        Args:
          part: a block of this sweep's plan.
          costs: as `costs` returns them.
          on_progress: called with the cells finished since the last call (a fraction) and a line about what runs.

        Raises:
          OutOfMemoryError: if the device has too little memory for the block; `halve` says what to run in its place.
        """
        return self.record_block(part, self.attack_block(part, self.prepare_block(part, on_progress), on_progress), costs)

    def prepare_block(self, part: BlockPlan, on_progress: OnProgress = lambda *_: None) -> Prepared:
        """Does the first third of `run_block`: program, arrays, and what attackers learn or fill in on the host. All three are safe to call from threads."""
        with memory_errors():
            with self._one_at_a_time:
                engine = self._engine(part)
                arrays = self._arrays(part, engine)
            say = lambda line: on_progress(0.0, f"{part.attack.label}: {line}")
            return Prepared(engine, *engine.observe(*arrays, checkpoints.DiskCache(self.out / "decoders"), say))

    def attack_block(self, part: BlockPlan, prepared: Prepared, on_progress: OnProgress = lambda *_: None) -> Attacked:
        """Does the second third of `run_block`, after which no device is needed."""
        what = f"{part.attack.label} on {self.settings[part.setting].specs[1].label}"
        on_steps = lambda steps: on_progress(part.num_cells * steps / prepared.engine.num_steps, what)
        with memory_errors():
            return run_attacks(prepared, checkpoints.Series(self.folder.checkpoint_folder(part.identity)), on_steps, self.folder.publish)

    def record_block(self, part: BlockPlan, attacked: Attacked, costs: Costs | None) -> pd.DataFrame:
        """Does the last third of `run_block`: writes measures, masks and certificates of every cell as records, and what the gallery keeps."""
        with self._one_at_a_time:
            setting = self._use(part.setting)
            results = {(i, j): decode_lane(setting, attacked.outcome, i, j, lane) for i, row in enumerate(part.lanes) for j, lane in enumerate(row)}
            mine = None if costs is None else {key[1:]: cost for key, cost in costs.items() if key[0] == part.setting}
            origin = rows.Origin(
                self.config, setting, self._certifiers[part.setting], self._exposed[part.setting], self._attacks[part.attack], mine, self.run_id
            )
            records = rows.frame(origin, part, results, attacked.reports, attacked.seconds / part.num_cells)
            keep_gallery(self.folder, self.config, setting, part, results)
        write_block(self.record_file(part), records, self.config.identity)
        checkpoints.Series(self.folder.checkpoint_folder(part.identity)).remove()
        self.folder.publish()
        return records

    def equivalence(self) -> pd.DataFrame:
        """Returns how similar the masks of every two metrics are, by `selgrad.sweep.overlap.equivalence`, and keeps it in `equivalence.parquet`."""
        file = self.out / "equivalence.parquet"
        if file.exists():
            # A damaged file is computed again.
            with contextlib.suppress(DamagedError):
                return cast(pd.DataFrame, files.read_frame(file))
        table = equivalence(self.config, self._each_setting())
        files.write_table(file, table)
        return table
