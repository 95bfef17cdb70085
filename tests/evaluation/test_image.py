"""Image measures against scikit-image, and alignment against every permutation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data, metrics

from selgrad.base import Batch, InputSpec, Reconstruction
from selgrad.data import DATASETS
from selgrad.evaluation import MEASURES, align
from selgrad.evaluation.image import ms_ssim, mse, psnr, ssim

RANDOM = np.random.default_rng(0)


def pairs():
    photo = data.astronaut()[100:132, 200:232].astype(np.float32) / 255
    digit = DATASETS["digits"](count=1).pixels[0]
    for image in (photo, photo[:28, :28, :1], digit, data.chelsea()[:100, :120].astype(np.float32) / 255):
        for noise in (0.0, 0.01, 0.3, 5.0):
            yield image, np.clip(image + noise * RANDOM.normal(size=image.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize(("image", "noisy"), list(pairs()))
def test_measures_equal_scikit_image(image, noisy):
    expected = metrics.structural_similarity(image, noisy, channel_axis=-1, data_range=1.0)
    assert abs(float(ssim(jnp.asarray(image), jnp.asarray(noisy))) - expected) < 1e-4
    assert abs(float(mse(jnp.asarray(image), jnp.asarray(noisy))) - metrics.mean_squared_error(image, noisy)) < 1e-6
    if (image != noisy).any():
        assert abs(float(psnr(jnp.asarray(image), jnp.asarray(noisy))) - metrics.peak_signal_noise_ratio(image, noisy, data_range=1.0)) < 1e-3
    else:
        assert float(psnr(jnp.asarray(image), jnp.asarray(noisy))) == pytest.approx(100)


def halved(image):
    high, wide = (n // 2 * 2 for n in image.shape[:2])
    return image[:high, :wide].reshape(high // 2, 2, wide // 2, 2, -1).mean(axis=(1, 3))


@pytest.mark.parametrize(("image", "noisy"), list(pairs()))
def test_several_scales_are_scikit_images_at_each(image, noisy):
    """With a huge first constant luminance counts as alike everywhere, and what scikit-image gives is contrast and structure alone."""
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[: sum(min(image.shape[:2]) >> at >= 7 for at in range(5))]
    expected, pair = 1.0, (image.astype(float), noisy.astype(float))
    for at, exponent in enumerate(exponents / exponents.sum()):
        given = {} if at == len(exponents) - 1 else {"K1": 1e5}
        expected *= max(metrics.structural_similarity(*pair, channel_axis=-1, data_range=1.0, **given), 0) ** exponent
        pair = tuple(map(halved, pair))
    assert abs(float(ms_ssim(jnp.asarray(image), jnp.asarray(noisy))) - expected) < 1e-3


def reconstruction(inputs, labels):
    zero = jnp.zeros(())
    return Reconstruction(inputs, labels, zero, zero > 0, jnp.int32(0), inputs[None], labels[None], zero[None], jnp.int32(0))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_alignment_is_the_best_of_all_permutations_and_carries_labels(batch_size):
    spec = InputSpec((8, 8, 1), 10)
    truth = jnp.asarray(RANDOM.random((batch_size, 8, 8, 1)), jnp.float32)
    labels = jnp.arange(batch_size, dtype=jnp.int32)
    shuffle = RANDOM.permutation(batch_size)
    noisy = jnp.clip(truth + 0.3 * jnp.asarray(RANDOM.normal(size=truth.shape), jnp.float32), 0, 1)
    found = jax.jit(align, static_argnums=0)(spec, Batch(truth, labels), reconstruction(noisy[shuffle], labels[shuffle]))
    best = min(itertools.permutations(range(batch_size)), key=lambda p: float(((truth - noisy[shuffle][jnp.asarray(p)]) ** 2).sum()))
    np.testing.assert_array_equal(found.inputs, noisy[shuffle][jnp.asarray(best)])
    np.testing.assert_array_equal(found.labels, labels[shuffle][jnp.asarray(best)])


def test_normalisation_is_inverted_before_measuring():
    spec = InputSpec((8, 8, 1), 10, (0.3,), (0.2,))
    pixels = jnp.asarray(RANDOM.random((1, 8, 8, 1)), jnp.float32)
    off = jnp.clip(pixels + 0.1, 0, 1)
    batch = Batch(spec.normalise(pixels), jnp.zeros(1, jnp.int32))
    found = reconstruction(spec.normalise(off), batch.labels)
    result = {name: MEASURES[name].of(spec, batch, found) for name in ("mse", "psnr", "ssim")}
    np.testing.assert_allclose(result["mse"], ((pixels - off) ** 2).mean(), rtol=1e-4)
