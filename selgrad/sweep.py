"""Sweeps: plan -> blocks -> records, resumable at any moment.

A block's identity is the hash of its cells, its record file appears by an atomic rename, and a block whose file is there is never run
again. So a killed sweep is finished by the same command, and its records equal those of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from selgrad import __version__, checkpoints, devices, encryption, trees
from selgrad.base import TextSpec
from selgrad.config import Spec, SweepConfig, settings
from selgrad.errors import SelgradError, UsageError
from selgrad.experiment import (
    Block,
    Engines,
    Found,
    HostBlock,
    Lane,
    Setting,
    assemble,
    complete,
    encryption_cost,
    make_block,
    reads_evidence,
    succeeded,
    success_rule,
)
from selgrad.report.tables import read_records
from selgrad.tracking import Tracker

CHECKPOINT_SECONDS = 60.0
"""A block that has run this long since its last checkpoint saves its attack state."""


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One compiled call: an attack on a setting, for some seeds times some lanes.

    Attributes:
      setting: index into the sweep's settings.
      attack: spec.
      seeds: one per row.
      lanes: one row of lanes per seed, all of one length.
    """

    setting: int
    attack: Spec
    seeds: tuple[int, ...]
    lanes: tuple[tuple[Lane, ...], ...]

    @property
    def num_cells(self) -> int:
        """Cells in the block."""
        return sum(map(len, self.lanes))

    @property
    def identity(self) -> str:
        """A hash of the cells."""
        return hashlib.sha256(repr((self.setting, self.attack, self.lanes)).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep will run, decided once and kept in `plan.json` so that a resumed sweep has the same blocks.

    Attributes:
      num_cells: in all.
      blocks: in the order in which they run.
      memory_bytes: of the largest block.
      compile_seconds: spent while planning.
      seconds: estimated run time of all blocks; lanes that finish early make it shorter.
      num_programs: compiled; none where all is done.
    """

    num_cells: int
    blocks: tuple[BlockPlan, ...]
    memory_bytes: int
    compile_seconds: float
    seconds: float
    num_programs: int = 0


class Sweep:
    """A sweep and its folder.

    Args:
      config: what to run.
      out: the folder; made if it is missing, continued if it holds the same sweep.

    Raises:
      UsageError: if the folder holds another sweep.
    """

    def __init__(self, config: SweepConfig, out: str | Path) -> None:
        self.config, self.out = config, Path(out)
        self.settings = [
            Setting(dataset, model, update, public=config.public, rounds=config.rounds, protection=protection)
            for dataset, model, update, protection in settings(config)
        ]
        if config.certificates:
            # Before anything runs: records are written with them.
            for setting in self.settings:
                setting.require_certifiable()
        # Settings that do not fit in memory together are held one at a time.
        self._is_crowded = sum(setting.num_bytes for setting in self.settings) > devices.memory_budget()
        self._held = 0
        self._compiled: dict[Any, Block | HostBlock] = {}
        self._saved = self._adopt()
        self.run_id: str = self._saved["run_id"]
        self._encryption_note: str | None = None

    def _adopt(self) -> dict[str, Any]:
        file = self.out / "plan.json"
        if file.exists():
            try:
                saved: dict[str, Any] = json.loads(file.read_text())
                known = saved["identity"]
            except (ValueError, KeyError, TypeError):
                raise SelgradError(f"{str(file)!r} is damaged; remove the folder {str(self.out)!r} or choose another --out") from None
            if known != self.config.identity:
                raise UsageError(f"folder {str(self.out)!r} holds another sweep (its config.yaml differs); choose another --out")
            if saved.get("version") != __version__:
                raise UsageError(f"folder {str(self.out)!r} was begun by selgrad {saved.get('version')}, this is {__version__}; choose another --out")
            return saved
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{str(self.out)!r} is a file; choose a folder for --out")
        if self.out.is_dir() and (self.out / "records").is_dir() and any((self.out / "records").glob("*.parquet")):
            raise UsageError(f"folder {str(self.out)!r} holds records without a plan.json; choose another --out")
        return {"identity": self.config.identity, "run_id": uuid.uuid4().hex[:12], "version": __version__, "block_sizes": {}}

    def _use(self, index: int) -> Setting:
        """A setting that is about to be read."""
        if self._is_crowded and index != self._held:
            self.settings[self._held].forget()
        self._held = index
        return self.settings[index]

    def _save_plan(self) -> None:
        content = json.dumps(self._saved, indent=1, sort_keys=True)
        devices.write_atomically(self.out / "plan.json", lambda path: _write_text(path, content))

    # Planning

    def _lanes(self, setting: Setting, seed: int) -> list[Lane]:
        config = self.config
        return [
            Lane(seed, sample, metric, selector, ratio)
            for metric in config.metric
            for selector in config.selector
            for sample in range(setting.num_samples)
            for ratio in config.ratio
        ]

    def _groups(self, setting: Setting, attack: Spec, seed: int) -> list[list[Lane]]:
        """The lanes that may share a block: all, or those of one metric and selector where the attacker reads them."""
        lanes = self._lanes(setting, seed)
        if not reads_evidence(attack):
            return [lanes]
        return [[lane for lane in lanes if (lane.metric, lane.selector) == pair] for pair in itertools.product(self.config.metric, self.config.selector)]

    def _split(self, index: int, attack: Spec, lanes_per_block: int) -> Iterator[BlockPlan]:
        groups = [self._groups(self.settings[index], attack, seed) for seed in self.config.seeds]
        for rows in zip(*groups, strict=True):
            yield from self._split_rows(index, attack, list(rows), lanes_per_block)

    def _split_rows(self, index: int, attack: Spec, rows: list[list[Lane]], lanes_per_block: int) -> Iterator[BlockPlan]:
        width = len(rows[0])
        if width <= lanes_per_block:
            seeds_per_block = max(1, lanes_per_block // width)
            for at in range(0, len(rows), seeds_per_block):
                part = rows[at : at + seeds_per_block]
                yield BlockPlan(index, attack, self.config.seeds[at : at + len(part)], tuple(map(tuple, part)))
            return
        for seed, row in zip(self.config.seeds, rows, strict=True):
            for at in range(0, width, lanes_per_block):
                yield BlockPlan(index, attack, (seed,), (tuple(row[at : at + lanes_per_block]),))

    def _compile(self, plan: BlockPlan, lanes_per_block: int) -> tuple[Block | HostBlock, Any, Any]:
        """The compiled block for a plan; short rows and few seeds are padded so that the last block needs no compilation of its own."""
        setting = self._use(plan.setting)
        first = plan.lanes[0][0]
        evidence = (first.metric, first.selector) if reads_evidence(plan.attack) else None
        whole = len(self._groups(setting, plan.attack, plan.seeds[0])[0])
        width = min(whole, lanes_per_block)
        num_seeds = min(len(self.config.seeds), max(1, lanes_per_block // whole))
        key = (setting.program, plan.attack, num_seeds, width, evidence)
        block = self._compiled.get(key)
        fresh = block is None
        if block is None:
            threat = {"known_labels": self.config.known_labels, "known_padding": self.config.known_padding, "evidence": evidence}
            block = make_block(setting, plan.attack, num_seeds=num_seeds, num_lanes=width, **threat)
        padded = [[*row, *([row[-1]] * (block.num_lanes - len(row)))] for row in plan.lanes]
        missing = num_seeds - len(plan.seeds)
        params, lanes = assemble(setting, [*plan.seeds, *plan.seeds[-1:] * missing], [*padded, *padded[-1:] * missing])
        if fresh:
            block.compile(params, lanes)
            self._compiled[key] = block
        return block, params, lanes

    def plan(self, on_event: Callable[[str], None] = lambda _: None) -> Plan:
        """Chooses block sizes by memory, compiles every program, and times two steps of each attack.

        Args:
          on_event: called with one line before each long operation.
        """
        blocks: list[BlockPlan] = []
        memory, compiling, seconds = 0, 0.0, 0.0
        budget, sizes = devices.memory_budget(), self._saved["block_sizes"]
        for index in range(len(self.settings)):
            for attack in self.config.attack:
                name = f"{index}:{attack.label}"
                restarts = int(attack.get("num_restarts", 1))
                asked = self.config.block_size or devices.default_block_size()
                lanes_per_block = sizes.get(name) or max(1, asked // restarts)
                finished = list(self._split(index, attack, lanes_per_block))
                if name in sizes and all(self.record_file(p).exists() for p in finished):
                    blocks.extend(finished)
                    continue
                while True:
                    parts = list(self._split(index, attack, lanes_per_block))
                    on_event(f"compiling {attack.label} for {self.settings[index].specs[1].label}")
                    known = len(self._compiled)
                    block, params, lanes = self._compile(parts[0], lanes_per_block)
                    compiling += block.compile_seconds if len(self._compiled) > known else 0.0
                    if block.memory_bytes <= budget or lanes_per_block == 1 or name in sizes:
                        break
                    lanes_per_block = max(1, lanes_per_block // 2)
                if block.memory_bytes > budget and name not in sizes:
                    raise SelgradError(
                        f"one cell of {attack.label} needs {block.memory_bytes / 1e9:.1f} GB and {budget / 1e9:.1f} GB are free; "
                        "take fewer restarts, a smaller memory or a smaller model"
                    )
                sizes[name] = lanes_per_block
                missing = [p for p in parts if not self.record_file(p).exists()]
                if missing:
                    state = jax.block_until_ready(block.advance(params, lanes, block.start(params, lanes), 1))
                    started = time.perf_counter()
                    jax.block_until_ready(block.advance(params, lanes, state, 1))
                    seconds += (time.perf_counter() - started) * block.num_steps * len(missing)
                memory = max(memory, block.memory_bytes)
                blocks.extend(parts)
        self._save_plan()
        text = yaml.safe_dump(self.config.to_dict(), sort_keys=False)
        devices.write_atomically(self.out / "config.yaml", lambda path: _write_text(path, text))
        return Plan(sum(b.num_cells for b in blocks), tuple(blocks), memory, compiling, seconds, len(self._compiled))

    # Encryption

    def costs(self, on_event: Callable[[str], None] = lambda _: None) -> dict[tuple[int, str, str, float], encryption.Cost] | None:
        """Proves the round trip on real selected entries of every metric, selector and ratio, and measures its cost.

        Each client encrypts its own update under the first sample's mask, the server adds, and the decrypted integers are compared.

        Returns:
          Costs by (setting, metric, selector, ratio), or None where encryption is off or does not load here (`encryption_note` says why).
        """
        options = self.config.encryption
        if options is None:
            return None
        self._encryption_note = encryption.unavailable()
        if self._encryption_note is not None:
            return None
        saved: dict[str, dict[str, Any]] = self._saved.setdefault("costs", {})
        engines = Engines(options)
        result: dict[tuple[int, str, str, float], encryption.Cost] = {}
        seed = self.config.seeds[0]
        for index in range(len(self.settings)):
            setting = self._use(index)
            for metric in self.config.metric:
                for selector in self.config.selector:
                    for ratio in self.config.ratio:
                        name = json.dumps([index, metric.label, selector.label, ratio])
                        if name not in saved:
                            on_event(f"encrypting {ratio:.1%} of {setting.specs[1].label} by {metric.label}")
                            lane = Lane(seed, 0, metric, selector, ratio)
                            cost = encryption_cost(setting, lane, engines, options["num_clients"])
                            saved[name] = dataclasses.asdict(cost)
                        result[index, metric.label, selector.label, ratio] = encryption.Cost(**saved[name])
        self._save_plan()
        return result

    @property
    def encryption_note(self) -> str | None:
        """Why costs are empty, where they are."""
        return self._encryption_note

    # Running

    def record_file(self, plan: BlockPlan) -> Path:
        """Where a block's records lie once it is finished."""
        return self.out / "records" / f"{plan.identity}.parquet"

    def run(
        self,
        plan: Plan,
        costs: dict[tuple[int, str, str, float], encryption.Cost] | None,
        tracker: Tracker,
        on_progress: Callable[[float, str], None] = lambda *_: None,
    ) -> pd.DataFrame:
        """Runs every block that has no record file yet.

        Args:
          plan: of this sweep.
          costs: as `costs` returns them.
          tracker: gets each finished block.
          on_progress: called with cells finished since the last call (a fraction inside a block) and a line on what runs.

        Returns:
          All records.
        """
        for index in range(len(self.settings)):
            setting = self._use(index)
            # Weights depend on data and model; updates and protections share them.
            is_first = [one.specs[:2] for one in self.settings].index(setting.specs[:2]) == index
            for seed in self.config.seeds:
                folder = self.out / "models" / f"setting-{index}-seed-{seed}"
                if is_first and not folder.exists():
                    checkpoints.save(folder, setting.client(seed).params)
            self._keep_truth(index, setting)
        for part in plan.blocks:
            if self.record_file(part).exists():
                on_progress(float(part.num_cells), "already done")
                continue
            records = self._run_block(part, costs, on_progress)
            tracker.block(part.attack.name, records)
        self.equivalence()
        return read_records(self.out)

    def _run_block(self, part: BlockPlan, costs: Any, on_progress: Callable[[float, str], None]) -> pd.DataFrame:
        lanes_per_block = self._saved["block_sizes"][f"{part.setting}:{part.attack.label}"]
        block, params, lanes = self._compile(part, lanes_per_block)
        told = lambda line: on_progress(0.0, f"{part.attack.label}: {line}")
        lanes, prepared = block.prepare(params, lanes, checkpoints.Kept(self.out / "decoders"), told)
        series = checkpoints.Series(self.out / "checkpoints" / part.identity)
        state, total = block.start(params, lanes), block.num_steps
        done, stored = series.newest(like=state)
        if stored is not None:
            state = jax.tree.map(lambda old, new: jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new, state, stored)
        started = saved = time.perf_counter()
        chunk = 1
        while done < total:
            before = time.perf_counter()
            chunk = min(chunk, total - done)
            state = jax.block_until_ready(block.advance(params, lanes, state, chunk))
            now = time.perf_counter()
            done += chunk
            on_progress(part.num_cells * chunk / total, f"{part.attack.label} on {self.settings[part.setting].specs[1].label}")
            # About a second between two looks at the clock: often enough for a bar, Ctrl-C and checkpoints, rare enough to cost nothing.
            chunk = max(1, int(chunk * min(2.0, 1.0 / max(now - before, 1e-3))))
            if now - saved > CHECKPOINT_SECONDS and done < total:
                series.save(done, state)
                saved = now
        outcome = jax.device_get(block.finish(params, lanes, state))
        setting = self.settings[part.setting]
        found = {(i, j): complete(setting, outcome, i, j, lane) for i, row in enumerate(part.lanes) for j, lane in enumerate(row)}
        records = self._records(part, found, {**prepared, **outcome.reports}, costs, (time.perf_counter() - started) / part.num_cells)
        self._keep_gallery(part, found)
        table = pa.Table.from_pandas(records, preserve_index=False)
        devices.write_atomically(self.record_file(part), lambda path: pq.write_table(table, path))
        series.remove()
        return records

    def _records(
        self, part: BlockPlan, found: dict[tuple[int, int], Found], reports: dict[tuple[int, int], str], costs: Any, attack_seconds: float
    ) -> pd.DataFrame:
        setting, config = self.settings[part.setting], self.config
        dataset, model, update = setting.specs
        rows = []
        for i, row in enumerate(part.lanes):
            for j, lane in enumerate(row):
                ranks, score_seconds, mask_seconds = setting.ranks(lane.metric, lane.selector, lane.seed)
                selected, visible = setting.num_selected(lane.ratio), setting.num_visible(lane)
                mask = jax.tree.map(lambda leaf, k=lane.sample, n=selected: leaf[k] < n, ranks)
                measures = found[i, j].measures
                rule = success_rule(config.success, setting.input_spec)
                cost = None if costs is None else costs[part.setting, lane.metric.label, lane.selector.label, lane.ratio]
                specs = {"dataset": dataset, "model": model, "update": update, "metric": lane.metric, "selector": lane.selector, "attack": part.attack}
                identity = {k: [s.name, *s.arguments] for k, s in {**specs, **({"public": config.public} if config.public else {})}.items()}
                if setting.protection_spec.name != "none":
                    identity["protection"] = [setting.protection_spec.name, *setting.protection_spec.arguments]
                specs["protection"] = setting.protection_spec
                if config.rounds["count"] > 1:
                    identity["rounds"] = [config.rounds["count"], config.rounds["server_learning_rate"]]
                cell = json.dumps([identity, lane.ratio, lane.sample, lane.seed, config.known_labels, config.known_padding], sort_keys=True)
                rows.append(
                    {
                        "cell_id": hashlib.sha256(cell.encode()).hexdigest()[:16],
                        "sweep": config.name,
                        **{k: s.name for k, s in specs.items()},
                        **{f"{k}_label": s.label for k, s in specs.items()},
                        **{f"{k}_arguments": s.arguments_json for k, s in specs.items()},
                        "hidden": str(part.attack.get("hidden", "")),
                        "ratio": lane.ratio,
                        "sample": lane.sample,
                        "seed": lane.seed,
                        "known_labels": config.known_labels,
                        "known_padding": config.known_padding,
                        "num_rounds": config.rounds["count"],
                        "embedding": str(model.get("embedding", "")),
                        **{k: float(value) for k, value in measures.items() if k not in ("diverged", "restart", "num_evaluations")},
                        **self._certificate(setting, lane),
                        "success": succeeded(rule, measures),
                        "success_rule": f"{rule[0]} {'<' if rule[0] == 'mse' else '>'} {rule[1]:g}",
                        "diverged": bool(measures["diverged"]),
                        "restart": int(measures["restart"]),
                        "num_evaluations": int(measures["num_evaluations"]),
                        "num_total": setting.num_total,
                        "num_selected": selected,
                        "num_visible": visible,
                        "plain_bytes": setting.protection.num_bytes(visible, setting.num_total),
                        "num_clients": None if cost is None or config.encryption is None else config.encryption["num_clients"],
                        "num_ciphertexts": None if cost is None else cost.num_ciphertexts,
                        "num_slots": None if cost is None else cost.num_slots,
                        "ciphertext_bytes": None if cost is None else cost.ciphertext_bytes,
                        "num_clipped": None if cost is None else cost.num_clipped,
                        "index_bytes": len(encryption.encode_indices(encryption.mask_bits(mask))),
                        "score_seconds": score_seconds,
                        "score_standard_error": setting.standard_error(lane.metric),
                        "mask_seconds": mask_seconds,
                        "encrypt_seconds": None if cost is None else cost.encrypt_seconds,
                        "add_seconds": None if cost is None else cost.add_seconds,
                        "decrypt_seconds": None if cost is None else cost.decrypt_seconds,
                        "attack_seconds": attack_seconds,
                        "attack_report": reports.get((i, j), ""),
                        "selgrad_version": __version__,
                        "jax_version": jax.__version__,
                        "device": jax.local_devices()[0].device_kind,
                        "run_id": self.run_id,
                    }
                )
        frame = pd.DataFrame(rows)
        nullable = {"num_clients": "Int64", "num_ciphertexts": "Int64", "num_slots": "Int64", "ciphertext_bytes": "Int64", "num_clipped": "Int64"}
        floats = dict.fromkeys(("encrypt_seconds", "add_seconds", "decrypt_seconds"), "float64")
        return frame.astype({**nullable, **floats})

    def _certificate(self, setting: Setting, lane: Lane) -> dict[str, Any]:
        """The columns `certificate_*` of one cell, computed for all ratios of the sample at once."""
        if not self.config.certificates:
            return {}
        counts = tuple(sorted({setting.num_selected(ratio) for ratio in self.config.ratio}))
        certificates, bounds = setting.certificates(lane.metric, lane.selector, lane.seed, counts)
        at = counts.index(setting.num_selected(lane.ratio))
        found = dataclasses.asdict(certificates[lane.sample][at])
        return {**{f"certificate_{name}": value for name, value in found.items()}, "certificate_van_trees_mse": bounds[at]}

    def equivalence(self) -> pd.DataFrame:
        """How alike the masks of every two metrics are, kept in `equivalence.parquet`.

        Returns:
          Columns `setting`, `selector`, `ratio`, `metric_a`, `metric_b`, `leaf` ("" for the whole tree), `jaccard` (mean over samples and seeds; NaN where
          neither mask has an entry of the leaf) and `identical` (whether the masks are the same for every sample and seed).
        """
        file = self.out / "equivalence.parquet"
        if file.exists():
            return pq.read_table(file).to_pandas()
        rows = []
        for index in range(len(self.settings)):
            setting = self._use(index)
            title = setting.title
            for selector, (a, b) in itertools.product(self.config.selector, itertools.combinations(self.config.metric, 2)):
                counts = {ratio: setting.num_selected(ratio) for ratio in self.config.ratio if 0 < ratio < 1}
                found = [
                    overlap(setting.ranks(a, selector, seed)[0], setting.ranks(b, selector, seed)[0], tuple(counts.values())) for seed in self.config.seeds
                ]
                names = ["", *trees.paths(setting.ranks(a, selector, self.config.seeds[0])[0])]
                for k, ratio in enumerate(counts):
                    both, either = (np.concatenate([part[which][k] for part in found]) for which in (0, 1))
                    for j, leaf in enumerate(names):
                        seen = either[:, j] > 0
                        rows.append(
                            {
                                "setting": index, "title": title, "selector": selector.label, "ratio": ratio, "metric_a": a.label, "metric_b": b.label,
                                "leaf": leaf, "jaccard": float((both[seen, j] / either[seen, j]).mean()) if seen.any() else math.nan,
                                "identical": bool((both[:, j] == either[:, j]).all()),
                            }
                        )  # fmt: skip
        columns = ["setting", "title", "selector", "ratio", "metric_a", "metric_b", "leaf", "jaccard", "identical"]
        table = pd.DataFrame(rows, columns=columns)
        devices.write_atomically(file, lambda path: table.to_parquet(path, index=False))
        return table

    def _keep_truth(self, index: int, setting: Setting) -> None:
        file = self.out / "reconstructions" / f"truth-{index}.npz"
        count = min(self.config.gallery, setting.num_samples)
        if isinstance(setting.input_spec, TextSpec):
            return
        if count and not file.exists():
            batches = setting.client(self.config.seeds[0]).batches
            _write_npz(file, pixels=_to_uint8(setting.input_spec.pixels(batches.inputs[:count])), labels=np.asarray(batches.labels[:count]))

    def _keep_gallery(self, part: BlockPlan, found: dict[tuple[int, int], Found]) -> None:
        keep = [
            (i, j, lane) for i, row in enumerate(part.lanes) for j, lane in enumerate(row)
            if lane.sample < self.config.gallery and lane.seed == self.config.seeds[0]
        ]  # fmt: skip
        title = self.settings[part.setting].title
        if keep and isinstance(self.settings[part.setting].input_spec, TextSpec):
            rows = [
                {
                    "setting": part.setting, "title": title, "sample": lane.sample, "ratio": lane.ratio, "metric": lane.metric.label,
                    "selector": lane.selector.label, "attack": part.attack.label, "truth": list(found[i, j].truth), "found": list(found[i, j].texts),
                }
                for i, j, lane in keep
            ]  # fmt: skip
            text = json.dumps(rows, indent=1, ensure_ascii=False)
            devices.write_atomically(self.out / "reconstructions" / f"{part.identity}.json", lambda path: _write_text(path, text))
        elif keep:
            _write_npz(
                self.out / "reconstructions" / f"{part.identity}.npz",
                pixels=_to_uint8(np.stack([found[i, j].outputs for i, j, _ in keep])),
                setting=np.asarray([part.setting] * len(keep)),
                title=np.asarray([title] * len(keep)),
                sample=np.asarray([lane.sample for *_, lane in keep]),
                ratio=np.asarray([lane.ratio for *_, lane in keep]),
                metric=np.asarray([lane.metric.label for *_, lane in keep]),
                selector=np.asarray([lane.selector.label for *_, lane in keep]),
                attack=np.asarray([part.attack.label] * len(keep)),
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
          SelgradError: if another process runs a sweep there.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            handle = open(self.out / ".lock", "w")  # noqa: SIM115 (held until the end of the sweep)
        except OSError as error:
            raise SelgradError(f"cannot write in {str(self.out)!r}: {error.strerror}; choose another --out") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SelgradError(f"another process is running a sweep in {str(self.out)!r}; wait for it or choose another --out") from None
            # Another process may have begun or ended a sweep here since this one looked.
            self._saved = self._adopt()
            self.run_id = self._saved["run_id"]
            yield


def overlap(a: Any, b: Any, counts: tuple[int, ...]) -> tuple[Any, Any]:
    """Entries in both masks and in either, for each number of selected entries: (counts, samples, 1 + leaves), the whole tree first.

    Args:
      a, b: ranks, a leading axis (samples,) on each leaf.
      counts: of selected entries.
    """
    both, either = [], []
    for count in counts:
        pairs = [(np.asarray(x) < count, np.asarray(y) < count) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
        sums = [[op(x, y).reshape(len(x), -1).sum(axis=1) for x, y in pairs] for op in (np.logical_and, np.logical_or)]
        shared, whole = (np.stack([np.sum(part, axis=0), *part], axis=1) for part in sums)
        both.append(shared)
        either.append(whole)
    return np.asarray(both), np.asarray(either)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _to_uint8(pixels: Any) -> Any:
    return np.rint(np.nan_to_num(np.clip(np.asarray(pixels), 0, 1)) * 255).astype(np.uint8)


def _write_npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    devices.write_atomically(path, lambda target: _write_bytes(target, buffer.getvalue()))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
