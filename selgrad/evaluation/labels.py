"""Label measures: the share of a batch's labels that an attack recovered.

The labels are those of the aligned reconstruction: what the attack optimised or inferred, never its initial ones.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from selgrad.base import Batch, InputSpec, Reconstruction


def label_accuracy(spec: InputSpec, batch: Batch, reconstruction: Reconstruction) -> dict[str, Array]:
    """`label_correct`, in [0, 1]."""
    return {"label_correct": jnp.mean(reconstruction.labels == batch.labels)}
