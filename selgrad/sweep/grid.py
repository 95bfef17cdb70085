"""What a sweep's axes become once they are built: settings, attacks and compiled programs, held as long as they fit.

`selgrad.sweep.plan` says which blocks there are, and this what each of them needs.
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
"""Beyond so many, compiled programs and what was computed on a setting are let go with it: a process holds some hundred memory maps for each."""


def _digest(content: Any) -> str:
    """Of the arrays in a container; what is not an array is left out."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(content):
        if isinstance(leaf, np.ndarray | jax.Array):
            found.update(f"{leaf.dtype}{leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


class Grid:
    """A sweep's axes, built.

    Args:
      config: the axes.

    Attributes:
      settings: one for each data set, model, update and protection.
      scattered: whether the lanes of a block may be of any samples, and not of neighbours alone.

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
            # Before anything runs: records are written with them.
            for certifier in self._certifiers:
                certifier.require_possible()
        self._attacks = {spec: spec.build() for spec in config.attack}
        # Settings that do not fit in memory together, or are many, are held one at a time.
        self._is_crowded = len(self.settings) > MANY_SETTINGS or sum(setting.num_bytes for setting in self.settings) > devices.memory_budget()
        self._held = self._left = 0
        self._programs = Programs(config, self._attacks, min(len(self.settings), MANY_SETTINGS), self._most_updates)

    def inputs(self) -> dict[str, str]:
        """A digest of what each data set and each checkpoint held when it was read, by what a configuration calls it."""
        found: dict[str, str] = {}
        for setting in self.settings:
            dataset, model = setting.specs[:2]
            for spec, given in ((dataset, setting.dataset), *(((self.config.public, setting.public),) if self.config.public is not None else ())):
                name = f"{spec.label} {spec.get('path', '')}".strip()
                if name not in found:
                    found[name] = _digest(vars(given) if is_dataclass(given) else given)
            place = model.get("checkpoint") or model.get("pretrained")
            if place is not None and f"{model.label} {place}" not in found:
                found[f"{model.label} {place}"] = _digest(setting.weights(self.config.seeds[0]))
        return found

    def _use(self, index: int) -> Setting:
        """A setting that is about to be read."""
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
        """How many samples the lanes of one row can be of."""
        return min(num_samples, num_lanes) if self.scattered else most_updates(self.config, num_samples, num_lanes)

    def _engine(self, plan: BlockPlan) -> Engine:
        return self._programs.engine(self._use(plan.setting), plan)

    def _arrays(self, plan: BlockPlan, engine: Engine) -> tuple[Any, Any]:
        """Weights and lanes of a block; short rows and few seeds are padded so that the last block needs no compilation of its own."""
        padded = [[*row, *([row[-1]] * (engine.num_lanes - len(row)))] for row in plan.lanes]
        missing = engine.num_seeds - len(plan.seeds)
        setting = self._use(plan.setting)
        rows = self._most_updates(setting.num_samples, engine.num_lanes)
        return assemble(setting, [*plan.seeds, *plan.seeds[-1:] * missing], [*padded, *padded[-1:] * missing], rows)

    def _ordered(self, blocks: list[BlockPlan]) -> list[BlockPlan]:
        # Attacks innermost: what a seed's clients choose is scored once for all of them, however little fits in memory.
        return sorted(blocks, key=lambda block: (block.setting, self.config.seeds.index(block.seeds[0]), self._position(block)))

    def program(self, block: BlockPlan) -> Hashable:
        """What a block has in common with those that the same compiled program runs."""
        first = block.lanes[0][0]
        chosen_by = (first.metric, first.selector) if self._attacks[block.attack].evidence else None
        return self.settings[block.setting].compile_key, block.attack, block.lanes_per_block, chosen_by

    def on_device(self, block: BlockPlan) -> bool:
        """Whether a block is compiled for the devices, or runs on the host."""
        return self._attacks[block.attack].traceable

    def prepares(self, block: BlockPlan) -> bool:
        """Whether attackers work on the host before the first step of a block."""
        return self._attacks[block.attack].prepare is not None

    def _position(self, block: BlockPlan) -> tuple[int, int, int]:
        """Where a block's first lane stands among those of its seed."""
        first = block.lanes[0][0]
        return self.config.metric.index(first.metric), self.config.selector.index(first.selector), first.sample
