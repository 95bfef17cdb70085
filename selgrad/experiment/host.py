"""Runs an attack that cannot be traced behind the same protocol as a compiled block: one lane after the other, each lane being a step.

Its reports are text of any length, kept in a list next to the arrays.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from selgrad import devices, trees
from selgrad.base import Attack, Batch, Cache, Observation, Reconstruction, no_cache
from selgrad.experiment.block import Observer
from selgrad.experiment.engine import OnEvent, Reports
from selgrad.experiment.results import judged
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lanes, Tables
from selgrad.modality import Outcome
from selgrad.modality.protocol import NUMBERS


@dataclasses.dataclass(frozen=True)
class HostState:
    """The results of the lanes so far; `reports` has one entry per finished lane."""

    arrays: dict[str, Any]
    reports: tuple[str, ...] = ()


class HostHeld(NamedTuple):
    """The data that a block on the host works on.

    Attributes:
      rows: tables of each seed, without their leading axis.
      lanes: the lanes, leading axes (seeds, lanes).
      cache: keeps what an attack learns.
    """

    rows: tuple[Tables, ...]
    lanes: Lanes
    cache: Cache


def with_zero_leaves(report: str, observation: Observation) -> str:
    """Adds to a report, under `zero`, the leaves that it says it used and whose visible entries are 0 in every round: they hold no information."""
    try:
        content = json.loads(report)
    except ValueError:
        return report
    if not isinstance(content, dict):
        return report
    used = {str(leaf).partition(" (")[0] for leaf in content.get("used", [])}
    zero = []
    for index, path in enumerate(trees.paths(observation.visible)):
        pairs = [(jax.tree.leaves(shown.visible)[index], jax.tree.leaves(shown.mask)[index]) for shown in observation.sent] if path in used else []
        if any(not np.all(mask) for _, mask in pairs) and not any(np.any(visible) for visible, _ in pairs):
            zero.append(path)
    return json.dumps({**content, "zero": zero}) if zero else report


class HostBlock:
    """One attack on one setting, run lane by lane; threads may run blocks of it at once.

    Args:
      setting: data, model, update.
      attack: the attack that runs.
      auxiliary: what the attacker brings, a pytree of arrays.
      observer: computes what the attacker holds of each lane.
      num_seeds, num_lanes: sizes of the two axes.
    """

    compile_seconds = 0.0
    memory_bytes = shared_bytes = 0

    def __init__(self, setting: Setting, attack: Attack, auxiliary: Any, observer: Observer, *, num_seeds: int, num_lanes: int) -> None:
        self.attack, self.num_seeds, self.num_lanes = attack, num_seeds, num_lanes
        self.num_steps = num_seeds * num_lanes
        self._setting, self._auxiliary, self._observer, self._see = setting, auxiliary, observer, jax.jit(observer.see)

    def compile(self, tables: Tables, lanes: Lanes) -> None:
        """Does nothing, since there is nothing to compile."""

    def observe(self, tables: Tables, lanes: Lanes, cache: Cache | None = no_cache, on_event: OnEvent = lambda _: None) -> tuple[HostHeld, Reports]:
        """Returns tables of each seed, on the device, and lanes as they are; each attack reports for itself what it uses."""
        # Moved once: all lanes of a seed have the same weights, and attacks may cache what they compute from them.
        rows = (jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), tables) for i in range(self.num_seeds))
        return HostHeld(tuple(rows), lanes, no_cache if cache is None else cache), {}

    def start(self, held: HostHeld) -> HostState:
        """Returns empty arrays for the result of each lane."""
        lanes = held.lanes
        size, spec = len(lanes.batch.inputs[0, 0]), self._setting.input_spec
        return HostState(
            {
                "done": np.zeros((), np.int64),
                "outputs": np.zeros((*lanes.shape, size, *spec.shape), self._setting.modality.output_dtype),
                "labels": np.zeros((*lanes.shape, size, *spec.label_shape), np.int32),
                "numbers": np.zeros((*lanes.shape, len(NUMBERS)), np.float64),
            }
        )

    def advance(self, held: HostHeld, state: HostState, num_steps: int) -> HostState:
        """Attacks the next lanes."""
        arrays, reports = {name: np.array(value) for name, value in state.arrays.items()}, list(state.reports)
        with devices.one_blas_thread():
            for done in range(int(arrays["done"]), min(int(arrays["done"]) + num_steps, self.num_steps)):
                i, j = divmod(done, self.num_lanes)
                of_row, lane = held.rows[i], held.lanes.at(i, j)
                observation = self._observer.observation((of_row.weights, self._auxiliary), self._see(self._auxiliary, of_row, lane))
                reconstruction = self.attack.reconstruct(lane.key, observation, held.cache)
                arrays["outputs"][i, j], arrays["labels"][i, j] = np.asarray(reconstruction.inputs), np.asarray(reconstruction.labels)
                arrays["numbers"][i, j] = [float(getattr(reconstruction, name)) for name in NUMBERS]
                reports.append(with_zero_leaves(reconstruction.report or "", observation))
                arrays["done"] = np.asarray(done + 1)
        return HostState(arrays, tuple(reports))

    def finish(self, held: HostHeld, state: HostState) -> tuple[Outcome, Reports]:
        """Returns measures and reconstructions, and the reports by lane."""
        guess = self._setting.modality.guess(self._setting.public, self._setting.dataset)

        def measure_lane(batch: Batch, inputs: Array, labels: Array, numbers: Array) -> Outcome:
            objective, diverged, restart, evaluations, moved = numbers
            every = (inputs[None], labels[None], objective[None])
            reconstruction = Reconstruction(inputs, labels, objective, diverged > 0, restart, *every, evaluations, moved=moved > 0)
            outcome = self._setting.modality.measure(batch, reconstruction, guess)
            return outcome._replace(measures={**outcome.measures, **judged(self._setting, self.attack, None, batch, reconstruction)})

        arrays = state.arrays
        outcome = jax.jit(jax.vmap(jax.vmap(measure_lane)))(held.lanes.batch, arrays["outputs"], arrays["labels"], arrays["numbers"].astype(np.float32))
        return outcome, {divmod(k, self.num_lanes): report for k, report in enumerate(state.reports)}

    def arrays(self, state: HostState) -> tuple[Any, Sequence[str]]:
        """Returns the arrays, and the reports as notes."""
        return state.arrays, state.reports

    def restore(self, state: HostState, arrays: Any, notes: Sequence[str]) -> HostState:
        """Returns the stored state."""
        return HostState(arrays, tuple(notes))
