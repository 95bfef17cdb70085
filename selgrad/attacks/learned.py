"""A decoder from the entries that a mask leaves visible to the inputs, trained on public data for that mask: the rung `learned`, and an attack of its own.

"Learning to Invert", Wu et al., UAI 2023 (wu2023learning): an attacker that knows the defence trains against it. Entries are standardised over the public
updates and hashed into a fixed number of features (Weinberger et al. 2009, weinberger2009hashing), which an MLP maps to the embedded inputs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from selgrad import trees
from selgrad.attacks.hidden import Hidden, fill
from selgrad.attacks.labels import plausible
from selgrad.attacks.spaces import embeddings, pixels
from selgrad.base import Attack, Batch, Cache, InputSpec, Key, Model, Observation, Params, Reconstruction, Update, no_cache
from selgrad.errors import UsageError, require_positive

_HELD_OUT = 0.1
_FLOOR = 1e-4
_LARGEST = 4e9
_recent: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Training:
    """How a decoder is trained.

    Attributes:
      num_features: number of features into which the entries are hashed.
      width: units of each of two hidden layers.
      num_steps: steps of Adam on 64 public batches; the learning rate falls to 0 along a cosine.
      learning_rate: at the start.
    """

    num_features: int = 1024
    width: int = 256
    num_steps: int = 500
    learning_rate: float = 2e-3


class _Network(nn.Module):
    width: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(2):
            x = nn.relu(nn.Dense(self.width, name=f"fc_{i}")(x))
        return cast(Array, nn.Dense(self.num_outputs, name="fc_2")(x))


class Decoder(NamedTuple):
    """A trained decoder.

    Attributes:
      center, scale: of each gradient entry over the public updates, (n,); scale is 0 where the entry is hidden or never changes.
      feature_scale: () of the hashed features.
      params: of the network.
      mean, spread: of the public embedded inputs, the shape of one batch, and () their root mean square deviation.
      explained: () share of the variance of held-out public inputs that the decoder explains; at most 1, below 0 if it is worse than the mean.
    """

    center: Array
    scale: Array
    feature_scale: Array
    params: Params
    mean: Array
    spread: Array
    explained: Array


def _features(values: Array, decoder: Decoder, num_features: int) -> Array:
    """Hashes an update with random signs, which keeps inner products of standardised updates in expectation."""
    buckets_key, signs_key = jax.random.split(jax.random.key(0))
    bucket = jax.random.randint(buckets_key, values.shape, 0, num_features)
    sign = jax.random.rademacher(signs_key, values.shape, values.dtype)
    standard = (values - decoder.center) * decoder.scale * sign
    return jnp.zeros(num_features, values.dtype).at[bucket].add(standard) * decoder.feature_scale


def _in_order(embedded: Array, labels: Array) -> Array:
    """Sorts a batch by label and mean value: an update does not reveal the order of its inputs."""
    if len(embedded) == 1:
        return embedded
    flat = lambda leaf: leaf.reshape(len(embedded), -1)
    return embedded[jnp.lexsort((flat(embedded).mean(axis=1), flat(labels).sum(axis=1)))]


@partial(jax.jit, static_argnames=("model", "update"))
def public_updates(model: Model, update: Update, params: Params, public: Batch) -> tuple[Array, Array]:
    """Computes every public batch's update, (count, n), and its embedded inputs, (count, B, ...), which all masks share."""

    def update_of(batch: Batch) -> tuple[Array, Array]:
        targets = model.targets(batch)
        grads = update.client(model, params, batch, jax.nn.one_hot(targets, model.input_spec.num_classes))
        return trees.ravel(grads), _in_order(model.embed(params, batch.inputs), targets)

    return jax.lax.map(update_of, public)


@partial(jax.jit, static_argnames="like")
def _noise_of(updates: Array, noise: Array, like: tuple[int, ...]) -> Array:
    """Adds to updates (count, n) Gaussian noise of each leaf's deviation, as in the client's own update.

    Args:
      updates: without noise.
      noise: (leaves,) deviations.
      like: sizes of the leaves.
    """
    deviations = jnp.repeat(noise, jnp.asarray(like), total_repeat_length=updates.shape[1])
    draw = lambda index, clean: clean + deviations * jax.random.normal(jax.random.fold_in(jax.random.key(3), index), clean.shape, clean.dtype)
    return jax.lax.map(lambda pair: draw(*pair), (jnp.arange(len(updates)), updates))


@partial(jax.jit, static_argnames="training")
def train(training: Training, updates: Array, inputs: Array, mask: Array) -> Decoder:
    """Trains a decoder for one mask.

    Args:
      training: static.
      updates, inputs: as returned by `public_updates`.
      mask: (n,), True where encrypted.
    """
    count = len(updates)
    center, spread = updates.mean(axis=0), updates.std(axis=0)
    # Entries that hardly change compared with the rest of the update are rounding errors.
    usable = ~mask & (spread > _FLOOR * jnp.sqrt((spread**2).mean()))
    mean = inputs.mean(axis=0)
    decoder = Decoder(
        center=center, scale=jnp.where(usable, 1 / jnp.where(usable, spread, 1), 0), feature_scale=jnp.ones(()), params={},
        mean=mean, spread=jnp.sqrt(((inputs - mean) ** 2).mean()) + 1e-12, explained=jnp.zeros(()),
    )  # fmt: skip
    features = jax.lax.map(lambda row: _features(row, decoder, training.num_features), updates)
    feature_scale = 1 / jnp.maximum(jnp.sqrt((features**2).mean()), 1e-12)
    features, wanted = features * feature_scale, ((inputs - mean) / decoder.spread).reshape(count, -1)

    network = _Network(training.width, wanted.shape[1])
    num_held_out = max(1, int(_HELD_OUT * count))
    optimiser = optax.adam(optax.cosine_decay_schedule(training.learning_rate, training.num_steps))
    weights = network.init(jax.random.key(1), features[:1])["params"]

    def loss(weights: Params, rows: Array) -> Array:
        return ((network.apply({"params": weights}, features[rows]) - wanted[rows]) ** 2).mean()

    def step(carry: Any, index: Array) -> tuple[Any, None]:
        weights, state, best, best_weights = carry
        rows = num_held_out + jax.random.randint(jax.random.fold_in(jax.random.key(2), index), (min(64, count),), 0, max(1, count - num_held_out))
        change, state = optimiser.update(jax.grad(loss)(weights, rows), state, weights)
        weights = optax.apply_updates(weights, change)
        due = index % 25 == 24
        error = jax.lax.cond(due, lambda: loss(weights, jnp.arange(num_held_out)), lambda: jnp.inf)
        better = error < best
        best_weights = jax.tree.map(lambda new, old: jnp.where(better, new, old), weights, best_weights)
        return (weights, state, jnp.where(better, error, best), best_weights), None

    start = (weights, optimiser.init(weights), loss(weights, jnp.arange(num_held_out)), weights)
    (_, _, error, weights), _ = jax.lax.scan(step, start, jnp.arange(training.num_steps))
    return decoder._replace(feature_scale=feature_scale, params=weights, explained=1 - error / jnp.maximum((wanted[:num_held_out] ** 2).mean(), 1e-12))


@partial(jax.jit, static_argnames="training")
def decode(training: Training, decoder: Decoder, visible: Array) -> Array:
    """Decodes a flat update (n,) to embedded inputs (B, ...); the public mean where nothing is visible."""
    features = _features(visible, decoder, training.num_features)
    network = _Network(training.width, decoder.mean.size)
    off = network.apply({"params": decoder.params}, features[None])[0].reshape(decoder.mean.shape)
    return decoder.mean + jnp.where((decoder.scale > 0).any(), decoder.spread * off, 0)


def estimate(observation: Observation, cache: Cache = no_cache, training: Training = Training()) -> tuple[Observation, str]:
    """Returns the observation with the decoder's estimate of its embedded inputs, and a JSON report; it trains on the host, once for each mask.

    Raises:
      UsageError: if there are no public data, or fewer than 20 batches of them.
    """
    public = observation.public
    if public is None or len(public.labels) < 20:
        count = 0 if public is None else len(public.labels)
        raise UsageError(f"hidden='learned' trains a decoder on public data and has {count} batches; name a data set of at least 20 under `public`")
    rounds = observation.rounds
    count, size = len(public.labels), len(rounds) * trees.size(observation.visible)
    if 4 * count * size > _LARGEST:
        raise UsageError(
            f"hidden='learned' keeps {count} public updates of {size:,} entries, {4e-9 * count * size:.1f} GB, and takes at most {1e-9 * _LARGEST:.0f} GB; "
            "lower count of the data set under `public`"
        )
    setting = (observation.model, observation.update)
    shared = hashlib.sha256(repr(setting).encode())
    for leaf in jax.tree.leaves(([view.params for view in rounds], public, observation.noise)):
        shared.update(np.ascontiguousarray(leaf).tobytes())
    mask = jnp.concatenate([trees.ravel(view.mask) for view in rounds])
    digest = hashlib.sha256(shared.digest() + repr(training).encode() + np.packbits(np.asarray(mask)).tobytes())

    def updates() -> tuple[Array, Array]:
        """Returns the public updates of all rounds side by side; the inputs are embedded by the first round's weights."""
        parts = [public_updates(*setting, view.params, public) for view in rounds]
        flat_updates = jnp.concatenate([part[0] for part in parts], axis=1)
        if observation.noise is not None:
            # An attacker who knows the protection trains against it.
            sizes = tuple(leaf.size for leaf in jax.tree.leaves(observation.visible)) * len(rounds)
            flat_updates = _noise_of(flat_updates, jnp.tile(jnp.stack(jax.tree.leaves(observation.noise)), len(rounds)), sizes)
        return flat_updates, parts[0][1]

    def make() -> Decoder:
        # Masks follow one another at the same weights, so their public updates are computed once.
        if _recent.get("key") != shared.digest():
            _recent.clear()
            _recent.update(key=shared.digest(), value=updates())
        trained: Decoder = train(training, *_recent["value"], mask)
        return trained

    shapes = lambda: jax.eval_shape(partial(train, training), *jax.eval_shape(updates), mask)
    decoder: Decoder = cache(digest.hexdigest()[:24], make, shapes)
    estimated = decode(training, decoder, jnp.concatenate([trees.ravel(view.visible) for view in rounds]))
    used = f"decoder of {len(public.labels)} public batches, {float(decoder.explained):.0%} of the variance of held-out ones explained"
    hidden = [path for path, leaf in zip(trees.paths(observation.mask), jax.tree.leaves(observation.mask), strict=True) if bool(jnp.all(leaf))]
    report = {"used": [used], "unused": [f"{path} (hidden whole)" for path in hidden]}
    return dataclasses.replace(observation, estimate=estimated), json.dumps(report)


def learned(*, hidden: Hidden = "learned", num_features: int = 1024, width: int = 256, num_steps: int = 500, learning_rate: float = 2e-3) -> Attack:
    """A decoder from visible entries to inputs, trained on public data under the client's own mask; no optimisation on the client's update.

    Args:
      hidden: kept for the interface: a decoder only reads visible entries, however the others are treated.
      num_features: number of features into which gradient entries are hashed.
      width: units of each of the decoder's two hidden layers.
      num_steps: training steps.
      learning_rate: of training, at its start.

    Raises:
      UsageError: if a number is not positive, or there are no public data.
    """
    require_positive(num_features=num_features, width=width, num_steps=num_steps, learning_rate=learning_rate)
    training = Training(num_features, width, num_steps, learning_rate)

    def finish(observation: Observation, key: Key) -> Reconstruction:
        if observation.estimate is None:
            raise UsageError("attack 'learned' has no decoder yet; call reconstruct, or prepare the observation first")
        images = isinstance(observation.model.input_spec, InputSpec)
        space = (pixels("normal") if images else embeddings())(observation)
        inputs = space.read(space.fix(observation.estimate))
        # No objective decides here, so the most plausible labels are taken.
        labels = observation.labels if observation.labels is not None else plausible()(key, observation, fill(observation, "ignore")).labels[0]
        return Reconstruction.single(inputs, labels, jnp.zeros(()), moved=~jnp.stack([m.all() for m in jax.tree.leaves(observation.mask)]).all())

    return Attack(
        start=lambda key, _: key, advance=lambda _, key, __: key, finish=jax.jit(finish), num_steps=1, num_restarts=1, traceable=False,
        prepare=partial(estimate, training=training), rung=hidden,
    )  # fmt: skip
