"""Where an attack on images starts: the published noise, or flat grey.

The small singular values of a gradient's Jacobian belong to fine detail. Noise of variance 1 puts more energy there than any photograph has,
and the optimisation must remove it; from grey there is little to remove.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import InputSpec, Key

Start: TypeAlias = Literal["normal", "grey"]
TextStart: TypeAlias = Literal["normal", "vocabulary"]
"""`normal` is N(0, 1); `vocabulary` scales each dummy embedding to the mean norm of the vocabulary's, as LAMP does."""


def draw(start: Start, key: Key, batch_size: int, spec: InputSpec) -> Array:
    """Draws dummy inputs `(batch_size, *spec.shape)` float32 in the model's normalised units.

    Args:
      start: `normal` is N(0, 1), as published for DLG, iDLG and Inverting Gradients; `grey` is pixel value 0.5 with noise of standard
        deviation 0.1 (ours; that the start decides much of DLG's success is Wei et al. 2020, wei2020framework).
      key: of the noise.
      batch_size: inputs in the batch.
      spec: their shape and normalisation.
    """
    noise = jax.random.normal(key, (batch_size, *spec.shape))
    if start == "normal":
        return noise
    mean, std = jnp.asarray(spec.mean), jnp.asarray(spec.std)
    return (0.5 + 0.1 * noise - mean) / std
