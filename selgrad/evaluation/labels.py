"""Label measures: the share of a batch's labels that an attack recovered.

The labels are those of the aligned reconstruction: the ones that the attack optimised or inferred, never its initial ones.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from selgrad.base import Batch, InputSpec, Reconstruction
from selgrad.measures import Measure


def label_correct(spec: InputSpec, batch: Batch, reconstruction: Reconstruction) -> Array:
    """Returns the share of labels that are right, in [0, 1]."""
    return jnp.mean(reconstruction.labels == batch.labels)


MEASURES = (Measure("label_correct", "share of labels recovered", "Share of the batch's labels recovered.", label_correct, "labels", curve=True),)
"""For text the same measure is computed where the text is decoded, over the positions that have a label."""
