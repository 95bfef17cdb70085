"""What an attacker believes about images before it has seen a gradient.

Total variation is a penalty on the dummy input, added to the gradient distance. A Gaussian is also a change of variables: it maps white noise, in which every
direction is equally likely, to images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from selgrad import trees
from selgrad.base import Batch, InputSpec, Normalises, Observation
from selgrad.errors import UsageError


class Gaussian(NamedTuple):
    """N(mean, L L') of one image, in the units that the model reads; L is symmetric.

    Attributes:
      mean: (*shape,).
      root: (..., *shape) -> L times each.
      inverse: the inverse of `root`.
    """

    mean: Float[Array, "h w c"]
    root: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """An array as a dictionary key, compared by identity and not by content."""

    array: Array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.array is other.array


def _moments(inputs: _Same, size: int, shrinkage: float) -> tuple[Array, Array, Array, Array]:
    """Returns the mean (d,), deviations (n,) along a basis (n, d), and the variance outside of it, of public images.

    Where the images are not traced, this is computed once for all programs and is part of none.
    """
    if isinstance(inputs.array, jax.core.Tracer):
        return _computed(inputs, size, shrinkage)
    with jax.ensure_compile_time_eval():
        return _remembered(inputs, size, shrinkage)


def _computed(inputs: _Same, size: int, shrinkage: float) -> tuple[Array, Array, Array, Array]:
    images = inputs.array.reshape(-1, size)
    mean = images.mean(axis=0)
    values, basis = jnp.linalg.svd((images - mean) / jnp.sqrt(len(images)), full_matrices=False)[1:]
    rest = jnp.maximum(shrinkage * (values**2).sum() / size, 1e-8)
    return mean, jnp.sqrt((1 - shrinkage) * values**2 + rest), basis, rest


_remembered = functools.lru_cache(maxsize=4)(_computed)


def of_public(public: Batch, spec: InputSpec, shrinkage: float = 0.1) -> Gaussian:
    """Fits mean and covariance to public images, with the covariance shrunk towards the mean variance.

    Args:
      public: batches, (count, B, *shape).
      spec: of the images.
      shrinkage: weight of the mean variance, in (0, 1]: directions that the images do not span need some variance.
    """
    mean, deviations, basis, rest = _moments(_Same(public.inputs), int(np.prod(spec.shape)), shrinkage)

    def scaled(spread: Array, other: Array) -> Callable[[Array], Array]:
        def apply(x: Array) -> Array:
            flat = x.reshape(-1, len(mean))
            return (other * flat + (flat @ basis.T * (spread - other)) @ basis).reshape(x.shape)

        return apply

    outside = jnp.sqrt(rest)
    return Gaussian(mean.reshape(spec.shape), scaled(deviations, outside), scaled(1 / deviations, 1 / outside))


def _cosines(size: int) -> npt.NDArray[np.float64]:
    """Returns the orthonormal cosine transform of `size` points, (frequencies, points)."""
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    transform: npt.NDArray[np.float64] = np.sqrt(np.where(k, 2.0, 1.0) / size) * np.cos(np.pi * (n + 0.5) * k / size)
    return transform


def of_nature(spec: InputSpec, deviation: float = 0.25) -> Gaussian:
    """Returns a prior that is grey on average and whose power falls with the square of the frequency, as in photographs (Field 1987, field1987relations).

    Args:
      spec: of the images.
      deviation: standard deviation of a pixel in [0, 1].
    """
    height, width, _ = spec.shape
    rows, columns = _cosines(height), _cosines(width)
    frequency = np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None, :] / width) * max(height, width)
    power = 1 / (1 + frequency**2)
    spread = deviation * np.sqrt(power / power.mean())
    unit = np.asarray(spec.std, np.float64)

    def scaled(scales: npt.NDArray[np.float64], unit: npt.NDArray[np.float64]) -> Callable[[Array], Array]:
        def apply(x: Array) -> Array:
            frequencies = jnp.einsum("ah,...hwc,bw->...abc", rows.astype(x.dtype), x, columns.astype(x.dtype)) * scales[..., None].astype(x.dtype)
            return jnp.einsum("ah,...abc,bw->...hwc", rows.astype(x.dtype), frequencies, columns.astype(x.dtype)) / unit.astype(x.dtype)

        return apply

    return Gaussian(jnp.broadcast_to((0.5 - jnp.asarray(spec.mean)) / jnp.asarray(spec.std), spec.shape), scaled(spread, unit), scaled(1 / spread, 1 / unit))


def total_variation(images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Returns the mean absolute difference of vertical neighbours plus that of horizontal ones.

    Geiping et al. 2020 (geiping2020inverting), whose released code takes the mean, not the sum.
    """
    return jnp.abs(jnp.diff(images, axis=1)).mean() + jnp.abs(jnp.diff(images, axis=2)).mean()


def batch_statistics(observation: Observation, images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Returns how far a batch moves running statistics: the mean over normalisations and channels of (mean' - mean)^2 / var + (var' / var - 1)^2.

    Images like those that the network was trained on move them little. This is GradInversion's term (Yin et al. 2021, yin2021gradinversion, equation 9), here
    in units of the running statistics themselves, so that layers with large activations do not dominate. The primes are the running statistics after the
    batch: with a momentum of 0.9 the result is a hundredth of what the batch's own statistics would give.

    Raises:
      UsageError: when traced, if the model keeps no running mean and variance.
    """
    model, params = observation.model, observation.params
    statistics = model.statistics_loss(params, images) if isinstance(model, Normalises) else {}
    losses = dict(zip(trees.paths(statistics), jax.tree.leaves(statistics), strict=True))
    running = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))
    layers = [path.removesuffix("/var") for path in losses if path.endswith("/var") and f"{path.removesuffix('var')}mean" in losses]
    if not layers:
        raise UsageError("statistics_weight: the model keeps no running mean and variance of batches; take 0")
    terms = []
    for layer in layers:
        variance = running[f"{layer}/var"] + 1e-5
        terms.append(jnp.mean(losses[f"{layer}/mean"] ** 2 / variance + (losses[f"{layer}/var"] / variance) ** 2))
    return jnp.stack(terms).mean()
