"""Trials of which of several labels fits the visible entries, under an image prior.

A wrong label matches a masked gradient as well as the right one where images are unconstrained: behind magnitude at 80 % on DLG's LeNet its squared
distance stays below the right label's for a thousand evaluations. So labels are tried on likely images.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from selgrad.attacks.distances import leaf_l2
from selgrad.attacks.kernel import Matching, Trial
from selgrad.attacks.minimisers import lbfgs
from selgrad.attacks.spaces import image_prior, whitened
from selgrad.base import Observation

_SHRINKAGE, _WEIGHT = 0.1, 0.1


def _unlikely(observation: Observation, images: Array) -> Array:
    """Returns minus the logarithm of the prior's density per pixel, up to constants."""
    prior = image_prior(observation, _SHRINKAGE)
    return _WEIGHT * jnp.mean(prior.inverse(images - prior.mean) ** 2)


def likely_images(num_evaluations: int = 200) -> Trial:
    """Returns trials by L-BFGS from the prior's mean on the distance that weights all leaves equally, with a Gaussian prior of public images or photographs.

    Args:
      num_evaluations: evaluations spent on each label.
    """
    return Trial(num_evaluations, Matching(leaf_l2, whitened(_SHRINKAGE), lambda _: lbfgs(memory=50), _unlikely))
