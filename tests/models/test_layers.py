"""selgrad's layers against XLA's and Flax's own, to the second derivative and under every pattern of vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selgrad.models.convolution import convolve
from selgrad.models.layers import Conv, Dense, max_pool

SHAPES = [(9, 5, 2, 2, 3, 4), (8, 3, 1, 1, 2, 5), (8, 5, 2, 2, 4, 3), (7, 3, 2, 0, 2, 2), (10, 5, 1, 2, 2, 3), (4, 5, 2, 2, 1, 2)]


def xla(x, w, stride, padding):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def second_order(convolution, stride, padding):
    """Differentiates a function of the weight gradient, as every attack does."""

    def loss(w, x):
        return jnp.sum(jnp.tanh(convolution(jnp.sin(x), w, stride=stride, padding=padding)) ** 2)

    return jax.grad(lambda x, w: jnp.sum(jnp.cos(jax.grad(loss)(w, x))), (0, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axes", [None, (0, None), (None, 0), (0, 0), "nested", "twice"], ids=str)
def test_second_derivatives_equal_xla(x64, shape, axes):
    size, kernel, stride, padding, channels, features = shape
    random = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(random.normal(size=s))
    ours, theirs = (second_order(c, stride, padding) for c in (convolve, xla))
    x, w = draw(2, size, size, channels), draw(kernel, kernel, channels, features)
    if axes == "nested":  # seeds outside, lanes inside, as a block has them
        wrap = lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0))
        x, w = draw(3, *x.shape), draw(4, *w.shape)
    elif axes == "twice":
        wrap = lambda f: jax.vmap(jax.vmap(f))
        x, w = draw(2, 3, *x.shape), draw(2, 3, *w.shape)
    elif axes is None:
        wrap = lambda f: f
    else:
        wrap = lambda f: jax.vmap(f, axes)
        x = draw(3, *x.shape) if axes[0] == 0 else x
        w = draw(3, *w.shape) if axes[1] == 0 else w
    for found, expected in zip(jax.jit(wrap(ours))(x, w), jax.jit(wrap(theirs))(x, w), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_forward_mode_over_reverse_mode_equals_xla(x64):
    random = np.random.default_rng(1)
    x, w = jnp.asarray(random.normal(size=(2, 9, 9, 3))), jnp.asarray(random.normal(size=(5, 5, 3, 4)))

    def tangent(convolution):
        grads = lambda x: jax.grad(lambda w: jnp.sum(jnp.tanh(convolution(x, w, stride=2, padding=2))))(w)
        return jax.jvp(grads, (x,), (jnp.cos(x),))[1]

    np.testing.assert_allclose(tangent(convolve), tangent(xla), rtol=1e-9, atol=1e-12)


def test_layer_has_the_parameters_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    ours, theirs = Conv(4, 5, stride=2, padding=2), nn.Conv(4, (5, 5), strides=2, padding=2)
    params = ours.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [50, 96])
def test_dense_equals_flax(x64, width):
    x = jax.random.normal(jax.random.key(0), (3, width))
    ours, theirs = Dense(7), nn.Dense(7)
    params = ours.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-12)


def test_dense_rounds_less_than_one_long_sum():
    """A running sum of n terms errs like n roundings of it; a sum of short sums like fewer."""
    rng = np.random.default_rng(0)
    x, kernel = rng.random((1, 4096)).astype(np.float32), rng.uniform(-0.5, 0.5, (4096, 200)).astype(np.float32)
    ours = Dense(200).apply({"params": {"kernel": kernel, "bias": np.zeros(200, np.float32)}}, jnp.asarray(x))
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    running = np.zeros((1, 200), np.float32)
    for row in range(4096):
        running += x[:, row : row + 1] * kernel[row]
    assert np.abs(ours - exact).std() < np.abs(running - exact).std() / 3


def test_max_pool_equals_flax():
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2), strides=(2, 2)))
