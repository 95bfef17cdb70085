"""The exposed part of a client update: the `Observation` that an attacker gets.

Encryption never changes how an attacker sees the exposed entries, so this is all that CKKS means to an attack.
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
    """Sets the encrypted entries to zero and passes the rest to the attacker.

    Args:
      model, update, params: public.
      grads: the client update.
      mask: True where encrypted.
      labels: (B, *label_shape) int32, only where the threat model gives them away.
      valid: (B, length) bool, only where there is padding and the threat model gives it away.
      auxiliary: the attacker's own data, such as a language model's parameters.
      public: batches that are public.
      evidence: the client's metric, for an attacker who reads the mask as evidence.
      noise: the standard deviation of the noise that a protection added to each leaf.

    Raises:
      GradientError: if the mask belongs to another tree.
    """
    trees.require_same_tree(mask, grads)
    visible = trees.hide(grads, mask)
    return Observation(
        model=model, sent=(Round(params, visible, mask),), update=update, labels=labels, valid=valid, auxiliary=auxiliary, public=public,
        evidence=evidence, noise=noise,
    )  # fmt: skip


def attacked(model: Model) -> Model:
    """Returns the model that its attacker simulates, whose update may hold more than clients send; the model itself where nothing more is known."""
    return (model.attacked if isinstance(model, Discloses) else None) or model


def disclose(observation: Observation, batch: Batch) -> Observation:
    """Adds to an observation what its attacker knows although it is not sent, for a model that says so; other observations stay unchanged.

    Args:
      observation: of the entries that were sent.
      batch: the client's own.

    Returns:
      The observation of `attacked(model)`: known leaves are visible, free of noise, and part of what an attack matches.
    """
    model = attacked(observation.model)
    if model is observation.model:
        return observation
    labels = jax.nn.one_hot(model.targets(batch), model.input_spec.num_classes)

    # The sent leaves stay unchanged, and the whole update supplies those that are missing.
    def shown(sent: Round) -> Round:
        whole = observation.update.client(model, sent.params, batch, labels)
        return Round(sent.params, {**whole, **sent.visible}, {**jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), whole), **sent.mask})

    rounds, noise = tuple(shown(sent) for sent in observation.sent), observation.noise
    if noise is not None:
        noise = {**jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), rounds[0].visible), **noise}
    return dataclasses.replace(observation, model=model, sent=rounds, noise=noise)
