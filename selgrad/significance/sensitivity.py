"""FedML-HE's sensitivity, how much a gradient entry moves with the private data, in its published and two non-degenerate forms.

Jin et al., "FedML-HE", arXiv 2303.10837 (jin2023fedmlhe), section 2.4: mean over samples k of |d/dy_k (dl/dw_i)|.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import GradientContext, Grads, Metric, Scores
from selgrad.errors import UsageError
from selgrad.jacobian import gaussian_probes, input_jacobian, linearise, row_norms, unit_vectors


def sensitivity(*, target: Literal["label", "labels", "inputs"] = "label", num_probes: int | None = None) -> Metric:
    """Scores the sensitivity of each entry of the update to the labels or to the inputs.

    `label` is the published form, with the true-label coordinate of each sample. Soft-label cross-entropy is linear in y, so at batch 1
    it equals `magnitude` exactly, and at batch B it is the mean of |g_k| over samples. `labels` is the norm over all class coordinates,
    `inputs` the norm over all input coordinates.

    Args:
      target: the variable by which the update is differentiated.
      num_probes: number of Gaussian probes for `labels` and `inputs`; None is exact for `labels` (one forward pass per sample and class) and uses 64 for
        `inputs` (relative standard error 9 % of a norm); 0 asks for the exact norm over all input coordinates.
    """
    if num_probes is not None and num_probes < 0:
        raise UsageError(f"num_probes={num_probes} must be 0 (exact) or more")
    probes = (num_probes or None) if num_probes is not None else (64 if target == "inputs" else None)

    def score(context: GradientContext) -> Scores:
        model, params, batch = context.model, context.params, context.batch
        one_hot = context.labels

        def by_labels(labels: Array) -> Grads:
            return context.update.client(model, params, batch, labels)

        if target != "label":
            operator = input_jacobian(context) if target == "inputs" else linearise(by_labels, one_hot)
            if probes is None:
                return row_norms(operator, unit_vectors(operator), operator.point.size)
            return row_norms(operator, gaussian_probes(operator, context.key, probes), probes)
        _, linear = jax.linearize(by_labels, one_hot)
        samples = jnp.arange(len(one_hot))

        def alone(sample: Array) -> Array:
            return jnp.where((samples == sample).reshape(-1, *[1] * (one_hot.ndim - 1)), one_hot, 0)

        by_sample = jax.lax.map(lambda k: jax.tree.map(jnp.abs, linear(alone(k))), samples)
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), by_sample)

    used = (probes or 0) if target != "label" else 0
    return Metric(score, lambda *_: used, draws=used > 0)
