"""Image measures: MSE, PSNR, SSIM and multi-scale SSIM between pixels in [0, 1], averaged over the batch.

SSIM: Wang et al. 2004 (wang2004ssim) with the uniform 7x7 window and the sample covariance, scikit-image's defaults. Over several scales: Wang, Simoncelli and
Bovik 2003 (wang2003multiscale), with the same window.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selgrad.base import Batch, InputSpec, Reconstruction
from selgrad.measures import Measure


def mse(truth: Float[Array, "*b h w c"], image: Float[Array, "*b h w c"]) -> Float[Array, " *b"]:
    """Returns the mean squared error per image."""
    return jnp.mean((truth - image) ** 2, axis=(-3, -2, -1))


def psnr(truth: Float[Array, "*b h w c"], image: Float[Array, "*b h w c"]) -> Float[Array, " *b"]:
    """Returns the peak signal-to-noise ratio in dB for a data range of 1, at most 100 dB (an MSE of 1e-10)."""
    return -10 * jnp.log10(jnp.maximum(mse(truth, image), 1e-10))


_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, the finest first (wang2003multiscale, section 3.2)."""
_WINDOW = 7


def _similarities(truth: Float[Array, "h w c"], image: Float[Array, "h w c"]) -> tuple[Float[Array, "y x c"], Float[Array, "y x c"]]:
    """Returns the similarity of two images in luminance, and in contrast and structure, for every window inside the image."""
    size = min(_WINDOW, *((n - 1) // 2 * 2 + 1 for n in truth.shape[:2]))

    def mean(x: Array) -> Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (size, size, 1), (1, 1, 1), "valid") / size**2

    # Means are subtracted first: in float32, E[x^2] - E[x]^2 loses the precision that SSIM's small constants need.
    shift_t, shift_i = truth.mean((0, 1)), image.mean((0, 1))
    t, i = truth - shift_t, image - shift_i
    unbiased = size**2 / (size**2 - 1)
    mt, mi = mean(t), mean(i)
    vt, vi, cov = (unbiased * (mean(a * b) - ma * mb) for a, b, ma, mb in ((t, t, mt, mt), (i, i, mi, mi), (t, i, mt, mi)))
    mt, mi = mt + shift_t, mi + shift_i
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mt * mi + c1) / (mt**2 + mi**2 + c1), (2 * cov + c2) / (vt + vi + c2)


def ssim(truth: Float[Array, "h w c"], image: Float[Array, "h w c"]) -> Float[Array, ""]:
    """Returns the structural similarity of one pair, in [-1, 1], averaged over channels and over windows inside the image.

    The window is 7x7, or the largest odd square that fits a smaller image.
    """
    luminance, structure = _similarities(truth, image)
    return jnp.mean(luminance * structure)


def ms_ssim(truth: Float[Array, "h w c"], image: Float[Array, "h w c"]) -> Float[Array, ""]:
    """Returns the structural similarity of one pair over several scales, in [0, 1]: fine noise costs less than a wrong shape.

    It is the product over scales of the mean similarity of contrast and structure, with that of luminance at the coarsest scale. Each scale halves the one
    before, and there are at most five, as long as each side keeps 7 pixels. Their exponents add up to 1; where a mean is negative, the product is 0.
    """
    count = 1
    while count < len(_SCALES) and min(truth.shape[:2]) >> count >= _WINDOW:
        count += 1
    product = jnp.ones((), truth.dtype)
    for scale, exponent in enumerate(_SCALES[:count]):
        luminance, structure = _similarities(truth, image)
        similarity = jnp.mean(luminance * structure if scale == count - 1 else structure)
        product *= jnp.maximum(similarity, 0) ** (exponent / sum(_SCALES[:count]))
        truth, image = (jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2, 1), (2, 2, 1), "valid") / 4 for x in (truth, image))
    return product


def _of_pixels(compare: Callable[[Array, Array], Array]) -> Callable[[InputSpec, Batch, Reconstruction], Array]:
    """Returns a measure: the mean over a batch of a comparison of pixels, denormalised and clipped to [0, 1] as an image file would hold them."""

    def measure(spec: InputSpec, batch: Batch, reconstruction: Reconstruction) -> Array:
        return compare(spec.pixels(batch.inputs), jnp.clip(spec.pixels(reconstruction.inputs), 0, 1)).mean()

    return measure


MEASURES = (
    Measure(
        "mse", "MSE", "Mean squared error of pixels in [0, 1].", _of_pixels(mse), lower_is_better=True, threshold=1e-3, summary=True, limits=(0.0, math.inf)
    ),
    Measure(
        "psnr",
        "PSNR (dB)",
        "Peak signal-to-noise ratio, at most 100 dB.",
        _of_pixels(psnr),
        unit="dB",
        headline=True,
        curve=True,
        summary=True,
        limits=(-math.inf, 100.0),
    ),
    Measure("ssim", "SSIM", "Structural similarity in [-1, 1] over 7x7 windows.", _of_pixels(jax.vmap(ssim)), curve=True, summary=True, limits=(-1.0, 1.0)),
    Measure("ms_ssim", "MS-SSIM", "Structural similarity over several scales, in [0, 1].", _of_pixels(jax.vmap(ms_ssim))),
)
