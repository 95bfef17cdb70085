"""Gradient magnitude, |g_i|: encrypt the largest entries first.

Gu et al., "Evaluating Selective Encryption Against Gradient Inversion Attacks", arXiv 2508.04155 (gu2025selective), find it generally effective.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selgrad.base import GradientContext, Metric, Scores


def magnitude() -> Metric:
    """Scores |g_i|, with the shapes and dtypes of the gradient."""

    def score(context: GradientContext) -> Scores:
        return jax.tree.map(jnp.abs, context.grads)

    return Metric(score)
