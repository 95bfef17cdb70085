"""A compiled block: one `jit(shard_map(vmap(vmap(cell))))` over seeds and lanes; restarts are an axis inside the attack.

A lane is one (sample, metric, selector, ratio). Metrics, ratios, samples, seeds and restarts are array axes, never Python loops. What attackers hold is
made once per block and stays on the devices; a step of an attack reads it and moves nothing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from selgrad import devices, trees
from selgrad.base import Attack, Batch, Cache, Evidence, Grads, Model, Observation, Round, no_cache
from selgrad.experiment.engine import OnEvent, Reports, Weights
from selgrad.experiment.results import judged
from selgrad.experiment.setting import Setting
from selgrad.experiment.threat import Threat
from selgrad.experiment.types import Lanes, Seen, Shown, Tables
from selgrad.gradients import attacked, disclose
from selgrad.modality import Outcome


class Observer:
    """Computes what the attacker of a lane holds.

    Args:
      setting: data, model, update.
      threat: what the attacker is told.
      evidence: the client's metric, for an attacker that reads masks as evidence.
    """

    def __init__(self, setting: Setting, threat: Threat, evidence: Evidence | None) -> None:
        self._setting, self._threat, self._evidence = setting, threat, evidence

    def see(self, auxiliary: Any, tables: Tables, lane: Lanes) -> Seen:
        """Returns what the attacker sees of one lane.

        Args:
          auxiliary: what the attacker brings.
          tables: those of the lane's row, without the axis of seeds.
          lane: the lane's own arrays, without leading axes.
        """
        of_lane = lambda table: jax.tree.map(lambda leaf: leaf[lane.update], table)
        labels = self._setting.model.targets(lane.batch) if self._threat.known_labels else None
        sent = tuple(map(_shown, map(of_lane, tables.updates), lane.hidden))
        seen = Seen(sent, labels, lane.batch.valid if self._threat.known_padding else None, noise=of_lane(tables.noise))
        return Seen.of(disclose(self._observation((tables.weights, auxiliary), seen, self._setting.model), lane.batch))

    def observation(self, params: tuple[Weights, Any], seen: Seen) -> Observation:
        """Returns what is seen as an `Observation`; nothing is computed."""
        return self._observation(params, seen, attacked(self._setting.model))

    def _observation(self, params: tuple[Weights, Any], seen: Seen, model: Model) -> Observation:
        weights, auxiliary = params
        return Observation(
            model=model,
            sent=tuple(Round(w, shown.visible, shown.mask) for w, shown in zip(weights, seen.sent, strict=True)),
            update=self._setting.update,
            labels=seen.labels,
            valid=seen.valid,
            auxiliary=auxiliary,
            public=self._setting.public,
            evidence=self._evidence,
            estimate=seen.estimate,
            noise=seen.noise,
            completed=seen.completed,
        )


def _shown(update: Grads, hidden: Array) -> Shown:
    """Returns what is seen of an update whose hidden entries are given as packed bits."""
    mask = trees.unravel(jnp.unpackbits(hidden, count=trees.size(update)).astype(bool), update)
    return Shown(trees.hide(update, mask), mask)


class Held(NamedTuple):
    """The arrays that a block works on, on the devices.

    Attributes:
      params: each round's weights with the leading axis (seeds,), and what the attacker brings.
      key, seen, batch: those of every lane, leading axes (seeds, lanes); `batch` is the truth, which only measures read.
    """

    params: tuple[Weights, Any]
    key: Array
    seen: Seen
    batch: Batch


class Block:
    """One attack on one setting, compiled for a number of seeds and lanes, in three phases that keep their state on the devices.

    Args:
      setting: data, model, update.
      attack: the attack that runs.
      auxiliary: what the attacker brings, a pytree of arrays.
      observer: computes what the attacker holds of each lane.
      num_seeds, num_lanes: sizes of the two axes; lanes are padded to a multiple of the number of device groups.
      model_devices: devices in a group, which share the weights, the gradients and the masks of its lanes.
    """

    def __init__(self, setting: Setting, attack: Attack, auxiliary: Any, observer: Observer, *, num_seeds: int, num_lanes: int, model_devices: int = 1) -> None:
        self.attack, self._auxiliary, self._setting, self._observer = attack, auxiliary, setting, observer
        self.num_steps = attack.num_steps
        self.num_seeds = num_seeds
        self.mesh = devices.mesh(num_lanes, model_devices)
        groups = self.mesh.shape["lanes"]
        self.num_lanes = -(-num_lanes // groups) * groups
        modality, guess = setting.modality, setting.modality.guess(setting.public, setting.dataset)

        def start(params: tuple[Weights, Any], seen: Seen, key: Array) -> Any:
            return attack.start(key, observer.observation(params, seen))

        def advance(params: tuple[Weights, Any], seen: Seen, state: Any, num_steps: Array) -> Any:
            return attack.advance(observer.observation(params, seen), state, num_steps)

        def finish(params: tuple[Weights, Any], seen: Seen, state: Any, batch: Batch) -> Outcome:
            observation = observer.observation(params, seen)
            reconstruction = attack.finish(observation, state)
            outcome = modality.measure(batch, reconstruction, guess)
            return outcome._replace(measures={**outcome.measures, **judged(setting, attack, observation, batch, reconstruction)})

        everywhere, self._lanes_spec = PartitionSpec(), PartitionSpec(None, "lanes")

        def block(phase: Any, own: int, shared: int = 0, donated: tuple[int, ...] = ()) -> Any:
            """Maps a phase over seeds and lanes: after the weights come `own` arguments of each lane and `shared` ones."""
            in_axes: tuple[int | None, ...] = (*[0] * own, *[None] * shared)
            inner = jax.vmap(phase, (None, *in_axes))
            of_row = lambda params, *rest: inner((params, rest[-1]), *rest[:-1])
            outer = trees.mapped(of_row, (0, *in_axes, None), num_seeds)
            specs = (everywhere, *[self._lanes_spec] * own, *[everywhere] * shared)
            whole = lambda params, *rest: outer(params[0], *rest, params[1])
            return jax.jit(devices.shard(whole, self.mesh, specs, self._lanes_spec), donate_argnums=donated, out_shardings=self._sharding)

        def see_lane(auxiliary: Any, tables: Tables, lane: Lanes) -> Seen:
            seen = observer.see(auxiliary, tables, lane)
            # No entry is filled in before `prepare`.
            nothing = tuple(jax.tree.map(jnp.zeros_like, shown.mask) for shown in seen.sent)
            return seen._replace(completed=nothing) if attack.completes else seen

        of_row = jax.vmap(see_lane, (None, None, 0))
        see = devices.shard(trees.mapped(of_row, (None, 0, 0), num_seeds), self.mesh, (everywhere, everywhere, self._lanes_spec), self._lanes_spec)
        self._see: Any = see
        self._start = block(start, 2)
        # Each state is donated to the next: large ones, such as the pairs of L-BFGS, are never held twice.
        self._advance = block(advance, 2, 1, donated=(2,))
        self._finish = block(finish, 3)
        self._room: jax.ShapeDtypeStruct | None = None
        self.compile_seconds = 0.0
        self.memory_bytes = self.shared_bytes = 0

    def compile(self, tables: Tables, lanes: Lanes) -> None:
        """Compiles all phases ahead of time and reads how much memory the largest one takes.

        Args:
          tables, lanes: arrays or their shapes, since nothing is run.
        """
        started = time.perf_counter()
        tables, auxiliary = _shapes((tables, self._auxiliary), self._tables_at(tables))
        lanes, whole = _shapes(lanes, self._sharding), (tables.weights, auxiliary)
        with ThreadPoolExecutor(2) as compiler:
            # XLA compiles phases while Python traces the next; its own threads leave cores idle at times.
            ahead = lambda phase, *arguments: compiler.submit(phase.lower(*arguments).compile)
            seen = jax.eval_shape(self._see, auxiliary, tables, lanes)
            seen = _shapes(seen, self._seen_at(seen))
            see = ahead(jax.jit(self._see, out_shardings=self._seen_at(seen)), auxiliary, tables, lanes)
            if self.attack.estimate:
                without = lambda tree, axes: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype), tree)
                row, inputs = without(tables.weights[0], 1), without(lanes.batch.inputs, 2)
                room = jax.eval_shape(self._setting.model.embed, row, inputs)
                self._room = jax.ShapeDtypeStruct((*lanes.shape, *room.shape), room.dtype, sharding=self._sharding)
                seen = seen._replace(estimate=self._room)
            state = _shapes(jax.eval_shape(self._start, whole, seen, lanes.key), self._sharding)
            start = ahead(self._start, whole, seen, lanes.key)
            advance = ahead(self._advance, whole, seen, state, np.int32(1))
            finish = ahead(self._finish, whole, seen, state, lanes.batch)
            self._see, self._start, self._advance, self._finish = (phase.result() for phase in (see, start, advance, finish))
        self.compile_seconds = time.perf_counter() - started
        analyses = [phase.memory_analysis() for phase in (self._see, self._start, self._advance, self._finish)]
        self.memory_bytes = max((self.mesh.size * _bytes(analysis) for analysis in analyses if analysis is not None), default=0)
        on_a_device = (leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves((tables, auxiliary)))
        self.shared_bytes = self.mesh.size * sum(on_a_device)

    @property
    def _sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, self._lanes_spec)

    def _tables_at(self, tables: Tables) -> tuple[Tables, Any]:
        """Returns the shardings of the tables and of what the attacker brings: replicated over the groups of devices, split within each."""
        cut = lambda tree, *leading: jax.tree.map(lambda leaf: devices.over_model(self.mesh, leaf.shape, *leading), tree)
        updates, noise = cut((tables.updates, tables.noise), None, None)
        return Tables(cut(tables.weights, None), updates, noise), cut(self._auxiliary)

    def _seen_at(self, seen: Seen) -> Seen:
        """Returns the shardings of what is seen: each lane lies with its group, and arrays of a gradient's size are split within it."""
        cut = lambda tree: jax.tree.map(lambda leaf: devices.over_model(self.mesh, leaf.shape, None, "lanes"), tree)
        return jax.tree.map(lambda _: self._sharding, seen)._replace(sent=cut(seen.sent), noise=cut(seen.noise))

    def observe(self, tables: Tables, lanes: Lanes, cache: Cache | None = no_cache, on_event: OnEvent = lambda _: None) -> tuple[Held, Reports]:
        """Returns what the attackers of a block hold, with what an attack learns or fills in on the host, and the attack's report on that by lane.

        Args:
          tables, lanes: as `assemble` returns them.
          cache: keeps what is learned; with None nothing is learned, which is enough to time a step.
          on_event: called with a line before each mask.
        """
        tables, auxiliary = jax.device_put((tables, self._auxiliary), self._tables_at(tables))
        lanes = jax.device_put(lanes, self._sharding)
        seen = self._see(auxiliary, tables, lanes)
        reports: Reports = {}
        if self.attack.prepare is not None and cache is not None:
            seen, reports = self._prepare(tables.weights, seen, cache, on_event)
        elif self._room is not None:
            seen = seen._replace(estimate=jax.device_put(np.zeros(self._room.shape, self._room.dtype), self._sharding))
        return Held((tables.weights, auxiliary), lanes.key, seen, lanes.batch), reports

    def _prepare(self, weights: Weights, seen: Seen, cache: Cache, on_event: OnEvent) -> tuple[Seen, Reports]:
        assert self.attack.prepare is not None
        whole = jax.device_get(seen)
        reports: Reports = {}
        rows: list[Seen] = []
        done: dict[bytes, int] = {}
        for i, j in np.ndindex(self.num_seeds, self.num_lanes):
            if j == 0:
                of_row = jax.tree.map(lambda leaf, i=i: leaf[i], weights)
                of_weights = digest(of_row)
            of_lane: Seen = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], whole)
            # Lanes that pad a block and masks that two metrics share are prepared once.
            fingerprint = of_weights + digest(of_lane.sent)
            if fingerprint in done:
                index = done[fingerprint]
                reports[i, j] = reports[divmod(index, self.num_lanes)]
                rows.append(rows[index])
                continue
            done[fingerprint] = len(rows)
            on_event(f"preparing mask {len(rows) + 1} of {self.num_seeds * self.num_lanes}")
            prepared, reports[i, j] = self.attack.prepare(self._observer.observation((of_row, self._auxiliary), jax.tree.map(jnp.asarray, of_lane)), cache)
            rows.append(Seen.of(prepared))
        stack = lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]).reshape(self.num_seeds, self.num_lanes, *leaves[0].shape)
        stacked: Seen = jax.tree.map(stack, *rows)
        return jax.device_put(stacked, self._seen_at(stacked)), reports

    def start(self, held: Held) -> Any:
        """Returns the state of every lane before its first step."""
        return self._start(held.params, held.seen, held.key)

    def advance(self, held: Held, state: Any, num_steps: int) -> Any:
        """Returns the state after `num_steps` more steps; finished lanes stay as they are. The state that is passed in is donated."""
        return self._advance(held.params, held.seen, state, np.int32(num_steps))

    def finish(self, held: Held, state: Any) -> tuple[Outcome, Reports]:
        """Returns measures and reconstructions."""
        return self._finish(held.params, held.seen, state, held.batch), {}

    def arrays(self, state: Any) -> tuple[Any, Sequence[str]]:
        """Returns the state, which consists of arrays alone."""
        return state, ()

    def restore(self, state: Any, arrays: Any, notes: Sequence[str]) -> Any:
        """Places stored arrays on the devices where the fresh ones lie."""
        return jax.tree.map(lambda kept, fresh: jax.device_put(kept, fresh.sharding), arrays, state)


def _shapes(tree: Any, shardings: Any) -> Any:
    """Returns the shapes of arrays (or of shapes) with shardings; a single sharding applies to all leaves."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _, every=shardings: every, tree)
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings)


def _bytes(analysis: Any) -> int:
    """Returns the bytes that a compiled phase needs on one device."""
    return int(analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes)


def digest(tree: Any) -> bytes:
    """Returns a hash of the values of a pytree."""
    hasher = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        hasher.update(np.ascontiguousarray(leaf).tobytes())
    return hasher.digest()
