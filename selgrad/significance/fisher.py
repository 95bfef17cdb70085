"""The diagonal of the empirical Fisher information: the mean over samples of g_{k,i}^2.

Used for selective encryption by SelectiveShield, arXiv 2508.04265 (selectiveshield2025).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import GradientContext, Grads, Metric, Scores


def fisher() -> Metric:
    """Scores mean_k g_{k,i}^2 from per-sample gradients; at batch 1 magnitude's ranking."""

    def score(context: GradientContext) -> Scores:
        model, params, batch = context.model, context.params, context.batch
        inputs = model.embed(params, batch.inputs)
        labels = jax.nn.one_hot(batch.labels, model.input_spec.num_classes, dtype=inputs.dtype)

        def add(total: Scores, sample: tuple[Array, Array]) -> tuple[Scores, None]:
            grads: Grads = jax.grad(model.loss)(params, sample[0][None], sample[1][None])
            return jax.tree.map(lambda t, g: t + g**2 / len(inputs), total, grads), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, context.grads), (inputs, labels))
        return total

    return score
