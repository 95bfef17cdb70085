"""MaskCrypt's product of the exposed weight error and the gradient: (w_exposed - w_new) * dl/dw.

Hu and Li, "MaskCrypt: Federated Learning with Selective Homomorphic Encryption", IEEE TDSC 2024 (hu2024maskcrypt).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from selgrad.base import GradientContext, Metric, Scores, embedding_of, loss_gradient


def product(*, exposed: Literal["zero", "old"] = "zero", signed: bool = False, gradient_at: Literal["old", "new"] = "old") -> Metric:
    """Scores how much the loss changes, to first order, when the exposed weight replaces the client's new weight.

    With `exposed="old"` and one gradient step it is proportional to g^2: magnitude's mask. With `exposed="zero"` it is -w * g.

    Args:
      exposed: the server's knowledge of the weight: nothing (0), or the old global weight.
      signed: sort by the signed product, as MaskCrypt's code does, or by its absolute value.
      gradient_at: the weights at which the loss is differentiated; MaskCrypt's client does so after training ("new").
    """

    def score(context: GradientContext) -> Scores:
        model, params, batch = context.model, context.params, context.batch
        sent, frozen = model.split(params)
        new = context.update.new_params(sent, context.grads)
        weights = model.merge(new, frozen) if gradient_at == "new" else params
        grads = loss_gradient(model, weights, embedding_of(model, batch), context.labels, batch.valid)
        if exposed == "old":
            # The client sends w_old - w_new, up to the step size; exact where it sends its gradient.
            error = context.grads
        else:
            error = jax.tree.map(jnp.negative, new)
        scores = jax.tree.map(jnp.multiply, error, grads)
        return scores if signed else jax.tree.map(jnp.abs, scores)

    return Metric(score)
