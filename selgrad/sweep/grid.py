"""The objects that a sweep's axes describe: settings, attacks and compiled programs, held as long as they fit in memory.

`selgrad.sweep.plan` says which blocks there are, and this module provides what each of them needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import is_dataclass
from typing import Any

import jax
import numpy as np

from selgrad import devices
from selgrad.config import SweepConfig, settings
from selgrad.experiment import Certifier, Exposed, Setting, assemble
from selgrad.experiment.engine import Engine
from selgrad.sweep.plan import BlockPlan, most_updates
from selgrad.sweep.programs import Programs

MANY_SETTINGS = 8
"""With more settings, compiled programs and cached results are dropped with their setting, since each program takes some hundred memory maps."""


def _digest(content: Any) -> str:
    """Returns a hash of the arrays in a container; other leaves are left out."""
    hasher = hashlib.sha256()
    for leaf in jax.tree.leaves(content):
        if isinstance(leaf, np.ndarray | jax.Array):
            hasher.update(f"{leaf.dtype}{leaf.shape}".encode())
            hasher.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()[:16]


class Grid:
    """A sweep's axes, built.

    Args:
      config: the axes.

    Attributes:
      settings: one for each data set, model, update and protection.
      scattered: whether the lanes of a block may belong to any samples, and not only to neighbouring ones.

    Raises:
      UsageError: if something cannot be built, or certificates do not fit in memory.
    """

    scattered = False

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.settings = [
            Setting(dataset, model, update, public=config.public, rounds=config.rounds, protection=protection, features=config.features)
            for dataset, model, update, protection in settings(config)
        ]
        choices = len(config.metric) * len(config.selector) * len(config.seeds)
        for setting in self.settings:
            setting.hold(len(config.seeds), choices, [setting.num_selected(ratio) for ratio in config.ratio])
        self._certifiers = [Certifier(setting) for setting in self.settings]
        self._exposed = [Exposed(setting) for setting in self.settings]
        if config.certificates:
            # Checked before anything runs, since every record is written with certificates.
            for certifier in self._certifiers:
                certifier.require_possible()
        self._attacks = {spec: spec.build() for spec in config.attack}
        # Settings that do not fit in memory together, or are numerous, are held one at a time.
        self._is_crowded = len(self.settings) > MANY_SETTINGS or sum(setting.num_bytes for setting in self.settings) > devices.memory_budget()
        self._held = self._left = 0
        self._programs = Programs(config, self._attacks, min(len(self.settings), MANY_SETTINGS), self._most_updates)

    def inputs(self) -> dict[str, str]:
        """Returns a digest of the contents of each data set and each checkpoint as they were read, by their names in the configuration."""
        digests: dict[str, str] = {}
        for setting in self.settings:
            dataset, model = setting.specs[:2]
            for spec, data in ((dataset, setting.dataset), *(((self.config.public, setting.public),) if self.config.public is not None else ())):
                # With all arguments, since labels leave out which part of the data is used.
                name = f"{spec.short}({', '.join(f'{key}={value}' for key, value in spec.arguments if value is not None)})"
                if name not in digests:
                    digests[name] = _digest(vars(data) if is_dataclass(data) else data)
            source = model.get("checkpoint") or model.get("pretrained")
            if source is not None and f"{model.label} {source}" not in digests:
                digests[f"{model.label} {source}"] = _digest(setting.weights(self.config.seeds[0]))
        return digests

    def _use(self, index: int) -> Setting:
        """Returns a setting that is about to be used; where settings are held one at a time, the caches of the previous one are dropped."""
        if self._is_crowded and index != self._held:
            self.settings[self._held].clear_caches()
            self._left += 1
            if self._left % MANY_SETTINGS == 0:
                devices.clear_shapes()
        self._held = index
        return self.settings[index]

    def _each_setting(self) -> Iterator[tuple[int, Setting]]:
        for index in range(len(self.settings)):
            yield index, self._use(index)

    def _most_updates(self, num_samples: int, num_lanes: int) -> int:
        """Returns how many samples the lanes of one row can belong to at most."""
        return min(num_samples, num_lanes) if self.scattered else most_updates(self.config, num_samples, num_lanes)

    def _engine(self, plan: BlockPlan) -> Engine:
        return self._programs.engine(self._use(plan.setting), plan)

    def _arrays(self, plan: BlockPlan, engine: Engine) -> tuple[Any, Any]:
        """Returns weights and lanes of a block; short rows and missing seeds are padded so that the last block needs no compilation of its own."""
        padded = [[*row, *([row[-1]] * (engine.num_lanes - len(row)))] for row in plan.lanes]
        missing = engine.num_seeds - len(plan.seeds)
        setting = self._use(plan.setting)
        rows = self._most_updates(setting.num_samples, engine.num_lanes)
        return assemble(setting, [*plan.seeds, *plan.seeds[-1:] * missing], [*padded, *padded[-1:] * missing], rows)

    def _ordered(self, blocks: list[BlockPlan]) -> list[BlockPlan]:
        # Attacks are innermost, so that a seed's clients are scored once for all of them, however little fits in memory.
        return sorted(blocks, key=lambda block: (block.setting, self.config.seeds.index(block.seeds[0]), self._position(block)))

    def program(self, block: BlockPlan) -> Hashable:
        """Returns a key that a block shares with those that the same compiled program runs."""
        first = block.lanes[0][0]
        chosen_by = (first.metric, first.selector) if self._attacks[block.attack].evidence else None
        return self.settings[block.setting].compile_key, block.attack, block.lanes_per_block, chosen_by

    def on_device(self, block: BlockPlan) -> bool:
        """Returns whether a block is compiled for the devices; otherwise it runs on the host."""
        return self._attacks[block.attack].traceable

    def prepares(self, block: BlockPlan) -> bool:
        """Returns whether attackers work on the host before the first step of a block."""
        return self._attacks[block.attack].prepare is not None

    def _position(self, block: BlockPlan) -> tuple[int, int, int]:
        """Returns the position of a block's first lane among those of its seed."""
        first = block.lanes[0][0]
        return self.config.metric.index(first.metric), self.config.selector.index(first.selector), first.sample
