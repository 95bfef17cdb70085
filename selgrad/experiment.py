"""The only corridor between the rooms: from a data set, a model and an update to a compiled block of attack cells.

A block is one `jit(shard_map(vmap(vmap(cell))))` over seeds and lanes; a lane is one (sample, metric, selector, ratio), and restarts are
an axis inside the attack. Metrics, ratios, samples, seeds and restarts are array axes, never Python loops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.sharding import PartitionSpec

from selgrad import checkpoints, devices, encryption, jacobian, trees
from selgrad.base import (
    Attack,
    Batch,
    Evidence,
    GradientContext,
    Grads,
    InputSpec,
    Key,
    Mask,
    Model,
    Params,
    Protection,
    Ranks,
    Reconstruction,
    Remember,
    Rounds,
    Scores,
    Sent,
    TextSpec,
    Update,
    forget,
)
from selgrad.config import Spec, make_spec, parse_encryption, parse_rounds
from selgrad.data import Dataset, TextDataset
from selgrad.encryption import make_keys
from selgrad.errors import UsageError
from selgrad.evaluation import MEASURES, TEXT_MEASURES, align, align_texts, token_accuracy
from selgrad.evaluation.certificates import Certificate, certify, float32_noise, gaussian_prior, grams, van_trees
from selgrad.gradients import observe
from selgrad.masks import CohortSelector
from selgrad.protections import Protected
from selgrad.significance import Probed


def fold(key: Key, *names: str | int) -> Key:
    """A key for a named purpose, the same in every process and for every size of sweep."""
    for name in names:
        key = jax.random.fold_in(key, name if isinstance(name, int) else zlib.crc32(name.encode()))
    return key


@dataclasses.dataclass(frozen=True)
class Client:
    """One seed's weights, and every sample's batch, update as it is sent, what of it is not sent, and the noise on each leaf, stacked along a leading axis."""

    params: Params
    batches: Batch
    grads: Grads
    unsent: Mask | None = None
    noise: Grads | None = None


class Setting:
    """A data set, a model and an update, built; with what a defender computes on them, cached by seed.

    Args:
      dataset, model, update: specs.
      samples: which batches of the data set; all of them by default.
      public: data that everybody has, for metrics and attackers that learn from them.
      rounds: as `parse_rounds` gives it: how often each client sends an update of the same data, and the `server_learning_rate` times the mean of the
        samples' updates that the global weights lose between two rounds; None is one round.
      protection: what clients do to their updates besides encrypting; None is nothing.

    Raises:
      UsageError: if the data set is smaller than one batch, has no such sample, or its gradients do not fit in memory.
      GradientError: if a client update is not finite.
    """

    def __init__(
        self,
        dataset: Spec,
        model: Spec,
        update: Spec,
        samples: Sequence[int] | None = None,
        public: Spec | None = None,
        rounds: Mapping[str, Any] | None = None,
        protection: Spec | None = None,
    ) -> None:
        self.protection_spec = protection or make_spec("protection", "none")
        self.specs = (dataset, model, update)
        given = rounds or parse_rounds(None)
        num_rounds = given["count"]
        self.num_rounds, self._server_learning_rate = num_rounds, given["server_learning_rate"]
        self.dataset: Dataset | TextDataset = dataset.build()
        self.model: Model = model.build(self.dataset.spec)
        self.update: Update = update.build()
        self.protection: Protection = self.protection_spec.build()
        self._is_noisy = self.protection_spec.name != "none"
        if self.protection.foreseen is not None:
            self.update = Protected(self.update, self.protection.foreseen)
        available = len(self.dataset) // self.update.batch_size
        if not available:
            raise UsageError(f"batch_size={self.update.batch_size} is larger than the {len(self.dataset)} samples of {dataset.label}; raise count")
        self.samples = tuple(range(available) if samples is None else samples)
        for sample in self.samples:
            if not 0 <= sample < available:
                raise UsageError(f"sample={sample} lies outside 0 .. {available - 1}")
        self.num_samples = len(self.samples)
        sent = jax.eval_shape(lambda key: self.model.split(self.model.init(key))[0], jax.random.key(0))
        self.num_total = trees.size(sent)
        always = [trees.matches(path, self.model.always_encrypted) for path in trees.paths(sent)]
        self.num_always = sum(int(np.prod(leaf.shape)) for leaf, yes in zip(jax.tree.leaves(sent), always, strict=True) if yes)
        # Gradients, one metric's scores and their ranks.
        self.num_bytes = needed = 3 * 4 * self.num_samples * self.num_total * num_rounds
        budget = devices.memory_budget()
        if needed > budget:
            raise UsageError(
                f"gradients, scores and ranks of {self.num_samples:,} samples of {self.num_total:,} entries need {needed / 1e9:.1f} GB, and "
                f"{budget / 1e9:.1f} GB are free; lower count of {dataset.label}"
            )
        self._public_spec = public
        self.public: Batch | None = None if public is None else self._public(public)
        self._programs: dict[Any, Any] = {}
        self.client = functools.lru_cache(maxsize=2 * num_rounds)(self._client)
        self.ranks = functools.lru_cache(maxsize=32 * num_rounds)(self._ranks)
        self.scores = functools.lru_cache(maxsize=4)(self._scores)
        self.certificates = functools.lru_cache(maxsize=32)(self._certificates)
        self.standard_error = functools.lru_cache(maxsize=32)(self._standard_error)

    def _public(self, spec: Spec) -> Batch:
        """Every batch of the public data, stacked."""
        size = self.update.batch_size
        if isinstance(self.dataset, TextDataset) and spec.get("max_length") is not None:
            # Cut and padded to the clients' length, as an attacker would.
            length = self.dataset.spec.shape[0]
            cut = tuple((k, min(v, length) if k == "max_length" else v) for k, v in spec.arguments)
            data = dataclasses.replace(spec, arguments=cut).build().padded(length)
        else:
            data = spec.build()
        if data.spec.shape != self.dataset.spec.shape or type(data.spec) is not type(self.dataset.spec):
            raise UsageError(f"public: {spec.label} holds inputs of shape {data.spec.shape}, and the clients' have shape {self.dataset.spec.shape}")
        if isinstance(data.spec, TextSpec) and data.spec != self.dataset.spec:
            raise UsageError(f"public: {spec.label} has another vocabulary than the clients' data; give both the same tokenizer folder")
        if len(data) < size:
            raise UsageError(f"public: {spec.label} holds {len(data)} samples and a batch has {size}; raise count")
        batches = [data.batch(i, size) for i in range(len(data) // size)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

    @property
    def program(self) -> Any:
        """What compiled attacks depend on: settings of which this is equal share them. Noise and rounding are in the data."""
        return self.specs[:2], self.update, self._public_spec, self.num_rounds, self.samples, self._is_noisy

    @property
    def title(self) -> str:
        """Labels of data set, model and update, and of a protection where there is one."""
        shown = self.specs if self.protection_spec.name == "none" else (*self.specs, self.protection_spec)
        return " / ".join(spec.label for spec in shown)

    @property
    def input_spec(self) -> InputSpec | TextSpec:
        """Of the model, which may have more classes than the data set."""
        return self.model.input_spec

    def num_selected(self, ratio: float) -> int:
        """Encrypted entries: those that always are, and the ratio of the others."""
        return self.num_always + trees.count(ratio, self.num_total - self.num_always)

    @property
    def leaves_out(self) -> bool:
        """Whether the protection leaves entries out."""
        sent = jax.eval_shape(lambda key: self.model.split(self.model.init(key))[0], jax.random.key(0))
        return jax.eval_shape(self.protection, sent, jax.random.key(0)).unsent is not None

    def forget(self) -> None:
        """Drops updates, scores and ranks, which are computed again when they are asked for."""
        for kept in (self.client, self.scores, self.ranks):
            kept.cache_clear()

    def num_visible(self, lane: Lane) -> int:
        """Entries of a lane's first update that are sent in the clear."""
        count, unsent = self.num_selected(lane.ratio), self.client(lane.seed).unsent
        if unsent is None:
            return self.num_total - count
        ranks = self.ranks(lane.metric, lane.selector, lane.seed)[0]
        pairs = zip(jax.tree.leaves(ranks), jax.tree.leaves(unsent), strict=True)
        return sum(int(((leaf[lane.sample] >= count) & ~np.asarray(out[lane.sample])).sum()) for leaf, out in pairs)

    def _weights(self, seed: int, round_index: int) -> Params:
        """The global weights of a round: a stored checkpoint's or fresh ones, and after them what the samples' mean update makes of these."""
        if round_index:
            before = self.client(seed, round_index - 1)
            sent, frozen = self.model.split(before.params)
            moved = jax.tree.map(lambda w, g: w - self._server_learning_rate * g.mean(axis=0), sent, before.grads)
            return self.model.merge(moved, frozen)
        params = self.model.init(fold(jax.random.key(seed), "params"))
        stored = self.specs[1].get("checkpoint")
        return params if stored is None else checkpoints.load_params(stored, like=params)

    def _client(self, seed: int, round_index: int = 0) -> Client:
        params = self._weights(seed, round_index)
        batches = [self.dataset.batch(i, self.update.batch_size) for i in self.samples]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

        keys = _each_key(fold(jax.random.key(seed), "protection", round_index), self.samples)

        def every(params: Params, items: tuple[Batch, Key]) -> tuple[Sent, Grads | None]:
            def one(item: tuple[Batch, Key]) -> tuple[Sent, Grads | None]:
                batch, key = item
                labels = jax.nn.one_hot(self.model.targets(batch), self.input_spec.num_classes)
                update = self.update.client(self.model, params, batch, labels)
                return self.protection(update, key), self.protection.noise(update) if self._is_noisy else None

            return jax.lax.map(one, items)

        sent, noise = self._program("update", every, params, (stacked, keys))(params, (stacked, keys))
        trees.require_finite(sent.grads, f"the client update of {self.specs[1].label} (seed {seed})")
        return Client(params, stacked, sent.grads, sent.unsent, noise)

    def _program(self, name: Any, function: Any, *arguments: Any) -> Any:
        """The function compiled in full float32 precision, once for all seeds."""
        if name not in self._programs:
            with jax.default_matmul_precision("highest"):
                self._programs[name] = jax.jit(function).lower(*arguments).compile()
        return self._programs[name]

    def _scores(self, metric: Spec, seed: int, round_index: int = 0) -> tuple[Scores, float]:
        """Scores of every sample, leading axis (num_samples,), and seconds per sample after compilation."""
        client, score = self.client(seed, round_index), metric.build()
        key = fold(jax.random.key(seed), "metric")
        key = fold(key, round_index) if round_index else key
        keys = _each_key(key, self.samples)

        def every(params: Params, items: tuple[Batch, Grads, Key], public: Batch | None) -> Scores:
            def one(item: tuple[Batch, Grads, Key]) -> Scores:
                batch, grads, key = item
                return score(GradientContext(model=self.model, params=params, batch=batch, update=self.update, grads=grads, key=key, public=public))

            return jax.lax.map(one, items)

        arguments = (client.params, (client.batches, client.grads, keys), self.public)
        double = metric.get("precision") == "float64"
        with devices.double_precision() if double else contextlib.nullcontext():
            if double:
                arguments = jax.tree.map(_widen, arguments)
            compiled = self._program(metric, every, *arguments)
            started = time.perf_counter()
            scores = jax.block_until_ready(compiled(*arguments))
            seconds = (time.perf_counter() - started) / self.num_samples
            scores = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), scores) if double else scores
        trees.require_finite(scores, f"the scores of {metric.label}")
        return scores, seconds

    def _standard_error(self, metric: Spec) -> float:
        """Of the squared norms that a metric estimates from probes, relative to them; 0 for one that is exact."""
        score, client = metric.build(), self.client(0)
        if not isinstance(score, Probed):
            return 0.0
        embedded = jax.eval_shape(jax.vmap(self.model.embed, (None, 0)), client.params, client.batches.inputs)
        return score.standard_error(int(np.prod(embedded.shape[1:])), self.update.batch_size)

    def _ranks(self, metric: Spec, selector: Spec, seed: int, round_index: int = 0) -> tuple[Ranks, float, float]:
        """Ranks of every sample (NumPy, leading axis), seconds per sample to score, seconds per sample to rank."""
        scores, score_seconds = self.scores(metric, seed, round_index)
        choose, always = selector.build(), self.model.always_encrypted

        first = [trees.matches(path, always) for path in trees.paths(scores)]
        if choose is trees.rank and jax.default_backend() == "cpu":
            started = time.perf_counter()
            leaves, treedef = jax.tree.flatten(scores)
            ranks = [np.empty(leaf.shape, np.int32) for leaf in leaves]
            for i in range(self.num_samples):
                one = trees.rank_on_host([np.asarray(leaf)[i] for leaf in leaves], first)
                for whole, part in zip(ranks, one, strict=True):
                    whole[i] = part
            return jax.tree.unflatten(treedef, ranks), score_seconds, (time.perf_counter() - started) / self.num_samples

        def rank(one: Scores) -> Ranks:
            ranks = choose(one)
            return trees.rank_first(ranks, first) if any(first) else ranks

        if isinstance(choose, CohortSelector):
            started = time.perf_counter()
            shared = choose.of_cohort(scores)
            shared = jax.tree.map(np.asarray, trees.rank_first(shared, first) if any(first) else shared)
            everyone = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self.num_samples, *leaf.shape)), shared)
            return everyone, score_seconds, (time.perf_counter() - started) / self.num_samples

        order = self._program(selector, lambda s: jax.lax.map(rank, s), scores)
        started = time.perf_counter()
        ranks = jax.block_until_ready(order(scores))
        mask_seconds = (time.perf_counter() - started) / self.num_samples
        return jax.tree.map(np.asarray, ranks), score_seconds, mask_seconds

    def _certificates(self, metric: Spec, selector: Spec, seed: int, counts: tuple[int, ...]) -> tuple[list[list[Certificate]], list[float]]:
        """What masks of so many hidden entries (ascending) leave identifiable; noise is float32's rounding and the protection's, labels count as known.

        Returns:
          Certificates by sample and count; and for each count a lower bound on the MSE of any attacker, averaged over the samples and their masks (NaN for
          text, whose samples have different numbers of unknown coordinates, and where noise is not Gaussian).

        Raises:
          UsageError: if the Jacobian does not fit in memory.
        """
        each = [self.certify(metric, selector, seed, counts, sample) for sample in range(self.num_samples)]
        if isinstance(self.input_spec, TextSpec):
            return [found for found, _, _ in each], [math.nan] * len(counts)
        if not self.protection.gaussian:
            # A Gaussian tells the least of all noise of a variance, so the bound would be none.
            return [found for found, _, _ in each], [math.nan] * len(counts)
        informations = zip(*(known for _, known, _ in each), strict=True)
        return [found for found, _, _ in each], [van_trees(known, each[0][2]) for known in informations]

    def certify(self, metric: Spec, selector: Spec, seed: int, counts: tuple[int, ...], sample: int) -> tuple[list[Certificate], list[Any], Any]:
        """One sample's certificates by count, of all rounds together, the Fisher information of what each mask leaves visible, and the prior's precision.

        Raises:
          UsageError: if the Jacobian does not fit in memory.
        """
        rounds = range(self.num_rounds)
        flat = lambda t: np.concatenate([np.asarray(leaf[sample]).reshape(-1) for leaf in jax.tree.leaves(self.ranks(metric, selector, seed, t)[0])])
        # The rounds' rows one below the other; with these ranks the first count * rounds of all are the first count of each.
        ranks = np.concatenate([flat(t).astype(np.int64) * self.num_rounds + t for t in rounds])
        counts = tuple(count * self.num_rounds for count in counts)
        parts = [self._jacobian(seed, sample, t) for t in rounds]
        matrix, grads, noise = (np.concatenate([part[i] for part in parts]) for i in range(3))
        prior = parts[0][3]
        informations = list(grams(matrix, ranks, counts, 1 / noise**2))
        return certify(matrix, grads, ranks, counts, noise=noise, prior=prior, informations=informations), informations, prior

    def require_certifiable(self) -> jax.ShapeDtypeStruct:
        """The shape of one batch's embedded inputs, whose Jacobian certificates need.

        Raises:
          UsageError: if it does not fit in memory, or a protection leaves entries out.
        """
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        embedded = jax.eval_shape(self.model.embed, params, self.dataset.batch(self.samples[0], self.update.batch_size).inputs)
        if self.leaves_out:
            raise UsageError(
                f"certificates speak of entries that are sent or encrypted, and {self.protection_spec.label} leaves some out; do without one of them"
            )
        needed, budget = (2 + self.num_rounds) * 8 * self.num_total * int(np.prod(embedded.shape)), devices.memory_budget()
        if needed > budget:
            raise UsageError(
                f"certificates of {self.specs[1].label} need {needed / 1e9:.1f} GB for a Jacobian of {self.num_total:,} entries by "
                f"{int(np.prod(embedded.shape)):,} inputs, and {budget / 1e9:.1f} GB are free; take a smaller model, batch or input"
            )
        return embedded

    def _jacobian(self, seed: int, sample: int, round_index: int) -> tuple[Any, Any, Any, Any]:
        """J (n, d) in float64 by the inputs that an attacker does not know, the update, its noise, and the prior's precision."""
        embedded = self.require_certifiable()
        client, spec = self.client(seed, round_index), self.input_spec
        batch, grads = jax.tree.map(lambda leaf: leaf[sample], (client.batches, client.grads))

        def every(params: Params, batch: Batch, grads: Grads) -> Array:
            context = GradientContext(model=self.model, params=params, batch=batch, update=self.update, grads=grads, key=jax.random.key(0))
            return jacobian.dense(jacobian.by_inputs(context))

        with devices.double_precision():
            arguments = jax.tree.map(_widen, (client.params, batch, grads))
            found = np.asarray(self._program("jacobian", every, *arguments)(*arguments))
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
        flat: Any = np.concatenate([leaf.astype(np.float64).reshape(-1) for leaf in leaves])
        prior: Any
        if isinstance(spec, TextSpec):
            # Padding and the tokens that open and close a sentence are known.
            unknown = np.ones(batch.inputs.shape, bool) if batch.valid is None else np.asarray(batch.valid)
            unknown = unknown & ~np.isin(np.asarray(batch.inputs), spec.special_ids)
            found = found[:, np.broadcast_to(unknown[..., None], embedded.shape).reshape(-1)]
            # The variance of a random token's embedding.
            words = jnp.arange(spec.vocabulary_size)[None]
            prior = 1 / float(jnp.var(self.model.embed(client.params, words[:, : spec.shape[0]])))
        elif self.public is not None:
            prior = gaussian_prior(np.asarray(self.public.inputs))
        else:
            # Uniform pixels.
            prior = 12 / float(np.mean([(high - low) ** 2 for low, high in zip(spec.low, spec.high, strict=True)]))
        added = zip(jax.tree.leaves(self.protection.noise(grads)), leaves, strict=True)
        noise = np.hypot(float32_noise(leaves), np.concatenate([np.full(leaf.size, float(std)) for std, leaf in added]))
        return found, flat, noise, prior


def _each_key(key: Key, samples: Sequence[int]) -> Key:
    """One key a sample, the same whichever others there are."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(samples))


def _widen(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf


class Weights(NamedTuple):
    """The global weights of one block, leading axis (seeds,); those of later rounds have (seeds, rounds)."""

    first: Params
    later: Params | None = None


class Lanes(NamedTuple):
    """The arrays of one block; every leaf has the leading axes (seeds, lanes), and what belongs to later rounds (seeds, lanes, rounds)."""

    key: Key
    batch: Batch
    grads: Grads
    ranks: Ranks
    num_selected: Array
    estimate: Array | None = None
    later: tuple[Grads, Ranks] | None = None
    noise: Grads | None = None


class Outcome(NamedTuple):
    """What a block leaves of each lane.

    Attributes:
      measures: by name.
      outputs: pixels (B, *shape) in [0, 1], or tokens (B, length).
      labels: (B, *label_shape).
      reports: what host attacks say of themselves, by (row, lane).
    """

    measures: dict[str, Array]
    outputs: Array
    labels: Array
    reports: dict[tuple[int, int], str] = {}  # noqa: RUF012 (never changed)


class Block:
    """One attack on one setting, compiled for a number of seeds and lanes, in three phases that keep their state on the devices.

    Args:
      setting: data, model, update.
      attack: spec.
      num_seeds, num_lanes: sizes of the two axes.
      known_labels, known_padding: whether the observation carries the labels, and which positions are padding.
      evidence: the metric and the selector of all lanes, for an attacker that reads masks as evidence.
    """

    def __init__(
        self,
        setting: Setting,
        attack: Spec,
        *,
        num_seeds: int,
        num_lanes: int,
        known_labels: bool,
        known_padding: bool = True,
        evidence: tuple[Spec, Spec] | None = None,
    ) -> None:
        self.attack, self._auxiliary = build_attack(attack, setting)
        self._setting, self._learns = setting, attack.get("hidden") == "learned"
        self.num_steps = self.attack.num_steps
        self.num_seeds = num_seeds
        self.mesh = devices.mesh(num_lanes)
        self.num_lanes = -(-num_lanes // self.mesh.size) * self.mesh.size
        model, update, method, public = setting.model, setting.update, self.attack, setting.public
        if evidence is not None and setting.leaves_out:
            raise UsageError(
                f"hidden='bounded' reads masks of the largest scores, and {setting.protection_spec.label} hides entries besides; take another rung"
            )
        told = None if evidence is None else _evidence(*evidence)

        def observation(params: tuple[Weights, Any], lane: Lanes) -> Any:
            (weights, later), auxiliary = params
            mask = trees.top(lane.ranks, lane.num_selected)
            labels = model.targets(lane.batch) if known_labels else None
            valid = lane.batch.valid if known_padding else None
            seen = observe(model, update, weights, lane.grads, mask, labels, valid, auxiliary, public, told, lane.noise)
            if lane.later is not None:
                grads, ranks = lane.later
                masks = trees.top(ranks, lane.num_selected)
                seen = dataclasses.replace(seen, later=Rounds(later, trees.hide(grads, masks), masks))
            return dataclasses.replace(seen, estimate=lane.estimate)

        self._observe = observation

        def start(params: tuple[Weights, Any], lane: Lanes) -> Any:
            return method.start(lane.key, observation(params, lane))

        def advance(params: tuple[Weights, Any], lane: Lanes, state: Any, num_steps: Array) -> Any:
            return method.advance(observation(params, lane), state, num_steps)

        def finish(params: tuple[Weights, Any], lane: Lanes, state: Any) -> Outcome:
            return measure(model.input_spec, lane.batch, method.finish(observation(params, lane), state))

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

    def prepare(
        self, params: Weights, lanes: Lanes, remember: Remember = forget, on_event: Callable[[str], None] = lambda _: None
    ) -> tuple[Lanes, dict[tuple[int, int], str]]:
        """Lanes with what the attack learns or fills in on the host before it starts, and what it says of each; as they are where it does neither.

        Args:
          params, lanes: as `assemble` gives them.
          remember: keeps what is learned.
          on_event: called with a line before each mask.
        """
        if self.attack.prepare is None:
            return lanes, {}
        observation = jax.jit(self._observe)
        reports: dict[tuple[int, int], str] = {}
        rows: list[Any] = []
        done: dict[bytes, int] = {}
        weights, of_weights = None, b""
        for i, j in np.ndindex(lanes.num_selected.shape):
            if j == 0:
                weights = jax.tree.map(lambda leaf, i=i: leaf[i], params)
                of_weights = _digest(weights)
            seen = observation((weights, self._auxiliary), jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], lanes))
            # Lanes that pad a block, and masks that two metrics share, are prepared once.
            digest = of_weights + _digest((seen.visible, seen.mask, seen.later))
            if digest in done:
                at = done[digest]
                reports[i, j] = reports[divmod(at, lanes.num_selected.shape[1])]
                rows.append(rows[at])
                continue
            done[digest] = len(rows)
            on_event(f"preparing mask {len(rows) + 1} of {lanes.num_selected.size}")
            seen, reports[i, j] = self.attack.prepare(seen, remember)
            as_ranks = lambda mask: jax.tree.map(lambda m: np.where(m, 0, 1).astype(np.int32), mask)
            later = None if seen.later is None else (seen.later.visible, as_ranks(seen.later.mask))
            rows.append((seen.visible, as_ranks(seen.mask), seen.estimate, later))
        shape = lanes.num_selected.shape
        grads, ranks, estimate, after = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves).reshape(*shape, *leaves[0].shape)), *rows)
        return lanes._replace(grads=grads, ranks=ranks, num_selected=jnp.ones(shape, jnp.int32), estimate=estimate, later=after), reports

    def _room(self, params: Weights, lanes: Lanes) -> Lanes:
        """Lanes with room for a decoder's estimate where the attack will have one, so that planning compiles what will run."""
        if lanes.estimate is not None or not self._learns:
            return lanes
        weights, inputs = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (params.first, lanes.batch.inputs[0]))
        embedded = jax.eval_shape(self._setting.model.embed, weights, inputs)
        return lanes._replace(estimate=jnp.zeros((*lanes.num_selected.shape, *embedded.shape), embedded.dtype))

    def compile(self, params: Weights, lanes: Lanes) -> None:
        """Compiles the three phases ahead of time and reads how much memory the largest takes."""
        started = time.perf_counter()
        lanes = self._room(params, lanes)
        whole = (params, self._auxiliary)
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

    def start(self, params: Weights, lanes: Lanes) -> Any:
        """The state of every lane before its first step."""
        return self._start((params, self._auxiliary), self._room(params, lanes))

    def advance(self, params: Weights, lanes: Lanes, state: Any, num_steps: int) -> Any:
        """The state after so many more steps; lanes that are done stay as they are."""
        return self._advance((params, self._auxiliary), self._room(params, lanes), state, jnp.int32(num_steps))

    def finish(self, params: Weights, lanes: Lanes, state: Any) -> Outcome:
        """Measures and reconstructions."""
        outcome: Outcome = self._finish((params, self._auxiliary), self._room(params, lanes), state)
        return outcome


class HostBlock:
    """An attack that cannot be traced, behind the interface of `Block`: one lane after the other, a lane being a step.

    Args:
      block: whose observations are attacked; nothing of it is compiled.
      setting: of the block.
      num_lanes: of a row; a block's own number is padded to its devices.
    """

    compile_seconds = 0.0
    memory_bytes = 0

    def __init__(self, block: Block, setting: Setting, num_lanes: int) -> None:
        self._block, self._setting = block, setting
        self.attack, self.num_seeds, self.num_lanes = block.attack, block.num_seeds, num_lanes
        self.num_steps = self.num_seeds * num_lanes
        self._observation = jax.jit(block._observe)
        self._remember: Remember = forget

    def prepare(
        self, params: Weights, lanes: Lanes, remember: Remember = forget, on_event: Callable[[str], None] = lambda _: None
    ) -> tuple[Lanes, dict[tuple[int, int], str]]:
        """The lanes as they are; each attack says for itself what it uses."""
        self._remember = remember
        return lanes, {}

    def compile(self, params: Weights, lanes: Lanes) -> None:
        """Nothing to do before the first lane."""

    def start(self, params: Weights, lanes: Lanes) -> dict[str, Any]:
        """Room for what each lane will have found."""
        rows, columns = lanes.num_selected.shape
        size, spec = len(lanes.batch.inputs[0, 0]), self._setting.input_spec
        return {
            "done": np.zeros((), np.int64),
            "outputs": np.zeros((rows, columns, size, *spec.shape), np.int32 if isinstance(spec, TextSpec) else np.float32),
            "labels": np.zeros((rows, columns, size, *spec.label_shape), np.int32),
            "numbers": np.zeros((rows, columns, 4), np.float64),
            "reports": np.zeros((rows, columns, 4096), np.uint8),
        }

    def advance(self, params: Weights, lanes: Lanes, state: dict[str, Any], num_steps: int) -> dict[str, Any]:
        """Attacks the next lanes."""
        state = {name: np.array(value) for name, value in state.items()}
        for _ in range(num_steps):
            done = int(state["done"])
            if done >= self.num_steps:
                break
            i, j = divmod(done, self.num_lanes)
            weights = jax.tree.map(lambda leaf, i=i: leaf[i], params)
            lane = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], lanes)
            found = self.attack.reconstruct(lane.key, self._observation((weights, self._block._auxiliary), lane), self._remember)
            state["outputs"][i, j], state["labels"][i, j] = np.asarray(found.inputs), np.asarray(found.labels)
            state["numbers"][i, j] = [float(x) for x in (found.objective, found.diverged, found.restart, found.num_evaluations)]
            text = (found.report or "").encode()[:4096]
            state["reports"][i, j, : len(text)] = np.frombuffer(text, np.uint8)
            state["done"] = np.asarray(done + 1)
        return state

    def finish(self, params: Weights, lanes: Lanes, state: dict[str, Any]) -> Outcome:
        """What was found."""
        names = ("objective", "diverged", "restart", "num_evaluations")
        reports = {(i, j): bytes(state["reports"][i, j]).rstrip(b"\0").decode() for i in range(len(state["reports"])) for j in range(self.num_lanes)}
        measures: dict[str, Any] = {name: state["numbers"][..., k] for k, name in enumerate(names)}
        spec = self._setting.input_spec
        if isinstance(spec, TextSpec):
            return Outcome(measures, state["outputs"], state["labels"], reports)

        def one(batch: Batch, inputs: Array, labels: Array, numbers: Array) -> Outcome:
            objective, diverged, restart, evaluations = numbers
            every = (inputs[None], labels[None], objective[None])
            return measure(spec, batch, Reconstruction(inputs, labels, objective, diverged > 0, restart, *every, evaluations))

        found = jax.jit(jax.vmap(jax.vmap(one)))(lanes.batch, state["outputs"], state["labels"], state["numbers"].astype(np.float32))
        return found._replace(reports=reports)


def _digest(tree: Any) -> bytes:
    """A hash of the values of a pytree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.digest()


def reads_evidence(attack: Spec) -> bool:
    """Whether an attack takes the mask as evidence, so that its blocks hold one metric and one selector each."""
    return attack.get("hidden") == "bounded"


def _evidence(metric: Spec, selector: Spec) -> Evidence:
    if selector.name not in ("global_top", "per_leaf_top"):
        raise UsageError(
            f"hidden='bounded' reads masks of the largest scores, and selector {selector.label!r} chooses by more; take global_top or per_leaf_top"
        )
    return Evidence(metric.build(), selector.name == "per_leaf_top")


def make_block(setting: Setting, attack: Spec, *, num_lanes: int, **options: Any) -> Block | HostBlock:
    """A compiled block, or one on the host where the attack cannot be traced."""
    block = Block(setting, attack, num_lanes=num_lanes, **options)
    return block if block.attack.traceable else HostBlock(block, setting, num_lanes)


def build_attack(attack: Spec, setting: Setting) -> tuple[Attack, Any]:
    """The attack, and what the attacker brings: the parameters of its language model, where it names one.

    Raises:
      UsageError: if the language model has another vocabulary than the clients.
    """
    folder = attack.get("language_model")
    if folder is None:
        return attack.build(), None
    from selgrad.language_model import load

    spec = setting.input_spec
    if not isinstance(spec, TextSpec):
        raise UsageError(f"{attack.name} reads text and {setting.specs[0].label} holds images; choose dlg, idlg or inverting_gradients")
    model, params = load(folder, spec)
    return dataclasses.replace(attack, arguments=tuple((k, model if k == "language_model" else v) for k, v in attack.arguments)).build(), params


def measure(spec: InputSpec | TextSpec, batch: Batch, found: Reconstruction) -> Outcome:
    """Aligns reconstructed images with the truth and measures them; a diverged one has NaN in every measure. Text is measured where it is decoded."""
    if isinstance(spec, TextSpec):
        numbers = {name: getattr(found, name) for name in ("objective", "diverged", "restart", "num_evaluations")}
        return Outcome(numbers, found.inputs, found.labels)
    aligned = align(spec, batch, found)
    measures: dict[str, Array] = {
        "objective": found.objective,
        "diverged": found.diverged,
        "restart": found.restart,
        "num_evaluations": found.num_evaluations,
    }
    for compare in MEASURES.values():
        for name, value in compare(spec, batch, aligned).items():
            measures[name] = jnp.where(found.diverged, jnp.nan, value)
    return Outcome(measures, jnp.clip(spec.pixels(aligned.inputs), 0, 1), aligned.labels)


class Found(NamedTuple):
    """One lane's result on the host.

    Attributes:
      measures: by name.
      outputs: aligned pixels or tokens.
      labels: aligned.
      truth, texts: decoded sentences, empty for images.
    """

    measures: dict[str, float]
    outputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    truth: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def complete(setting: Setting, outcome: Outcome, row: int, column: int, lane: Lane) -> Found:
    """What a block on the device left of one lane, with what only the host can measure: decoded text."""
    numbers = {name: float(value[row, column]) for name, value in outcome.measures.items()}
    outputs, labels = np.asarray(outcome.outputs[row, column]), np.asarray(outcome.labels[row, column])
    spec, dataset = setting.input_spec, setting.dataset
    if not isinstance(spec, TextSpec) or not isinstance(dataset, TextDataset):
        return Found(numbers, outputs, labels)
    batch = jax.tree.map(lambda leaf: np.asarray(leaf[lane.sample]), setting.client(lane.seed).batches)
    truths, texts = ([dataset.decode(sequence) for sequence in tokens] for tokens in (batch.inputs, outputs))
    order = align_texts(truths, texts)
    outputs, labels, texts = outputs[order], labels[order], [texts[i] for i in order]
    content = np.asarray(batch.valid) & ~np.isin(batch.inputs, spec.special_ids)
    measures = {**token_accuracy(batch.inputs, outputs, content)}
    for compare in TEXT_MEASURES.values():
        each = [compare(t, f) for t, f in zip(truths, texts, strict=True)]
        measures |= {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    wanted = np.asarray(setting.model.targets(jax.tree.map(jnp.asarray, batch)))
    measures["label_correct"] = float((labels == wanted)[wanted >= 0].mean())
    if numbers["diverged"]:
        measures = dict.fromkeys(measures, float("nan"))
    return Found({**numbers, **measures}, outputs, labels, tuple(truths), tuple(texts))


def success_rule(given: Mapping[str, Any], spec: InputSpec | TextSpec) -> tuple[str, float]:
    """The measure and threshold of success: as asked, or by the kind of data MSE < 1e-3 or ROUGE-L > 0.5."""
    default = ("rougeL", 0.5) if isinstance(spec, TextSpec) else ("mse", 1e-3)
    return given["measure"] or default[0], default[1] if given["threshold"] is None else given["threshold"]


def succeeded(rule: tuple[str, float], measures: Mapping[str, float]) -> bool:
    """Whether an attack succeeded: below the threshold for an error, above it for a quality.

    Raises:
      UsageError: if the data have no such measure.
    """
    name, threshold = rule
    if name not in measures:
        raise UsageError(f"success: these data have no measure {name!r}; they have {', '.join(measures)}")
    return measures[name] < threshold if name == "mse" else measures[name] > threshold


@dataclasses.dataclass(frozen=True)
class Lane:
    """Names one lane: everything that varies inside a block."""

    seed: int
    sample: int
    metric: Spec
    selector: Spec
    ratio: float


def _take(index: Any, leaf: Any) -> Any:
    return leaf[index]


def _take_each(index: Any, *leaves: Any) -> Any:
    return np.stack([leaf[i] for leaf, i in zip(leaves, index, strict=True)])


def assemble(setting: Setting, seeds: Sequence[int], lanes: Sequence[Sequence[Lane]]) -> tuple[Weights, Lanes]:
    """The arrays of a block.

    Args:
      setting: to read from.
      seeds: one per row.
      lanes: one row of lanes per seed, all of one length.

    Returns:
      Parameters with leading axis (seeds,) and lanes with leading axes (seeds, lanes).
    """
    rows, after = [], range(1, setting.num_rounds)
    for seed, row in zip(seeds, lanes, strict=True):
        client = setting.client(seed)
        index = np.asarray([lane.sample for lane in row])
        take = functools.partial(jax.tree.map, functools.partial(_take, index))

        def ranked(round_index: int, seed: int = seed, row: Sequence[Lane] = row, index: Any = index) -> Ranks:
            sources = [setting.ranks(lane.metric, lane.selector, seed, round_index)[0] for lane in row]
            ranks = jax.tree.map(functools.partial(_take_each, index), *sources)
            unsent = setting.client(seed, round_index).unsent
            # What is not sent is hidden whatever the mask, and before it.
            return ranks if unsent is None else jax.tree.map(lambda leaf, out: np.where(np.asarray(out)[index], -1, leaf), ranks, unsent)

        later = None
        if setting.num_rounds > 1:
            sent = [(take(setting.client(seed, t).grads), ranked(t)) for t in after]
            later = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *sent)
        key = fold(jax.random.key(seed), "attack")
        rows.append(
            Lanes(
                # One start per sample and seed, shared by all metrics and ratios: differences between them are not luck.
                key=jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(jnp.asarray(setting.samples)[index]),
                batch=take(client.batches),
                grads=take(client.grads),
                ranks=ranked(0),
                num_selected=jnp.asarray([setting.num_selected(lane.ratio) for lane in row], jnp.int32),
                later=later,
                noise=take(client.noise),
            )
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    stack = lambda trees_: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees_)
    first = stack([setting.client(seed).params for seed in seeds])
    moved = stack([stack([setting.client(seed, t).params for t in after]) for seed in seeds]) if setting.num_rounds > 1 else None
    return Weights(first, moved), stacked


class Engines:
    """Crypto contexts and keys of a configuration's `profile`, `bound` and `num_clients`, made once for each ring that sizes call for."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        profile = encryption.PROFILES[options["profile"]]
        self._profile = dataclasses.replace(profile, bound=float(options["bound"] or profile.bound))
        self._num_clients = options["num_clients"]
        self._made: dict[encryption.Profile, tuple[encryption.CKKS, Sequence[encryption.Keys]]] = {}

    def for_size(self, num_values: int) -> tuple[encryption.CKKS, Sequence[encryption.Keys]]:
        """Context and keys for so many values a client."""
        profile = self._profile.for_size(num_values)
        if profile not in self._made:
            scheme = encryption.CKKS(profile)
            self._made[profile] = scheme, make_keys(scheme, self._num_clients)
        return self._made[profile]


def encryption_cost(setting: Setting, lane: Lane, engines: Engines, num_clients: int) -> encryption.Cost:
    """One round on real entries: every client encrypts an update of the setting under the lane's mask; the sum is proven exact."""
    ranks = jax.tree.map(lambda leaf: leaf[lane.sample], setting.ranks(lane.metric, lane.selector, lane.seed)[0])
    mask = jax.tree.map(np.asarray, trees.top(ranks, setting.num_selected(lane.ratio)))
    grads = jax.tree.map(np.asarray, setting.client(lane.seed).grads)
    clients = [encryption.select(jax.tree.map(lambda leaf, i=i % setting.num_samples: leaf[i], grads), mask) for i in range(num_clients)]
    return encryption.measure(*engines.for_size(clients[0].size), clients, encryption.mask_hash(mask))


@dataclasses.dataclass(frozen=True)
class CellResult:
    """One cell of an experiment.

    Attributes:
      measures: `objective`, `label_correct`, `diverged`, `restart`, `num_evaluations`; of images `mse`, `psnr` (dB), `ssim`; of text `rouge1`,
        `rouge2`, `rougeL`, `token_accuracy`, `exact_match`.
      truth, reconstruction: (B, *shape) pixels in [0, 1], or decoded sentences.
      labels: (B, *label_shape) as recovered.
      num_selected, num_total: encrypted entries and all entries.
      num_visible: entries sent in the clear.
      seconds: of the attack, compilation apart.
      cost: of the encryption, where it was asked for.
      report: what an attack on the host says of itself, as JSON.
    """

    measures: dict[str, float]
    truth: npt.NDArray[np.float32] | tuple[str, ...]
    reconstruction: npt.NDArray[np.float32] | tuple[str, ...]
    labels: npt.NDArray[np.int32]
    num_selected: int
    num_total: int
    num_visible: int
    seconds: float
    cost: encryption.Cost | None = None
    report: str = ""

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["measures"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"a cell result has no {name!r}; its measures are {', '.join(self.__dict__.get('measures', {}))}") from None


def _spec(kind: str, given: Any) -> Spec:
    if isinstance(given, Spec):
        return given
    if isinstance(given, str):
        return make_spec(kind, given)
    return make_spec(kind, given["name"], {k: v for k, v in given.items() if k != "name"})


class Ran(NamedTuple):
    """What `run_lanes` gives: per lane what was found and what the attack says of itself, and the seconds of all, compilation and preparation apart."""

    found: list[Found]
    reports: list[str]
    seconds: float


def run_lanes(setting: Setting, attack: Spec, lanes: Sequence[Lane], *, known_labels: bool = False, known_padding: bool = True, on_progress: Any = None) -> Ran:
    """Runs one attack on lanes of one seed, of one metric and one selector, as one block.

    Args:
      setting: of the lanes.
      attack: spec.
      lanes: one or more.
      known_labels, known_padding: as `Block` takes them.
      on_progress: called with (steps done, steps in all) about every twentieth of the attack.
    """
    first = lanes[0]
    evidence = (first.metric, first.selector) if reads_evidence(attack) else None
    threat = {"known_labels": known_labels, "known_padding": known_padding, "evidence": evidence}
    block = make_block(setting, attack, num_seeds=1, num_lanes=len(lanes), **threat)
    padded = [*lanes, *[lanes[-1]] * (block.num_lanes - len(lanes))]
    params, arrays = assemble(setting, [first.seed], [padded])
    arrays, reports = block.prepare(params, arrays)
    block.compile(params, arrays)
    started, total = time.perf_counter(), block.num_steps
    state, done = block.start(params, arrays), 0
    chunk = total if on_progress is None else max(1, total // 20)
    while done < total:
        state = jax.block_until_ready(block.advance(params, arrays, state, min(chunk, total - done)))
        done = min(total, done + chunk)
        if on_progress is not None:
            on_progress(done, total)
    outcome = jax.device_get(block.finish(params, arrays, state))
    seconds = time.perf_counter() - started
    told = {**reports, **outcome.reports}
    return Ran([complete(setting, outcome, 0, j, lane) for j, lane in enumerate(lanes)], [told.get((0, j), "") for j in range(len(lanes))], seconds)


def run_cell(
    *,
    dataset: Any,
    model: Any,
    attack: Any,
    metric: Any = "magnitude",
    ratio: float = 0.0,
    update: Any = "gradient",
    selector: Any = "global_top",
    sample: int = 0,
    seed: int = 0,
    known_labels: bool = False,
    known_padding: bool = True,
    public: Any = None,
    rounds: Any = None,
    protection: Any = "none",
    encryption: Any = None,
    on_progress: Any = None,
) -> CellResult:
    """Runs one cell: the same code as a sweep, with one lane.

    Args:
      dataset, model, attack, metric, update, selector: a name, or a mapping of `name` and arguments.
      ratio: share of entries to encrypt, in [0, 1].
      sample: which batch of the data set.
      seed: of weights, metric and attack.
      known_labels: whether the attacker is given the labels.
      known_padding: whether it is told which positions of a text are padding.
      public: a data set that everybody has, for amortised metrics and learned attackers.
      rounds: a mapping of `count` and `server_learning_rate`: so many updates of the same data, all of which the attacker has; None is one.
      protection: what the client does to its update besides encrypting, a name, or a mapping of `name` and arguments.
      encryption: a mapping of `profile`, `num_clients`, `bound`, to encrypt the selection with CKKS and measure it; None leaves it out.
      on_progress: called with (steps done, steps in all) about every twentieth of the attack.

    Raises:
      UsageError: for an unknown name or argument, or a ratio outside [0, 1].
      EncryptionError: where OpenFHE does not load, or the round trip is not exact.
    """
    options = parse_encryption(encryption)
    specs = _spec("dataset", dataset), _spec("model", model), _spec("update", update)
    learned = None if public is None else _spec("dataset", public)
    setting = Setting(*specs, [sample], learned, parse_rounds(rounds), _spec("protection", protection))
    lane = Lane(seed, 0, _spec("metric", metric), _spec("selector", selector), ratio)
    cost = None
    if options is not None:
        cost = encryption_cost(setting, lane, Engines(options), options["num_clients"])
    ran = run_lanes(setting, _spec("attack", attack), [lane], known_labels=known_labels, known_padding=known_padding, on_progress=on_progress)
    spec, found = setting.input_spec, ran.found[0]
    truth = found.truth if isinstance(spec, TextSpec) else np.asarray(spec.pixels(setting.client(seed).batches.inputs[0]))
    return CellResult(
        measures=found.measures,
        truth=truth,
        reconstruction=found.texts if isinstance(spec, TextSpec) else found.outputs,
        labels=found.labels,
        num_selected=setting.num_selected(ratio),
        num_total=setting.num_total,
        num_visible=setting.num_visible(lane),
        seconds=ran.seconds,
        cost=cost,
        report=ran.reports[0],
    )
