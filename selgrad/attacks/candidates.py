"""Which of these was it? An attacker who suspects inputs computes the update of each and compares it with what is visible; nothing is optimised.

The weakest claim that an attack can make, and so the last that a defence can stop: as long as a few entries are visible without noise, they tell one candidate
from all others. Pan et al. 2022 call the comparison of updates exclusivity analysis (pan2022exploring); here it is the whole attack.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selgrad.attacks.distances import cosine, squared_l2
from selgrad.attacks.hidden import Hidden, Target, fill
from selgrad.base import Attack, Batch, Key, Observation, Reconstruction
from selgrad.errors import UsageError


def _pool(observation: Observation) -> Batch:
    """Every public input by itself, with its label.

    Raises:
      UsageError: if there are none.
    """
    if observation.public is None:
        raise UsageError("attack 'candidates' chooses among public inputs; name the data set that holds the suspected ones under `public`")
    pool: Batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), observation.public)
    return pool


def _distance(observation: Observation, aims: list[Target], embedded: Array, labels: Array, valid: Array | None, one_of_many: bool) -> Float[Array, ""]:
    """Of the update of a batch, summed over rounds; by direction where it is one input among others."""
    soft = jax.nn.one_hot(labels, observation.model.input_spec.num_classes)
    found = jnp.zeros(())
    for seen, target in zip(observation.rounds, aims, strict=True):
        update = observation.update(observation.model, seen.params, embedded, soft, valid)
        found = found + (cosine if one_of_many else squared_l2)(update, target)
    return found


def candidates(*, hidden: Hidden = "ignore") -> Attack:
    """Returns the public inputs whose updates are nearest to what is visible; of a batch, those that point most nearly as it does.

    Args:
      hidden: what becomes of encrypted entries.

    Raises:
      UsageError: if there are no public data.
    """

    def joint(observation: Observation, inputs: Array, labels: Array) -> Float[Array, ""]:
        return _distance(observation, [fill(seen, hidden) for seen in observation.rounds], inputs, labels, observation.valid, False)

    def finish(observation: Observation, key: Key) -> Reconstruction:
        size, pool = observation.update.batch_size, _pool(observation)
        aims = [fill(seen, hidden) for seen in observation.rounds]

        def alone(item: Batch) -> Float[Array, ""]:
            # As often as the batch has inputs: a mean over it is what it would be of one.
            copies: Any = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), item)
            embedded = observation.model.embed(observation.params, copies.inputs)
            return _distance(observation, aims, embedded, observation.model.targets(copies), copies.valid, size > 1)

        with jax.default_matmul_precision("highest"):
            distances = jax.lax.map(alone, pool)
            # Where nothing is visible all are alike, and one is drawn.
            order = jnp.lexsort((jax.random.uniform(key, distances.shape), distances))
            chosen: Batch = jax.tree.map(lambda leaf: leaf[order[:size]], pool)
            labels = observation.model.targets(chosen) if observation.labels is None else observation.labels
            objective = joint(observation, observation.model.embed(observation.params, chosen.inputs), labels)
        visible = jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves([seen.visible for seen in observation.rounds])]).any()
        return Reconstruction.single(chosen.inputs, labels.astype(jnp.int32), objective, len(distances), moved=visible)

    return Attack(lambda key, _: key, lambda _, key, __: key, finish, 1, 1, rung=hidden, objective=joint)
