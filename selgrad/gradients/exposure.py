"""What of a client update is exposed: the `Observation` that an attacker gets.

Encryption never changes what an attacker sees of the exposed entries, so this is all that CKKS means to an attack.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from selgrad import trees
from selgrad.base import Batch, Discloses, Evidence, Grads, Mask, Model, Observation, Params, Round, Update


def observe(
    model: Model,
    update: Update,
    params: Params,
    grads: Grads,
    mask: Mask,
    labels: Array | None = None,
    valid: Array | None = None,
    auxiliary: Any = None,
    public: Batch | None = None,
    evidence: Evidence | None = None,
    noise: Grads | None = None,
) -> Observation:
    """Zeroes the encrypted entries and hands the rest to the attacker.

    Args:
      model, update, params: public.
      grads: the client update.
      mask: True where encrypted.
      labels: (B, *label_shape) int32, only where the threat model gives them away.
      valid: (B, length) bool, only where there is padding and the threat model gives it away.
      auxiliary: what the attacker brought itself.
      public: batches that everybody has.
      evidence: the client's metric, for an attacker that reads the mask as evidence.
      noise: the standard deviation of what a protection added to each leaf.

    Raises:
      GradientError: if the mask is of another tree.
    """
    trees.require_same_tree(mask, grads)
    visible = trees.hide(grads, mask)
    return Observation(
        model=model, sent=(Round(params, visible, mask),), update=update, labels=labels, valid=valid, auxiliary=auxiliary, public=public,
        evidence=evidence, noise=noise,
    )  # fmt: skip


def attacked(model: Model) -> Model:
    """The model as its attacker simulates it, whose update may hold more than clients send: itself where nothing more is known."""
    return (model.attacked if isinstance(model, Discloses) else None) or model


def disclose(observation: Observation, batch: Batch) -> Observation:
    """Adds to an observation what its attacker knows although nobody sends it, for a model that says so; others stay as they are.

    Args:
      observation: of what was sent.
      batch: the client's own.

    Returns:
      The observation of `attacked(model)`: known leaves are visible, free of noise, and part of what an attack matches.
    """
    model = attacked(observation.model)
    if model is observation.model:
        return observation
    labels = jax.nn.one_hot(model.targets(batch), model.input_spec.num_classes)

    # What was sent stays as it was; the whole update fills in what it lacks.
    def shown(one: Round) -> Round:
        whole = observation.update.client(model, one.params, batch, labels)
        return Round(one.params, {**whole, **one.visible}, {**jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), whole), **one.mask})

    rounds, noise = tuple(shown(one) for one in observation.sent), observation.noise
    if noise is not None:
        noise = {**jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), rounds[0].visible), **noise}
    return dataclasses.replace(observation, model=model, sent=rounds, noise=noise)
