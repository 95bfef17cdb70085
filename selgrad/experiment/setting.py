"""A data set, a model, an update and a protection, built; and what clients and defenders compute on them: updates, scores and masks.

Samples come in pages: all of a seed's samples in one page if they fit in memory, otherwise as many as do. A page's updates are computed together and kept as
long as there is room; nothing here knows about attacks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selgrad import devices, topk, trees, weights
from selgrad.base import Batch, Grads, InputSpec, Key, Mask, Model, Params, Protection, Ranks, Sent, TextSpec, Update
from selgrad.config import FeaturesConfig, RoundsConfig
from selgrad.data import Dataset, TextDataset
from selgrad.errors import GradientError, UsageError
from selgrad.experiment.choices import Choices, Chosen
from selgrad.experiment.types import Client, Lane, each_key, seed_key
from selgrad.gradients import attacked
from selgrad.modality import hidden_layer, modality_of, require_same_inputs
from selgrad.protections import Protected
from selgrad.registry import Spec, make_spec


class Setting:
    """A data set, a model and an update, built; with what a defender computes on them, cached by seed.

    Args:
      dataset, model, update: specs.
      samples: indices of batches of the data set; all of them by default.
      public: data that everyone has, for metrics and attackers that learn from them.
      rounds: how often each client sends an update of the same data, and the `server_learning_rate` by which the mean of the samples' updates is multiplied
        before it is subtracted from the global weights between two rounds; None means one round.
      protection: what clients do to their updates besides encrypting; None means nothing.
      features: a trained network in whose features images are compared too.

    Raises:
      UsageError: if the data set is smaller than one batch, has no such sample, or one gradient does not fit in memory.
      GradientError: if a client update is not finite.
    """

    def __init__(
        self,
        dataset: Spec,
        model: Spec,
        update: Spec,
        samples: Sequence[int] | None = None,
        public: Spec | None = None,
        rounds: RoundsConfig | None = None,
        protection: Spec | None = None,
        features: FeaturesConfig | None = None,
    ) -> None:
        self.protection_spec = protection or make_spec("protection", "none")
        self.specs = (dataset, model, update)
        rounds = RoundsConfig.parse(rounds)
        self.num_rounds, self._server_learning_rate = rounds.count, rounds.server_learning_rate
        self.dataset: Dataset | TextDataset = dataset.build()
        self.model: Model = model.build(self.dataset.spec)
        self.modality = modality_of(self.dataset.spec, None if features is None else hidden_layer(features, self.dataset.spec))
        require_same_inputs(self.model.input_spec, self.dataset.spec)
        self.modality.require_fitting(self.dataset, self.model)
        self.update: Update = update.build()
        self.protection: Protection = self.protection_spec.build()
        if self.protection.deterministic_part is not None:
            if self.discloses:
                raise UsageError(
                    f"statistics='known' does not go with {self.protection_spec.label}, which clips the norm of all that is sent: the attacker would clip "
                    "the disclosed statistics too; drop one of the two"
                )
            self.update = Protected(self.update, self.protection.deterministic_part)
        if self.input_spec.num_classes < 2:
            raise UsageError(f"{dataset.label} has one class, of which a network is certain: every gradient is 0; give data of two classes at least")
        available = len(self.dataset) // self.update.batch_size
        if not available:
            raise UsageError(f"batch_size={self.update.batch_size} is larger than the {len(self.dataset)} samples of {dataset.label}; raise count")
        self.samples = tuple(range(available) if samples is None else samples)
        for sample in self.samples:
            if not 0 <= sample < available:
                raise UsageError(f"sample={sample} lies outside 0 .. {available - 1}")
        self.num_samples = len(self.samples)
        size = self.update.batch_size
        self.modality.require_telling(self.dataset, [row for sample in self.samples for row in range(sample * size, (sample + 1) * size)])
        self.shapes = jax.eval_shape(lambda: self.model.split(self.model.init(jax.random.key(0)))[0])
        self.num_total = trees.size(self.shapes)
        self.always = [trees.matches(path, self.model.always_encrypted) for path in trees.paths(self.shapes)]
        self.num_always = sum(int(np.prod(leaf.shape)) for leaf, yes in zip(jax.tree.leaves(self.shapes), self.always, strict=True) if yes)
        # Memory for a gradient, one metric's scores and their ranking, and the weights.
        each, budget = 4 * 4 * self.num_total * self.num_rounds, devices.memory_budget()
        if each > budget:
            raise UsageError(
                f"gradient, scores and ranks of one sample of {self.num_total:,} entries need {each / 1e9:.1f} GB, and {budget / 1e9:.1f} GB are free; "
                f"take a smaller {model.label}"
            )
        self.page_size = max(1, min(self.num_samples, budget // 4 // each))
        self.num_pages = -(-self.num_samples // self.page_size)
        self._public_spec = public
        self.public: Batch | None = None if public is None else self._public(public)
        self._programs: dict[Any, Any] = {}
        self.choices = Choices(self)
        self.hold(2, 32)

    def hold(self, num_seeds: int, num_choices: int, counts: Sequence[int] = (), budget: int | None = None) -> None:
        """Keeps the updates of `num_seeds` and the masks of `num_choices` (metric, selector, seed), or as many as fit; those kept before are dropped.

        Args:
          num_seeds, num_choices: the numbers that will be read again and again.
          counts: the numbers of selected entries at which masks will be needed.
          budget: bytes; by default half of the free memory, since blocks need the other half.
        """
        entries = max(1, self.page_size * self.num_total * self.num_rounds)
        updates, masks = 4 * entries, max(1, entries * max(1, len(counts)) // 8)
        # Scores and their ranking are in memory while masks are made.
        room = (devices.memory_budget() // 2 if budget is None else budget) - 2 * updates
        seeds = max(1, min(num_seeds * self.num_pages, room // 2 // updates))
        choices = max(1, min(num_choices * self.num_pages, (room - seeds * updates) // masks))
        self.num_bytes = (seeds + 2) * updates + choices * masks
        self._clients = functools.lru_cache(maxsize=seeds * self.num_rounds)(self._client)
        self._global_weights = functools.lru_cache(maxsize=(num_seeds if self.num_pages == 1 else 1) * self.num_rounds)(self._weights)
        self.choices.hold(choices, counts)

    def page(self, page: int) -> tuple[int, ...]:
        """Returns the samples of a page, as the data set numbers its batches."""
        return self.samples[page * self.page_size : (page + 1) * self.page_size]

    def weights(self, seed: int, round_index: int = 0) -> Params:
        """Returns the global weights that a round starts from."""
        return self._global_weights(seed, round_index)

    @functools.cached_property
    def batches(self) -> Batch:
        """Every sample's batch, NumPy with a leading axis (samples,)."""
        batches = [self.dataset.batch(i, self.update.batch_size) for i in self.samples]
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *batches)

    @functools.cached_property
    def embedded(self) -> jax.ShapeDtypeStruct:
        """The shape of one batch's embedded inputs, which an attacker tries to recover."""
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        return jax.eval_shape(self.model.embed, params, self.dataset.batch(self.samples[0], self.update.batch_size).inputs)

    @functools.cached_property
    def others(self) -> Any:
        """Other inputs of the same data set, among which a reconstruction has to identify the truth."""
        spec, everything = self.specs[0], self.dataset
        if spec.get("count") is not None or spec.get("offset"):
            everything = spec.changed(count=None, offset=0).build()
        inputs = self.modality.others(everything, self.dataset)
        return inputs if len(inputs) > self.update.batch_size else inputs[:0]

    def client(self, seed: int, round_index: int = 0, page: int = 0) -> Client:
        """Returns the updates of a page's samples in a round, as they are sent, with the weights that they started from."""
        return self._clients(seed, round_index, page)

    def sent(self, seed: int, round_index: int, sample: int) -> Sent:
        """Returns one sample's update of a round, as it is sent, as NumPy arrays."""
        page, index = divmod(sample, self.page_size)
        client = self.client(seed, round_index, page)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[index], Sent(client.grads, client.withheld))

    def noise(self, seed: int, sample: int) -> Grads | None:
        """Returns the standard deviation of the noise that a protection adds to each leaf of one sample's first update; None where it adds none."""
        page, index = divmod(sample, self.page_size)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[index], self.client(seed, 0, page).noise)

    def chosen(self, lane: Lane, round_index: int = 0) -> Chosen:
        """Returns the mask of a lane in a round, without withheld entries: `bits` (ceil(n / 8),) as `numpy.packbits` returns them, and the seconds it took."""
        page, index = divmod(lane.sample, self.page_size)
        chosen = self.choices.masks(lane.metric, lane.selector, lane.seed, round_index, page, self.num_selected(lane.ratio))
        return chosen._replace(bits=chosen.bits[index])

    def masks(self, metric: Spec, selector: Spec, seed: int, ratio: float, page: int) -> Any:
        """Returns the masks of a page's samples in the first round, packed: (samples, ceil(n / 8))."""
        return self.choices.masks(metric, selector, seed, 0, page, self.num_selected(ratio)).bits

    def mask(self, lane: Lane, round_index: int = 0) -> Mask:
        """Returns the mask of a lane in a round as a pytree of bool."""
        return jax.tree.unflatten(jax.tree.structure(self.shapes), topk.unpack(self.chosen(lane, round_index).bits, self.shapes))

    def hidden(self, lane: Lane, round_index: int = 0) -> Any:
        """Returns which entries of a lane's update of a round are hidden, packed: the encrypted ones and those that are not sent."""
        withheld = self.sent(lane.seed, round_index, lane.sample).withheld
        bits = self.chosen(lane, round_index).bits
        return bits if withheld is None else bits | np.packbits(np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(withheld)]))

    def ranks(self, metric: Spec, selector: Spec, seed: int, round_index: int = 0) -> tuple[Ranks, float, float]:
        """Returns ranks of every sample (NumPy, leading axis), seconds per sample to score, and seconds per sample to rank; masks are far smaller."""
        return self.choices.ranks(metric, selector, seed, round_index)

    def _public(self, spec: Spec) -> Batch:
        """Loads every batch of the public data, stacked."""
        size = self.update.batch_size

        def load(max_length: int | None) -> Dataset | TextDataset:
            own = spec.get("max_length")
            built: Dataset | TextDataset = (spec if own is None or max_length is None else spec.changed(max_length=min(own, max_length))).build()
            return built

        data = self.modality.public(load, self.dataset, spec.label)
        if len(data) < size:
            raise UsageError(f"public: {spec.label} holds {len(data)} samples and a batch has {size}; raise count")
        batches = [data.batch(i, size) for i in range(len(data) // size)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

    @property
    def compile_key(self) -> Any:
        """What compiled attacks depend on: settings with equal keys share them. Noise and rounding are in the data."""
        return self.specs[:2], self.update, self._public_spec, self.num_rounds, self.samples, self.protection.changes

    @property
    def title(self) -> str:
        """The labels of data set, model and update, and of a protection where there is one."""
        shown = (*self.specs, self.protection_spec) if self.protection.changes else self.specs
        return " / ".join(spec.label for spec in shown)

    @property
    def input_spec(self) -> InputSpec | TextSpec:
        """The input spec of the model, which may have more classes than the data set."""
        return self.model.input_spec

    def num_selected(self, ratio: float) -> int:
        """Returns the number of encrypted entries: those that always are, and the given share of the others."""
        return self.num_always + trees.count(ratio, self.num_total - self.num_always)

    @property
    def discloses(self) -> bool:
        """Whether attackers know more than what is sent (`gradients.disclose`)."""
        return attacked(self.model) is not self.model

    @property
    def leaves_out(self) -> bool:
        """Whether the protection leaves entries out."""
        return jax.eval_shape(lambda update: self.protection(update, jax.random.key(0)), self.shapes).withheld is not None

    def clear_caches(self) -> None:
        """Drops weights, updates and masks, and the programs that compute them; they are made again when they are needed."""
        self._programs.clear()
        self._clients.cache_clear()
        self._global_weights.cache_clear()
        self.choices.clear()

    def num_visible(self, lane: Lane) -> int:
        """Returns the number of entries of a lane's first update that are sent in the clear."""
        if not self.leaves_out:
            return self.num_total - self.num_selected(lane.ratio)
        return self.num_total - int(np.bitwise_count(self.hidden(lane)).sum())

    def _weights(self, seed: int, round_index: int) -> Params:
        """Returns a stored checkpoint's weights or fresh ones; in later rounds, the previous weights after a step by the samples' mean update."""
        if round_index:
            sent, frozen = self.model.split(self.weights(seed, round_index - 1))
            for page in range(self.num_pages):
                share = len(self.page(page)) / self.num_samples
                grads = self.client(seed, round_index - 1, page).grads
                sent = jax.tree.map(lambda w, g, share=share: w - self._server_learning_rate * share * g.mean(axis=0), sent, grads)
            return self.model.merge(sent, frozen)
        return weights.initial(self.model, self.specs[1], seed_key(seed, "params"))

    def _client(self, seed: int, round_index: int, page: int) -> Client:
        params, samples = self.weights(seed, round_index), self.page(page)
        first = page * self.page_size
        stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf[first : first + len(samples)]), self.batches)
        keys = each_key(seed_key(seed, "protection", round_index), samples)

        def every(params: Params, items: tuple[Batch, Key]) -> tuple[Sent, Grads | None]:
            def client_update(item: tuple[Batch, Key]) -> tuple[Sent, Grads | None]:
                batch, key = item
                labels = jax.nn.one_hot(self.model.targets(batch), self.input_spec.num_classes)
                update = self.update.client(self.model, params, batch, labels)
                return self.protection(update, key), self.protection.noise(update) if self.protection.changes else None

            return jax.lax.map(client_update, items)

        sent, noise = self.compiled(("update", len(samples)), every, params, (stacked, keys))(params, (stacked, keys))
        trees.require_finite(sent.grads, f"the client update of {self.specs[1].label} (seed {seed})")
        moved = np.any([np.asarray(leaf).reshape(len(samples), -1).any(axis=1) for leaf in jax.tree.leaves(sent.grads)], axis=0)
        if not moved.all():
            raise GradientError(
                f"the update of sample {samples[int(moved.argmin())]} of {self.specs[0].label} is 0 in every entry (seed {seed}): it tells nothing, "
                "whatever is encrypted; take other weights, or leave the sample out"
            )
        return Client(params, stacked, sent.grads, sent.withheld, noise)

    def compiled(self, name: Any, function: Any, *arguments: Any) -> Any:
        """Returns the function compiled in full float32 precision; it is compiled once for all seeds."""
        if name not in self._programs:
            with jax.default_matmul_precision("highest"):
                self._programs[name] = jax.jit(function).lower(*arguments).compile()
        return self._programs[name]
