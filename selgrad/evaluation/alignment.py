"""Alignment of a reconstructed batch with the truth: the assignment of least total squared error.

A gradient is a sum over samples and so has no order. The truth determines the order here, for measuring only; no attack sees it.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array

from selgrad.base import Batch, InputSpec, Reconstruction


def align(spec: InputSpec, batch: Batch, reconstruction: Reconstruction) -> Reconstruction:
    """Reorders `inputs` and `labels` by the Hungarian algorithm on pairwise MSE of clipped pixels; identity at batch 1."""
    if batch.inputs.shape[0] == 1:
        return reconstruction
    truth, image = spec.pixels(batch.inputs), jnp.clip(spec.pixels(reconstruction.inputs), 0, 1)
    costs: Array = jnp.mean((truth[:, None] - image[None]) ** 2, axis=tuple(range(2, truth.ndim + 1)))
    rows, columns = optax.assignment.hungarian_algorithm(jnp.nan_to_num(costs, nan=1e6))
    order = jnp.zeros(len(truth), jnp.int32).at[rows].set(columns.astype(jnp.int32))
    return reconstruction._replace(inputs=reconstruction.inputs[order], labels=reconstruction.labels[order])
