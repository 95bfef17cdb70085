"""The only corridor between the rooms: from a data set, a model and an update to a compiled block of attack cells.

A block is one `jit(shard_map(vmap(vmap(cell))))` over seeds and lanes; a lane is one (sample, metric, selector, ratio), and restarts are
an axis inside the attack. Metrics, ratios, samples, seeds and restarts are array axes, never Python loops.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.sharding import PartitionSpec

from selgrad import checkpoints, devices, encryption, trees
from selgrad.base import Attack, Batch, GradientContext, Grads, InputSpec, Key, Model, Params, Ranks, Reconstruction, Scores, Update
from selgrad.config import Spec, make_spec, parse_encryption
from selgrad.data import Dataset
from selgrad.errors import UsageError
from selgrad.evaluation import MEASURES, align
from selgrad.gradients import observe


def fold(key: Key, *names: str | int) -> Key:
    """A key for a named purpose, the same in every process and for every size of sweep."""
    for name in names:
        key = jax.random.fold_in(key, name if isinstance(name, int) else zlib.crc32(name.encode()))
    return key


@dataclasses.dataclass(frozen=True)
class Client:
    """One seed's weights, and every sample's batch and update stacked along a leading axis."""

    params: Params
    batches: Batch
    grads: Grads


class Setting:
    """A data set, a model and an update, built; with what a defender computes on them, cached by seed.

    Args:
      dataset, model, update: specs.
      samples: which batches of the data set; all of them by default.

    Raises:
      UsageError: if the data set is smaller than one batch, has no such sample, or its gradients do not fit in memory.
      GradientError: if a client update is not finite.
    """

    def __init__(self, dataset: Spec, model: Spec, update: Spec, samples: Sequence[int] | None = None) -> None:
        self.specs = (dataset, model, update)
        self.dataset: Dataset = dataset.build()
        self.model: Model = model.build(self.dataset.spec)
        self.update: Update = update.build()
        available = len(self.dataset) // self.update.batch_size
        if not available:
            raise UsageError(f"batch_size={self.update.batch_size} is larger than the {len(self.dataset)} samples of {dataset.label}; raise count")
        self.samples = tuple(range(available) if samples is None else samples)
        for sample in self.samples:
            if not 0 <= sample < available:
                raise UsageError(f"sample={sample} lies outside 0 .. {available - 1}")
        self.num_samples = len(self.samples)
        self.num_total = trees.size(jax.eval_shape(self.model.init, jax.random.key(0)))
        # Gradients, one metric's scores and their ranks.
        needed, budget = 3 * 4 * self.num_samples * self.num_total, devices.memory_budget()
        if needed > budget:
            raise UsageError(
                f"gradients, scores and ranks of {self.num_samples:,} samples of {self.num_total:,} entries need {needed / 1e9:.1f} GB, and "
                f"{budget / 1e9:.1f} GB are free; lower count of {dataset.label}"
            )
        self._programs: dict[Any, Any] = {}
        self.client = functools.lru_cache(maxsize=2)(self._client)
        self.ranks = functools.lru_cache(maxsize=32)(self._ranks)
        self.scores = functools.lru_cache(maxsize=4)(self._scores)

    @property
    def input_spec(self) -> InputSpec:
        """Of the model, which may have more classes than the data set."""
        return self.model.input_spec

    def _client(self, seed: int) -> Client:
        key = fold(jax.random.key(seed), "params")
        params = self.model.init(key)
        stored = self.specs[1].get("checkpoint")
        if stored is not None:
            params = checkpoints.load_params(stored, like=params)
        batches = [self.dataset.batch(i, self.update.batch_size) for i in self.samples]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

        def every(params: Params, batches: Batch) -> Grads:
            def one(batch: Batch) -> Grads:
                labels = jax.nn.one_hot(batch.labels, self.input_spec.num_classes)
                return self.update(self.model, params, self.model.embed(params, batch.inputs), labels)

            return jax.lax.map(one, batches)

        grads = self._program("update", every, params, stacked)(params, stacked)
        trees.require_finite(grads, f"the client update of {self.specs[1].label} (seed {seed})")
        return Client(params, stacked, grads)

    def _program(self, name: Any, function: Any, *arguments: Any) -> Any:
        """The function compiled in full float32 precision, once for all seeds."""
        if name not in self._programs:
            with jax.default_matmul_precision("highest"):
                self._programs[name] = jax.jit(function).lower(*arguments).compile()
        return self._programs[name]

    def _scores(self, metric: Spec, seed: int) -> tuple[Scores, float]:
        """Scores of every sample, leading axis (num_samples,), and seconds per sample after compilation."""
        client, score = self.client(seed), metric.build()
        key = fold(jax.random.key(seed), "metric")
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(self.samples))

        def every(params: Params, items: tuple[Batch, Grads, Key]) -> Scores:
            def one(item: tuple[Batch, Grads, Key]) -> Scores:
                batch, grads, key = item
                return score(GradientContext(model=self.model, params=params, batch=batch, update=self.update, grads=grads, key=key))

            return jax.lax.map(one, items)

        items = (client.batches, client.grads, keys)
        compiled = self._program(metric, every, client.params, items)
        started = time.perf_counter()
        scores = jax.block_until_ready(compiled(client.params, items))
        seconds = (time.perf_counter() - started) / self.num_samples
        trees.require_finite(scores, f"the scores of {metric.label}")
        return scores, seconds

    def _ranks(self, metric: Spec, selector: Spec, seed: int) -> tuple[Ranks, float, float]:
        """Ranks of every sample (NumPy, leading axis), seconds per sample to score, seconds per sample to rank."""
        scores, score_seconds = self.scores(metric, seed)
        order = self._program(selector, lambda s: jax.lax.map(selector.build(), s), scores)
        started = time.perf_counter()
        ranks = jax.block_until_ready(order(scores))
        mask_seconds = (time.perf_counter() - started) / self.num_samples
        return jax.tree.map(np.asarray, ranks), score_seconds, mask_seconds


class Lanes(NamedTuple):
    """The arrays of one block; every leaf has the leading axes (seeds, lanes)."""

    key: Key
    batch: Batch
    grads: Grads
    ranks: Ranks
    num_selected: Array


class Outcome(NamedTuple):
    """What a block leaves of each lane: measures by name, pixels (B, *shape) in [0, 1], and labels (B,)."""

    measures: dict[str, Array]
    pixels: Array
    labels: Array


class Block:
    """One attack on one setting, compiled for a number of seeds and lanes, in three phases that keep their state on the devices.

    Args:
      setting: data, model, update.
      attack: spec.
      num_seeds, num_lanes: sizes of the two axes.
      known_labels: whether the observation carries the labels.
    """

    def __init__(self, setting: Setting, attack: Spec, *, num_seeds: int, num_lanes: int, known_labels: bool) -> None:
        self.attack: Attack = attack.build()
        self.num_seeds = num_seeds
        self.mesh = devices.mesh(num_lanes)
        self.num_lanes = -(-num_lanes // self.mesh.size) * self.mesh.size
        model, update, method = setting.model, setting.update, self.attack

        def observation(params: Params, lane: Lanes) -> Any:
            mask = trees.top(lane.ranks, lane.num_selected)
            return observe(model, update, params, lane.grads, mask, lane.batch.labels if known_labels else None)

        def start(params: Params, lane: Lanes) -> Any:
            return method.start(lane.key, observation(params, lane))

        def advance(params: Params, lane: Lanes, state: Any, num_steps: Array) -> Any:
            return method.advance(observation(params, lane), state, num_steps)

        def finish(params: Params, lane: Lanes, state: Any) -> Outcome:
            return measure(model.input_spec, lane.batch, method.finish(observation(params, lane), state))

        everywhere, lanes = PartitionSpec(), PartitionSpec(None, "lanes")

        def block(phase: Any, in_axes: tuple[int | None, ...], in_specs: tuple[Any, ...]) -> Any:
            inner = jax.vmap(phase, (None, *in_axes))
            outer = jax.vmap(inner, (0, *in_axes))
            return jax.jit(devices.shard(outer, self.mesh, (everywhere, *in_specs), lanes))

        self._start = block(start, (0,), (lanes,))
        self._advance = block(advance, (0, 0, None), (lanes, lanes, everywhere))
        self._finish = block(finish, (0, 0), (lanes, lanes))
        self.compile_seconds = 0.0
        self.memory_bytes = 0

    def compile(self, params: Params, lanes: Lanes) -> None:
        """Compiles the three phases ahead of time and reads how much memory the largest takes."""
        started = time.perf_counter()
        shapes = jax.eval_shape(self._start, params, lanes)
        self._start = self._start.lower(params, lanes).compile()
        # Shapes only, so that a block too large for the device is found by the memory analysis and not by running it.
        sample = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, self._start.output_shardings)
        self._advance = self._advance.lower(params, lanes, sample, jnp.int32(1)).compile()
        self._finish = self._finish.lower(params, lanes, sample).compile()
        self.compile_seconds = time.perf_counter() - started
        sizes = []
        for phase in (self._start, self._advance, self._finish):
            analysis = phase.memory_analysis()
            if analysis is not None:
                used = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
                sizes.append(used * self.mesh.size)
        self.memory_bytes = max(sizes, default=0)

    def start(self, params: Params, lanes: Lanes) -> Any:
        """The state of every lane before its first step."""
        return self._start(params, lanes)

    def advance(self, params: Params, lanes: Lanes, state: Any, num_steps: int) -> Any:
        """The state after so many more steps; lanes that are done stay as they are."""
        return self._advance(params, lanes, state, jnp.int32(num_steps))

    def finish(self, params: Params, lanes: Lanes, state: Any) -> Outcome:
        """Measures and reconstructions."""
        outcome: Outcome = self._finish(params, lanes, state)
        return outcome


def measure(spec: InputSpec, batch: Batch, found: Reconstruction) -> Outcome:
    """Aligns a reconstruction with the truth and measures it; a diverged one has NaN in every measure."""
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


def assemble(setting: Setting, seeds: Sequence[int], lanes: Sequence[Sequence[Lane]]) -> tuple[Params, Lanes]:
    """The arrays of a block.

    Args:
      setting: to read from.
      seeds: one per row.
      lanes: one row of lanes per seed, all of one length.

    Returns:
      Parameters with leading axis (seeds,) and lanes with leading axes (seeds, lanes).
    """
    rows = []
    for seed, row in zip(seeds, lanes, strict=True):
        client = setting.client(seed)
        index = np.asarray([lane.sample for lane in row])
        take = functools.partial(jax.tree.map, functools.partial(_take, index))
        sources = [setting.ranks(lane.metric, lane.selector, seed)[0] for lane in row]
        key = fold(jax.random.key(seed), "attack")
        rows.append(
            Lanes(
                # One start per sample and seed, shared by all metrics and ratios: differences between them are not luck.
                key=jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(jnp.asarray(setting.samples)[index]),
                batch=take(client.batches),
                grads=take(client.grads),
                ranks=jax.tree.map(functools.partial(_take_each, index), *sources),
                num_selected=jnp.asarray([trees.count(lane.ratio, setting.num_total) for lane in row], jnp.int32),
            )
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(setting.client(seed).params for seed in seeds))
    return params, stacked


def make_scheme(options: Mapping[str, Any]) -> encryption.CKKS:
    """The crypto context of a configuration's `profile` and `bound`."""
    profile = encryption.PROFILES[options["profile"]]
    return encryption.CKKS(dataclasses.replace(profile, bound=options["bound"] or profile.bound))


def encryption_cost(setting: Setting, lane: Lane, scheme: encryption.CKKS, keys: encryption.Keys, num_clients: int) -> encryption.Cost:
    """One round on real entries: every client encrypts an update of the setting under the lane's mask; the sum is proven exact."""
    ranks = jax.tree.map(lambda leaf: leaf[lane.sample], setting.ranks(lane.metric, lane.selector, lane.seed)[0])
    mask = jax.tree.map(np.asarray, trees.top(ranks, trees.count(lane.ratio, setting.num_total)))
    grads = jax.tree.map(np.asarray, setting.client(lane.seed).grads)
    clients = [encryption.select(jax.tree.map(lambda leaf, i=i % setting.num_samples: leaf[i], grads), mask) for i in range(num_clients)]
    return encryption.measure(scheme, keys, clients, encryption.mask_hash(mask))


@dataclasses.dataclass(frozen=True)
class CellResult:
    """One cell of an experiment.

    Attributes:
      measures: `objective`, `mse`, `psnr` (dB), `ssim`, `label_correct`, `diverged`, `restart`, `num_evaluations`.
      truth, reconstruction: (B, *shape) pixels in [0, 1].
      labels: (B,) as recovered.
      num_selected, num_total: encrypted entries and all entries.
      seconds: of the attack, compilation apart.
      cost: of the encryption, where it was asked for.
    """

    measures: dict[str, float]
    truth: npt.NDArray[np.float32]
    reconstruction: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    num_selected: int
    num_total: int
    seconds: float
    cost: encryption.Cost | None = None

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
      encryption: a mapping of `profile`, `num_clients`, `bound`, to encrypt the selection with CKKS and measure it; None leaves it out.
      on_progress: called with (steps done, steps in all) about every twentieth of the attack.

    Raises:
      UsageError: for an unknown name or argument, or a ratio outside [0, 1].
      EncryptionError: where OpenFHE does not load, or the round trip is not exact.
    """
    options = parse_encryption(encryption)
    setting = Setting(_spec("dataset", dataset), _spec("model", model), _spec("update", update), samples=[sample])
    lane = Lane(seed, 0, _spec("metric", metric), _spec("selector", selector), ratio)
    num_selected = trees.count(ratio, setting.num_total)
    block = Block(setting, _spec("attack", attack), num_seeds=1, num_lanes=1, known_labels=known_labels)
    params, lanes = assemble(setting, [seed], [[lane]])
    cost = None
    if options is not None:
        scheme = make_scheme(options)
        cost = encryption_cost(setting, lane, scheme, scheme.keygen(), options["num_clients"])
    block.compile(params, lanes)
    started, total = time.perf_counter(), block.attack.num_steps
    state, done = block.start(params, lanes), 0
    chunk = total if on_progress is None else max(1, total // 20)
    while done < total:
        state = jax.block_until_ready(block.advance(params, lanes, state, min(chunk, total - done)))
        done = min(total, done + chunk)
        if on_progress is not None:
            on_progress(done, total)
    outcome = jax.device_get(block.finish(params, lanes, state))
    spec = setting.input_spec
    truth = spec.pixels(setting.client(seed).batches.inputs[0])
    return CellResult(
        measures={name: float(value[0, 0]) for name, value in outcome.measures.items()},
        truth=np.asarray(truth),
        reconstruction=np.asarray(outcome.pixels[0, 0]),
        labels=np.asarray(outcome.labels[0, 0]),
        num_selected=num_selected,
        num_total=setting.num_total,
        seconds=time.perf_counter() - started,
        cost=cost,
    )
