"""What of a client update is exposed: the `Observation` that an attacker gets.

Encryption never changes what an attacker sees of the exposed entries, so this is all that CKKS means to an attack.
"""

from __future__ import annotations

from typing import Any

from jax import Array

from selgrad import trees
from selgrad.base import Batch, Evidence, Grads, Mask, Model, Observation, Params, Round, Update


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
