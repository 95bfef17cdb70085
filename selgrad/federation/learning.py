"""The learning task of a run: a Dirichlet split, local gradient descent, protections other than encryption, and the accuracy of global weights.

The split follows Hsu, Qi, Brown 2019 (hsu2019dirichlet); local steps are FedAvg's (mcmahan2017fedavg). Everything is a function of the configuration, the
client's number and the round, so a server that has the data can recompute it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad import trees
from selgrad.base import Batch, GradientContext, Params, Protection
from selgrad.data import Dataset, TextDataset
from selgrad.encryption.profiles import Profile
from selgrad.errors import UsageError
from selgrad.federation.config import FederationConfig, parse
from selgrad.gradients.fedavg import fedavg
from selgrad.modality import modality_of, require_same_inputs
from selgrad.registry import make_spec

Flat = npt.NDArray[np.float32]


def dirichlet_split(labels: npt.NDArray[Any], num_clients: int, alpha: float, seed: int) -> list[npt.NDArray[np.int64]]:
    """Sample indices of each client: every class is divided in proportions drawn from Dirichlet(alpha, ..., alpha); no client is left without samples.

    Args:
      labels: (N,).
      num_clients: at most N.
      alpha: a small value gives each client few classes; 0 divides the samples evenly at random.
      seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    if alpha == 0:
        return [np.sort(part) for part in np.array_split(order, num_clients)]
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for value in np.unique(labels):
        members = order[labels[order] == value]
        shares = generator.dirichlet(np.full(num_clients, alpha))
        ends = np.rint(np.cumsum(shares) * len(members)).astype(int)[:-1]
        for part, chosen in zip(parts, np.split(members, ends), strict=True):
            part.extend(chosen.tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.asarray(part, np.int64)) for part in parts]


class Task:
    """Data, model and local training of a run, built once in each process.

    The model's `split` decides what is trained and sent: all weights, all except the word embeddings, or the LoRA adapters. The rest is frozen, and every
    participant derives it from the configuration.

    Raises:
      UsageError: if there are fewer samples than clients, or model and data do not fit together.
    """

    def __init__(self, config: FederationConfig) -> None:
        self.config = config
        data: Dataset | TextDataset = config.dataset.build()
        test: Dataset | TextDataset = data if config.test is None else config.test.build()
        if isinstance(data, TextDataset) and isinstance(test, TextDataset):
            longest = max(data.spec.shape[0], test.spec.shape[0])
            data, test = data.padded(longest), test.padded(longest)
        if len(data) < config.clients.count:
            raise UsageError(f"{config.dataset.label} holds {len(data)} samples for {config.clients.count} clients; raise count")
        self._data, self._test, self._model = data, test, config.model.build(data.spec)
        for dataset in (data, test):
            require_same_inputs(self._model.input_spec, dataset.spec)
        modality_of(data.spec).require_fitting(data, self._model)
        self.shards = dirichlet_split(np.asarray(data.labels), config.clients.count, config.clients.alpha, config.seed)
        self.num_samples = [len(shard) for shard in self.shards]
        local = config.local
        self._local = fedavg(
            batch_size=local.num_steps * local.batch_size, num_steps=local.num_steps, learning_rate=local.learning_rate, local_batch_size=local.batch_size
        )
        self._like = jax.eval_shape(lambda: self._model.split(self._model.init(jax.random.key(0)))[0])
        self.num_total = trees.size(self._like)

    @cached_property
    def profile(self) -> Profile:
        """The encryption profile, with the ring for as many entries as a client encrypts at once (a union may be larger)."""
        encrypts_all = self.config.protection == "full" or self.config.agreement == "encrypted_sensitivity"
        return self.config.profile.for_size(self.num_total if encrypts_all else trees.count(self.config.ratio, self.num_total))

    @cached_property
    def initial(self) -> Flat:
        """The weights that are sent, before the first round, flat."""
        return np.asarray(trees.ravel(self._first[0]))

    @cached_property
    def _first(self) -> tuple[Params, Params]:
        """The weights that are sent and those that are frozen, before the first round."""
        return self._model.split(self._model.init(jax.random.key(self.config.seed)))

    def weight(self, client: int) -> float:
        """A client's share of all samples."""
        return self.num_samples[client] / sum(self.num_samples)

    def tree(self, flat: Any) -> Params:
        """Flat weights as the model's tree, including the frozen ones."""
        return self._model.merge(trees.unravel(jnp.asarray(flat), self._like), self._first[1])

    def _targets(self, batch: Batch) -> Array:
        return jax.nn.one_hot(self._model.targets(batch), self._model.input_spec.num_classes)

    def _samples(self, client: int, round_number: int) -> npt.NDArray[np.int64]:
        local, shard = self.config.local, self.shards[client]
        generator = np.random.default_rng([self.config.seed, client, round_number])
        needed = local.num_steps * local.batch_size
        # Successive passes over the client's samples, each in a new random order.
        order = np.concatenate([generator.permutation(shard) for _ in range(-(-needed // len(shard)))])
        return order[:needed]

    def update(self, weights: Flat, client: int, round_number: int) -> Flat:
        """A client's update: old minus new weights, flat."""
        train: Callable[..., Any] = self._train
        flat_update: Flat = np.asarray(train(self.tree(weights), self._data.rows(self._samples(client, round_number))))
        return flat_update

    @cached_property
    def _train(self) -> Callable[..., Array]:
        return jax.jit(lambda params, batch: trees.ravel(self._local.client(self._model, params, batch, self._targets(batch))))

    def protect(self, update: Flat, secret: bytes, hidden: npt.NDArray[np.bool_]) -> tuple[Flat, int]:
        """Applies the configuration's baseline protection to an update; returns it with the number of bytes that it takes in the clear.

        Noise and rounding act on the exposed entries alone, and what is deterministic (clipping) on the encrypted ones too, which have one norm with them.

        Args:
          update: flat.
          secret: 16 bytes that seed noise and rounding; whoever knows them can subtract the noise, and learns more about what was rounded.
          hidden: which entries are encrypted, of the update's shape.
        """
        run: Callable[..., Any] = self._protect
        protected, deterministic, num_withheld = run(jnp.asarray(update), np.frombuffer(secret, np.uint32))
        num_exposed = update.size - int(hidden.sum())
        return np.where(hidden, deterministic, protected), self._baseline.num_bytes(num_exposed - int(num_withheld), num_exposed)

    @cached_property
    def _baseline(self) -> Protection:
        protection: Protection = self.config.baseline.build()
        return protection

    @cached_property
    def _protect(self) -> Callable[..., tuple[Array, Array, Array]]:
        @jax.jit
        def protect(flat: Array, secret: Array) -> tuple[Array, Array, Array]:
            deterministic = (self._baseline.deterministic_part or (lambda update: update))(trees.unravel(flat, self._like))
            protected = self._baseline(deterministic, jax.random.wrap_key_data(secret, impl="rbg"))
            num_withheld = jnp.int32(0) if protected.withheld is None else trees.ravel(protected.withheld).sum()
            return trees.ravel(protected.grads), trees.ravel(deterministic), num_withheld

        return protect

    def scores(self, weights: Flat, client: int) -> Flat:
        """The metric's scores for a client's first batch at the given weights, flat."""
        batch = self._data.rows(self._samples(client, 0)[: self.config.local.batch_size])
        model, params = self._model, self.tree(weights)
        update = make_spec("update", "gradient", {"batch_size": self.config.local.batch_size}).build()
        score = self.config.metric.build()

        @jax.jit
        def run(params: Params, batch: Batch) -> Any:
            grads = update.client(model, params, batch, self._targets(batch))
            key = jax.random.fold_in(jax.random.key(self.config.seed), client)
            return trees.ravel(score(GradientContext(model=model, params=params, batch=batch, update=update, grads=grads, key=key)))

        flat_scores: Flat = np.asarray(run(params, batch), np.float32)
        return flat_scores

    @cached_property
    def _correct(self) -> Callable[..., tuple[Array, Array]]:
        model = self._model

        @jax.jit
        def correct(params: Params, batch: Batch) -> tuple[Array, Array]:
            scores, targets = model.logits(params, model.embed(params, batch.inputs), batch.valid), model.targets(batch)
            if targets.ndim > 1 and model.causal:
                # Position t predicts token t + 1.
                scores, targets = scores[:, :-1], targets[:, 1:]
            return ((scores.argmax(-1) == targets) & (targets >= 0)).sum(), (targets >= 0).sum()

        return correct

    def accuracy(self, weights: Flat) -> float:
        """Share of samples, or of a language model's tokens, predicted correctly on the test set, or on the training set if there is no test set."""
        data, params, size = self._test, self.tree(weights), 500 if isinstance(self._test, Dataset) else 50
        correct: Callable[..., Any] = self._correct
        counted = [correct(params, data.rows(np.arange(i, min(i + size, len(data))))) for i in range(0, len(data), size)]
        right, total = (sum(int(count) for count in column) for column in zip(*counted, strict=True))
        return right / total


@lru_cache(maxsize=4)
def task_of(text: str) -> Task:
    """The task of a configuration's text; it is cached, so that compiled functions serve later messages."""
    import yaml

    return Task(parse(yaml.safe_load(text)))
