"""What an attacker believes of images before it has seen a gradient.

A prior is a penalty on the dummy input, added to the gradient distance.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def total_variation(images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean absolute difference of vertical neighbours plus that of horizontal ones.

    Geiping et al. 2020 (geiping2020inverting), whose released code takes the mean, not the sum.
    """
    return jnp.abs(jnp.diff(images, axis=1)).mean() + jnp.abs(jnp.diff(images, axis=2)).mean()
