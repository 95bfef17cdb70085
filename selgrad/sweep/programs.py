"""The compiled programs of a sweep: made from shapes alone, shared by the blocks that they fit, and dropped when there are many.

A compiled program holds memory and some hundred memory maps, of which a process may have no more than the kernel allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from selgrad.base import Attack
from selgrad.config import SweepConfig
from selgrad.experiment import Setting, Threat, make_engine, shapes
from selgrad.experiment.engine import Engine
from selgrad.registry import Spec
from selgrad.sweep.plan import BlockPlan, block_shape


class Programs:
    """Compiles and holds the programs of a sweep.

    Args:
      config: the axes.
      attacks: the attacks, built.
      num_settings: number of settings whose programs are held at once; the least recently used are dropped first.
      most_updates: (samples of a setting, lanes of a row) -> how many samples these lanes can belong to.

    Attributes:
      compile_seconds: compilation time of each program, in the order in which they were compiled.
    """

    def __init__(self, config: SweepConfig, attacks: Mapping[Spec, Attack], num_settings: int, most_updates: Callable[[int, int], int]) -> None:
        self._config, self._attacks, self._most_updates = config, attacks, most_updates
        pairs = len(config.metric) * len(config.selector)
        self._most = num_settings * sum(pairs if attack.evidence else 1 for attack in attacks.values())
        self._held: dict[Any, Engine] = {}
        self.compile_seconds: list[float] = []

    def __len__(self) -> int:
        """The number of programs that are held."""
        return len(self._held)

    def engine(self, setting: Setting, plan: BlockPlan) -> Engine:
        """Returns the program of a block without running anything; all blocks of an attack on a setting share it, and so do settings that compile alike."""
        first = plan.lanes[0][0]
        chosen_by = (first.metric, first.selector)
        by_metric = self._attacks[plan.attack].evidence
        num_seeds, width = block_shape(self._config, setting.num_samples, by_metric, plan.lanes_per_block)
        key = (setting.compile_key, plan.attack, num_seeds, width, chosen_by if by_metric else None)
        engine = self._held.pop(key, None)
        if engine is None:
            threat = Threat(self._config.known_labels, self._config.known_padding)
            engine = make_engine(
                setting, plan.attack, threat=threat, num_seeds=num_seeds, num_lanes=width, chosen_by=chosen_by, model_devices=self._config.model_devices
            )  # fmt: skip
            engine.compile(*shapes(setting, num_seeds, engine.num_lanes, self._most_updates(setting.num_samples, engine.num_lanes)))
            self.compile_seconds.append(engine.compile_seconds)
        # The most recently used program stands last.
        self._held[key] = engine
        while len(self._held) > self._most:
            del self._held[next(iter(self._held))]
        return engine

    def drop(self, engine: Engine) -> None:
        """Drops a program that no block will use."""
        self._held = {key: held for key, held in self._held.items() if held is not engine}
