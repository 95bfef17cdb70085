"""A compiled block: one `jit(shard_map(vmap(vmap(cell))))` over seeds and lanes; restarts are an axis inside the attack.

A lane is one (sample, metric, selector, ratio). Metrics, ratios, samples, seeds and restarts are array axes, never Python loops.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from selgrad import devices
from selgrad.base import Attack, Evidence, Observation, Remember, Round, forget
from selgrad.experiment.engine import OnEvent, Reports, Weights
from selgrad.experiment.setting import Setting
from selgrad.experiment.threat import Threat
from selgrad.experiment.types import Lanes, Shown
from selgrad.gradients import disclose
from selgrad.modality import Outcome


def _as_sent(one: Round, like: Shown) -> Shown:
    """What is seen of a round without what an observer adds to it again."""
    return Shown({name: one.visible[name] for name in like.visible}, {name: one.mask[name] for name in like.visible})


class Observer:
    """What the attacker of a lane holds.

    Args:
      setting: data, model, update.
      threat: what the attacker is told.
      evidence: the client's metric, for an attacker that reads masks as evidence.
    """

    def __init__(self, setting: Setting, threat: Threat, evidence: Evidence | None) -> None:
        self._setting, self._threat, self._evidence = setting, threat, evidence

    def __call__(self, params: tuple[Weights, Any], lane: Lanes) -> Observation:
        """The observation of one lane; `params` are each round's weights without leading axes, and what the attacker brings."""
        (weights, auxiliary), setting = params, self._setting
        sent = Observation(
            model=setting.model,
            sent=tuple(Round(w, one.visible, one.mask) for w, one in zip(weights, lane.sent, strict=True)),
            update=setting.update,
            labels=setting.model.targets(lane.batch) if self._threat.known_labels else None,
            valid=lane.batch.valid if self._threat.known_padding else None,
            auxiliary=auxiliary,
            public=setting.public,
            evidence=self._evidence,
            estimate=None if lane.estimate is None else jnp.asarray(lane.estimate),
            noise=lane.noise,
        )
        return disclose(sent, lane.batch)


class Block:
    """One attack on one setting, compiled for a number of seeds and lanes, in three phases that keep their state on the devices.

    Args:
      setting: data, model, update.
      attack: what runs.
      auxiliary: what the attacker brings, a pytree of arrays.
      observer: what it holds of each lane.
      num_seeds, num_lanes: sizes of the two axes; lanes are padded to the devices.
    """

    def __init__(self, setting: Setting, attack: Attack, auxiliary: Any, observer: Observer, *, num_seeds: int, num_lanes: int) -> None:
        self.attack, self._auxiliary, self._setting, self._observer = attack, auxiliary, setting, observer
        self.num_steps = attack.num_steps
        self.num_seeds = num_seeds
        self.mesh = devices.mesh(num_lanes)
        self.num_lanes = -(-num_lanes // self.mesh.size) * self.mesh.size
        modality = setting.modality

        def start(params: tuple[Weights, Any], lane: Lanes) -> Any:
            return attack.start(lane.key, observer(params, lane))

        def advance(params: tuple[Weights, Any], lane: Lanes, state: Any, num_steps: Array) -> Any:
            return attack.advance(observer(params, lane), state, num_steps)

        def finish(params: tuple[Weights, Any], lane: Lanes, state: Any) -> Outcome:
            return modality.measure(lane.batch, attack.finish(observer(params, lane), state))

        everywhere, lanes = PartitionSpec(), PartitionSpec(None, "lanes")

        def block(phase: Any, in_axes: tuple[int | None, ...], in_specs: tuple[Any, ...]) -> Any:
            inner = jax.vmap(phase, (None, *in_axes))
            outer = jax.vmap(inner, ((0, None), *in_axes))
            return jax.jit(devices.shard(outer, self.mesh, (everywhere, *in_specs), lanes))

        self._start = block(start, (0,), (lanes,))
        self._advance = block(advance, (0, 0, None), (lanes, lanes, everywhere))
        self._finish = block(finish, (0, 0), (lanes, lanes))
        self.compile_seconds = 0.0
        self.memory_bytes = 0

    def prepare(self, weights: Weights, lanes: Lanes, remember: Remember = forget, on_event: OnEvent = lambda _: None) -> tuple[Lanes, Reports]:
        """Lanes with what the attack learns or fills in on the host before it starts, and what it says of each; as they are where it does neither.

        Args:
          weights, lanes: as `assemble` gives them.
          remember: keeps what is learned.
          on_event: called with a line before each mask.
        """
        if self.attack.prepare is None:
            return lanes, {}
        observation = jax.jit(self._observer)
        reports: Reports = {}
        rows: list[tuple[tuple[Shown, ...], Any]] = []
        done: dict[bytes, int] = {}
        rows_of_lanes, columns = lanes.shape
        for i, j in np.ndindex(rows_of_lanes, columns):
            if j == 0:
                of_row = jax.tree.map(lambda leaf, i=i: leaf[i], weights)
                of_weights = digest(of_row)
            seen = observation((of_row, self._auxiliary), lanes.at(i, j))
            # Lanes that pad a block, and masks that two metrics share, are prepared once.
            known = of_weights + digest([(one.visible, one.mask) for one in seen.sent])
            if known in done:
                at = done[known]
                reports[i, j] = reports[divmod(at, columns)]
                rows.append(rows[at])
                continue
            done[known] = len(rows)
            on_event(f"preparing mask {len(rows) + 1} of {rows_of_lanes * columns}")
            seen, reports[i, j] = self.attack.prepare(seen, remember)
            rows.append((tuple(_as_sent(one, like) for one, like in zip(seen.sent, lanes.sent, strict=True)), seen.estimate))
        sent, estimate = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]).reshape(*lanes.shape, *leaves[0].shape), *rows)
        return lanes._replace(sent=sent, estimate=estimate), reports

    def _with_room(self, weights: Weights, lanes: Lanes) -> Lanes:
        """Lanes with room for a decoder's estimate where the attack will have one, so that planning compiles what will run."""
        if lanes.estimate is not None or not self.attack.estimate:
            return lanes
        of_row, inputs = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (weights[0], lanes.batch.inputs[0]))
        embedded = jax.eval_shape(self._setting.model.embed, of_row, inputs)
        return lanes._replace(estimate=np.zeros((*lanes.shape, *embedded.shape), embedded.dtype))

    def compile(self, weights: Weights, lanes: Lanes) -> None:
        """Compiles the three phases ahead of time and reads how much memory the largest takes."""
        started = time.perf_counter()
        lanes = self._with_room(weights, lanes)
        whole = (weights, self._auxiliary)
        shapes = jax.eval_shape(self._start, whole, lanes)
        self._start = self._start.lower(whole, lanes).compile()
        # Shapes only, so that a block too large for the device is found by the memory analysis and not by running it.
        sample = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, self._start.output_shardings)
        self._advance = self._advance.lower(whole, lanes, sample, jnp.int32(1)).compile()
        self._finish = self._finish.lower(whole, lanes, sample).compile()
        self.compile_seconds = time.perf_counter() - started
        sizes = []
        for phase in (self._start, self._advance, self._finish):
            analysis = phase.memory_analysis()
            if analysis is not None:
                used = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
                sizes.append(used * self.mesh.size)
        self.memory_bytes = max(sizes, default=0)

    def start(self, weights: Weights, lanes: Lanes) -> Any:
        """The state of every lane before its first step."""
        return self._start((weights, self._auxiliary), self._with_room(weights, lanes))

    def advance(self, weights: Weights, lanes: Lanes, state: Any, num_steps: int) -> Any:
        """The state after so many more steps; lanes that are done stay as they are."""
        return self._advance((weights, self._auxiliary), self._with_room(weights, lanes), state, jnp.int32(num_steps))

    def finish(self, weights: Weights, lanes: Lanes, state: Any) -> tuple[Outcome, Reports]:
        """Measures and reconstructions."""
        return self._finish((weights, self._auxiliary), self._with_room(weights, lanes), state), {}

    def arrays(self, state: Any) -> tuple[Any, Sequence[str]]:
        """The state is arrays alone."""
        return state, ()

    def restore(self, state: Any, arrays: Any, notes: Sequence[str]) -> Any:
        """Kept arrays where the fresh ones lie."""
        return jax.tree.map(lambda kept, fresh: jax.device_put(kept, fresh.sharding), arrays, state)


def digest(tree: Any) -> bytes:
    """A hash of the values of a pytree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.digest()
