"""The diagonal of the empirical Fisher information: the mean over samples of g_{k,i}^2.

Used for selective encryption by SelectiveShield, arXiv 2508.04265 (selectiveshield2025).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import Batch, GradientContext, Metric, Scores, embedding_of, loss_gradient


def fisher() -> Metric:
    """Scores mean_k g_{k,i}^2 from per-sample gradients; at batch 1 this is magnitude's ranking."""

    def score(context: GradientContext) -> Scores:
        model, params, batch = context.model, context.params, context.batch
        size = len(batch.inputs)

        def add(total: Scores, sample: tuple[Batch, Array]) -> tuple[Scores, None]:
            single, labels = jax.tree.map(lambda leaf: leaf[None], sample)
            grads = loss_gradient(model, params, embedding_of(model, single), labels, single.valid)
            return jax.tree.map(lambda t, g: t + g**2 / size, total, grads), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, context.grads), (batch, context.labels))
        return total

    return Metric(score)
