"""Label measures: the share of a batch's labels that an attack recovered.

The labels are those of the aligned reconstruction: what the attack optimised or inferred, never its initial ones.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from selgrad.base import Batch, InputSpec, Reconstruction
from selgrad.measures import Measure


def label_correct(spec: InputSpec, batch: Batch, reconstruction: Reconstruction) -> Array:
    """The share of labels that are right, in [0, 1]."""
    return jnp.mean(reconstruction.labels == batch.labels)


MEASURES = (Measure("label_correct", "share of labels recovered", "Share of the batch's labels recovered.", label_correct, "labels", curve=True),)
"""Of text the same is counted where it is decoded, over the positions that have a label."""
