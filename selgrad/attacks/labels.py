"""Label recovery from the gradient of the last dense layer, with whatever of it is visible.

With one-hot cross-entropy, d loss / d kernel[:, c] = h (p_c - y_c): for non-negative features h, only the true class has a negative sum.
Zhao et al., "iDLG", arXiv 2001.02676 (zhao2020idlg), equations 4 to 6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from selgrad.attacks.hidden import Target
from selgrad.base import Key, Observation


def most_negative_columns(key: Key, observation: Observation, target: Target) -> Int[Array, " b"]:
    """The batch_size classes with the smallest column sums of the last layer's gradient, smallest first.

    Exact at batch 1 for non-negative features; for a batch it assumes distinct labels (Yin et al. 2021, yin2021gradinversion). Classes
    whose column is hidden whole sum to 0 and are ordered at random, so that nothing visible gives a guess and not class 0.
    """
    kernel = target.grads
    for part in observation.model.head.split("/"):
        kernel = kernel[part]
    sums = kernel["kernel"].sum(axis=0)
    order = jnp.lexsort((jax.random.uniform(key, sums.shape), sums))
    classes: Array = order[jnp.arange(observation.update.batch_size) % sums.size].astype(jnp.int32)
    return classes
