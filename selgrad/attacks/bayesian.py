"""The most likely image given the visible entries: DLG's distance and a Gaussian prior, by L-BFGS in coordinates in which the prior is white.

Balunovic et al., "Bayesian Framework for Gradient Leakage", ICLR 2022 (balunovic2022bayesian), who read every matching attack as the mode of a posterior.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from selgrad.attacks.distances import squared_l2
from selgrad.attacks.hidden import Hidden, fill
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.labels import rule_for
from selgrad.attacks.minimisers import lbfgs
from selgrad.attacks.spaces import image_prior, whitened
from selgrad.attacks.trials import likely_images
from selgrad.base import Attack, Observation


def bayesian(
    *,
    num_steps: int = 150,
    num_restarts: int = 1,
    hidden: Hidden = "ignore",
    shrinkage: float = 0.1,
    evaluations_per_step: int = 20,
    memory: int = 100,
    max_step: float = 0.1,
) -> Attack:
    """Runs L-BFGS on |g' - g|^2 / noise^2 + |z|^2 over images mu + L z, with labels as in Inverting Gradients.

    Where no noise was added the second term vanishes, and the prior acts through the coordinates alone: from z = 0, steps along combinations of gradients find
    the likeliest of all images that explain the visible entries, exactly so where the update is linear in the image. In pixels the same search ends at
    the image nearest to its start, which behind a mask is grey noise (docs/theory.md, section 6).

    Args:
      num_steps: outer iterations.
      num_restarts: independent starts near the prior's mean, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      shrinkage: weight of the mean variance in the covariance of the public images; without public images the prior is that of photographs.
      evaluations_per_step: gradient evaluations per outer iteration.
      memory: curvature pairs.
      max_step: root mean square by which one evaluation may move z.
    """

    def unlikely(observation: Observation, images: Array) -> Array:
        if observation.noise is None:
            return jnp.zeros(())
        # Every entry is weighted by the mean noise variance: a protection's noise is the same in all leaves, or nearly so.
        sizes = [leaf.size for leaf in jax.tree.leaves(observation.visible)]
        variance = sum(size * std**2 for size, std in zip(sizes, jax.tree.leaves(observation.noise), strict=True)) / sum(sizes)
        prior, unit = image_prior(observation, shrinkage), fill(observation, hidden).inverse
        return variance * unit * unit * jnp.sum(prior.inverse(images - prior.mean) ** 2)

    kernel = gradient_matching(
        distance=squared_l2,
        prior=unlikely,
        minimiser=lambda _: lbfgs(memory=memory, max_step=max_step),
        hidden=hidden,
        space=whitened(shrinkage),
        label_rule=rule_for(hidden),
        trial=likely_images(),
        evaluations_per_step=evaluations_per_step,
    )
    return iterate(kernel, num_steps=num_steps, num_restarts=num_restarts)
