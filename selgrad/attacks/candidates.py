"""Identification of a suspected input: the attacker computes the update of each suspect and compares it with the visible entries; nothing is optimised.

This is the weakest claim that an attack can make, and so the last that a defence can stop: as long as a few entries are visible without noise, they
distinguish one candidate from all others. Pan et al. 2022 call the comparison of updates exclusivity analysis (pan2022exploring); here it is the whole attack.
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
    """Returns every public input by itself, with its label.

    Raises:
      UsageError: if there are none.
    """
    if observation.public is None:
        raise UsageError("attack 'candidates' chooses among public inputs; name the data set that holds the suspected ones under `public`")
    pool: Batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), observation.public)
    return pool


def _distance(observation: Observation, aims: list[Target], embedded: Array, labels: Array, valid: Array | None, one_of_many: bool) -> Float[Array, ""]:
    """Returns the distance of a batch's update, summed over rounds; it compares directions where the input is one of several."""
    soft = jax.nn.one_hot(labels, observation.model.input_spec.num_classes)
    total = jnp.zeros(())
    for view, target in zip(observation.rounds, aims, strict=True):
        update = observation.update(observation.model, view.params, embedded, soft, valid)
        total = total + (cosine if one_of_many else squared_l2)(update, target)
    return total


def candidates(*, hidden: Hidden = "ignore") -> Attack:
    """Returns the public inputs whose updates are nearest to the visible entries; for a batch, those whose updates agree best with it in direction.

    Args:
      hidden: how encrypted entries are treated.

    Raises:
      UsageError: if there are no public data.
    """

    def joint(observation: Observation, inputs: Array, labels: Array) -> Float[Array, ""]:
        return _distance(observation, [fill(view, hidden) for view in observation.rounds], inputs, labels, observation.valid, False)

    def finish(observation: Observation, key: Key) -> Reconstruction:
        size, pool = observation.update.batch_size, _pool(observation)
        aims = [fill(view, hidden) for view in observation.rounds]

        def alone(item: Batch) -> Float[Array, ""]:
            # The input is repeated to fill the batch: the mean over the batch then equals the value for one input.
            copies: Any = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), item)
            embedded = observation.model.embed(observation.params, copies.inputs)
            return _distance(observation, aims, embedded, observation.model.targets(copies), copies.valid, size > 1)

        with jax.default_matmul_precision("highest"):
            distances = jax.lax.map(alone, pool)
            # Where nothing is visible, all distances are equal and the choice is random.
            order = jnp.lexsort((jax.random.uniform(key, distances.shape), distances))
            chosen: Batch = jax.tree.map(lambda leaf: leaf[order[:size]], pool)
            labels = observation.model.targets(chosen) if observation.labels is None else observation.labels
            objective = joint(observation, observation.model.embed(observation.params, chosen.inputs), labels)
        # Visible zeros tell candidates apart, too: entries that are not zero for all of them.
        visible = jnp.stack([jnp.any(~leaf) for leaf in jax.tree.leaves([view.mask for view in observation.rounds])]).any() & (
            distances.max() > distances.min()
        )
        return Reconstruction.single(chosen.inputs, labels.astype(jnp.int32), objective, len(distances), moved=visible)

    return Attack(lambda key, _: key, lambda _, key, __: key, finish, 1, 1, rung=hidden, objective=joint)
