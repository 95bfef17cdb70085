"""Certificates of a setting: what its masks leave identifiable to first order, from the Jacobian of the update by the inputs.

`selgrad.evaluation.certificates` has the theory; this module combines the rows of all rounds, the noise and the prior of a setting.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from selgrad import devices, jacobian
from selgrad.base import Batch, GradientContext, Grads, Params
from selgrad.errors import UsageError
from selgrad.evaluation.certificates import Certificate, certify, float32_noise, grams, van_trees
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import widen
from selgrad.registry import Spec


class Certifier:
    """Computes certificates of the masks of one setting, cached by metric, selector and seed."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.certificates = functools.lru_cache(maxsize=32)(self._certificates)

    def require_possible(self) -> jax.ShapeDtypeStruct:
        """Returns the shape of one batch's embedded inputs, whose Jacobian certificates need.

        Raises:
          UsageError: if the Jacobian does not fit in memory, attackers know more than what is sent, or a protection leaves entries out.
        """
        setting = self._setting
        embedded = setting.embedded
        if setting.discloses:
            raise UsageError("certificates bound what follows from what is sent, and statistics='known' tells the attacker more; take statistics: sent")
        if setting.leaves_out:
            raise UsageError(
                f"certificates speak of entries that are sent or encrypted, and {setting.protection_spec.label} leaves some out; do without one of them"
            )
        needed, budget = (2 + setting.num_rounds) * 8 * setting.num_total * int(np.prod(embedded.shape)), devices.memory_budget()
        if needed > budget:
            raise UsageError(
                f"certificates of {setting.specs[1].label} need {needed / 1e9:.1f} GB for a Jacobian of {setting.num_total:,} entries by "
                f"{int(np.prod(embedded.shape)):,} inputs, and {budget / 1e9:.1f} GB are free; take a smaller model, batch or input"
            )
        return embedded

    def _certificates(self, metric: Spec, selector: Spec, seed: int, counts: tuple[int, ...]) -> tuple[list[list[Certificate]], list[float]]:
        """Certifies masks of `counts` hidden entries (ascending); noise is float32's rounding and the protection's, and labels count as known.

        Returns:
          Certificates by sample and count; and for each count the Bayesian Cramer-Rao bound on the MSE, averaged over the samples and their masks (NaN for
          text, whose samples have different numbers of unknown coordinates, and where noise is not Gaussian).

        Raises:
          UsageError: if the Jacobian does not fit in memory.
        """
        setting = self._setting
        each = [self.certify(metric, selector, seed, counts, sample) for sample in range(setting.num_samples)]
        # Gaussian noise is the least informative of its variance, so the bound would not hold for other noise.
        if not setting.modality.bounds_all_samples or not setting.protection.gaussian:
            return [certificates for certificates, _, _ in each], [math.nan] * len(counts)
        informations = zip(*(information for _, information, _ in each), strict=True)
        return [certificates for certificates, _, _ in each], [van_trees(information, each[0][2]) for information in informations]

    def certify(self, metric: Spec, selector: Spec, seed: int, counts: tuple[int, ...], sample: int) -> tuple[list[Certificate], list[Any], Any]:
        """Returns one sample's certificates by count over all rounds, the Fisher information of what each mask leaves visible, and the prior's precision.

        Raises:
          UsageError: if the Jacobian does not fit in memory.
        """
        setting = self._setting
        rounds = range(setting.num_rounds)
        flat = lambda t: np.concatenate([np.asarray(leaf[sample]).reshape(-1) for leaf in jax.tree.leaves(setting.ranks(metric, selector, seed, t)[0])])
        # The rounds' rows are stacked; with these ranks the first count * rounds of all rows are the first count of each round.
        ranks = np.concatenate([flat(t).astype(np.int64) * setting.num_rounds + t for t in rounds])
        counts = tuple(count * setting.num_rounds for count in counts)
        parts = [self._jacobian(seed, sample, t) for t in rounds]
        matrix, grads, noise = (np.concatenate([part[i] for part in parts]) for i in range(3))
        prior = parts[0][3]
        informations = list(grams(matrix, ranks, counts, 1 / noise**2))
        return certify(matrix, grads, ranks, counts, noise=noise, prior=prior, informations=informations), informations, prior

    def _jacobian(self, seed: int, sample: int, round_index: int) -> tuple[Any, Any, Any, Any]:
        """Returns J (n, d) in float64 by the inputs that an attacker does not know, the update, its noise, and the prior's precision.

        Inputs are in the unit in which errors are measured, so that a bound and an attack's error can be compared however the model's inputs are normalised.
        """
        setting, embedded = self._setting, self.require_possible()
        params = setting.weights(seed, round_index)
        own = jax.tree.map(lambda leaf: leaf[sample], setting.batches), setting.sent(seed, round_index, sample).grads
        batch, grads = jax.tree.map(jnp.asarray, own)

        def every(params: Params, batch: Batch, grads: Grads) -> Array:
            context = GradientContext(model=setting.model, params=params, batch=batch, update=setting.update, grads=grads, key=jax.random.key(0))
            return jacobian.dense(jacobian.input_jacobian(context))

        with devices.double_precision():
            arguments = jax.tree.map(widen, (params, batch, grads))
            matrix = np.asarray(setting.compiled("jacobian", every, *arguments)(*arguments))
        unknown, unit = setting.modality.unknown(batch, embedded.shape), setting.modality.unit(embedded.shape)
        matrix, unit = (matrix, unit) if unknown.all() else (matrix[:, unknown], unit[unknown])
        matrix = matrix if (unit == 1).all() else matrix / unit
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
        flat: Any = np.concatenate([leaf.astype(np.float64).reshape(-1) for leaf in leaves])
        added = zip(jax.tree.leaves(setting.protection.noise(grads)), leaves, strict=True)
        noise = np.hypot(float32_noise(leaves), np.concatenate([np.full(leaf.size, float(std)) for std, leaf in added]))
        return matrix, flat, noise, setting.modality.prior(setting.model, params, setting.public)
