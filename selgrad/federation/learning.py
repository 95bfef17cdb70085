"""What clients learn: a Dirichlet split, local gradient descent, what they do to updates besides encrypting, and the accuracy of global weights.

Split after Hsu, Qi, Brown 2019 (hsu2019dirichlet); local steps are FedAvg's (mcmahan2017fedavg). Everything is a function of the configuration, a client's
number and a round, so a server that has the data can recompute it.
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
from selgrad.data import Dataset
from selgrad.encryption.profiles import Profile
from selgrad.errors import UsageError
from selgrad.federation.config import FederationConfig, parse
from selgrad.registry import make_spec

Flat = npt.NDArray[np.float32]


def dirichlet_split(labels: npt.NDArray[Any], num_clients: int, alpha: float, seed: int) -> list[npt.NDArray[np.int64]]:
    """Sample numbers of each client: every class is divided in proportions drawn from Dirichlet(alpha, ..., alpha); no client is left without samples.

    Args:
      labels: (N,).
      num_clients: at most N.
      alpha: small gives each client few classes; 0 divides at random and evenly.
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

    Raises:
      UsageError: if the data are text, or fewer than the clients.
    """

    def __init__(self, config: FederationConfig) -> None:
        self.config = config
        data = config.dataset.build()
        if not isinstance(data, Dataset):
            raise UsageError(f"a federated run trains on images and {config.dataset.label} holds text; choose an image data set")
        if len(data) < config.clients.count:
            raise UsageError(f"{config.dataset.label} holds {len(data)} samples for {config.clients.count} clients; raise count")
        self._data, self._model = data, config.model.build(data.spec)
        self.shards = dirichlet_split(np.asarray(data.labels), config.clients.count, config.clients.alpha, config.seed)
        self.num_samples = [len(shard) for shard in self.shards]
        self._like = jax.eval_shape(self._model.init, jax.random.key(0))
        self.num_total = trees.size(self._like)

    @cached_property
    def profile(self) -> Profile:
        """Of the encryption, with the ring for as many entries as a client encrypts at once (a union may be larger)."""
        whole = self.config.protection == "full" or self.config.agreement == "encrypted_sensitivity"
        return self.config.profile.for_size(self.num_total if whole else trees.count(self.config.ratio, self.num_total))

    @cached_property
    def initial(self) -> Flat:
        """Fresh global weights, flat."""
        return np.asarray(trees.concatenate(self._model.init(jax.random.key(self.config.seed))))

    def weight(self, client: int) -> float:
        """A client's share of all samples."""
        return self.num_samples[client] / sum(self.num_samples)

    def tree(self, flat: Any) -> Params:
        """Flat weights as the model's tree."""
        return trees.split(jnp.asarray(flat), self._like)

    def _samples(self, client: int, round_number: int) -> npt.NDArray[np.int64]:
        local, shard = self.config.local, self.shards[client]
        generator = np.random.default_rng([self.config.seed, client, round_number])
        needed = local.num_steps * local.batch_size
        # One pass over the client's samples after the other, each in an order of its own.
        order = np.concatenate([generator.permutation(shard) for _ in range(-(-needed // len(shard)))])
        return order[:needed].reshape(local.num_steps, local.batch_size)

    def update(self, weights: Flat, client: int, round_number: int) -> Flat:
        """What a client learned: old minus new weights, flat."""
        chosen = self._samples(client, round_number)
        pixels = jnp.asarray(self._data.pixels[chosen])
        train: Callable[..., Any] = self._train
        found: Flat = np.asarray(train(jnp.asarray(weights), self._data.spec.normalise(pixels), jnp.asarray(self._data.labels[chosen])))
        return found

    @cached_property
    def _train(self) -> Callable[..., Array]:
        model, rate = self._model, self.config.local.learning_rate

        @jax.jit
        def train(weights: Array, inputs: Array, labels: Array) -> Array:
            def step(flat: Array, batch: tuple[Array, Array]) -> tuple[Array, None]:
                x, y = batch
                target = jax.nn.one_hot(y, model.input_spec.num_classes)
                gradient = jax.grad(lambda w: model.loss(w, model.embed(w, x), target))(trees.split(flat, self._like))
                return flat - rate * trees.concatenate(gradient), None

            return weights - jax.lax.scan(step, weights, (inputs, labels))[0]

        return train

    def protect(self, update: Flat, secret: bytes) -> tuple[Flat, int]:
        """An update under the configuration's baseline, and the bytes that it takes in the clear.

        Args:
          update: flat.
          secret: 16 bytes, from which noise and rounding are drawn; whoever knows them can take noise off again, and reads more of what was rounded.
        """
        run: Callable[..., Any] = self._protect
        sent, num_unsent = run(jnp.asarray(update), np.frombuffer(secret, np.uint32))
        return np.asarray(sent), self._baseline.num_bytes(update.size - int(num_unsent), update.size)

    @cached_property
    def _baseline(self) -> Protection:
        found: Protection = self.config.baseline.build()
        return found

    @cached_property
    def _protect(self) -> Callable[..., tuple[Array, Array]]:
        @jax.jit
        def protect(flat: Array, secret: Array) -> tuple[Array, Array]:
            first = self._baseline.foreseen or (lambda update: update)
            key = jax.random.wrap_key_data(secret, impl="rbg")
            sent = self._baseline(first(trees.split(flat, self._like)), key)
            return trees.concatenate(sent.grads), jnp.int32(0) if sent.unsent is None else trees.concatenate(sent.unsent).sum()

        return protect

    def scores(self, weights: Flat, client: int) -> Flat:
        """The metric's scores of a client's first batch at given weights, flat."""
        chosen = self._samples(client, 0)[0]
        batch = Batch(self._data.spec.normalise(jnp.asarray(self._data.pixels[chosen])), jnp.asarray(self._data.labels[chosen]))
        model, params = self._model, self.tree(weights)
        update = make_spec("update", "gradient", {"batch_size": len(chosen)}).build()
        score = self.config.metric.build()

        @jax.jit
        def run(params: Params, batch: Batch) -> Any:
            grads = update.client(model, params, batch, jax.nn.one_hot(batch.labels, model.input_spec.num_classes))
            key = jax.random.fold_in(jax.random.key(self.config.seed), client)
            return trees.concatenate(score(GradientContext(model=model, params=params, batch=batch, update=update, grads=grads, key=key)))

        found: Flat = np.asarray(run(params, batch), np.float32)
        return found

    @cached_property
    def _test(self) -> tuple[Array, Array]:
        data: Any = self._data if self.config.test is None else self.config.test.build()
        return data.spec.normalise(jnp.asarray(data.pixels)), jnp.asarray(data.labels)

    @cached_property
    def _correct(self) -> Callable[..., Array]:
        model = self._model
        return jax.jit(lambda flat, x, y: (model.logits(trees.split(flat, self._like), x).argmax(-1) == y).sum())

    def accuracy(self, weights: Flat) -> float:
        """Share of test samples (of training samples, where there is no test set) that the weights classify rightly."""
        inputs, labels = self._test
        flat = jnp.asarray(weights)
        correct: Callable[..., Any] = self._correct
        right = sum(int(correct(flat, inputs[i : i + 500], labels[i : i + 500])) for i in range(0, len(labels), 500))
        return right / len(labels)


@lru_cache(maxsize=4)
def task_of(text: str) -> Task:
    """The task of a configuration's text; what was compiled stays for the next message."""
    import yaml

    return Task(parse(yaml.safe_load(text)))
