"""Gradients that are never written out give the distances, and the derivatives, that the written ones give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad import trees
from selgrad.attacks import ATTACKS, outer
from selgrad.attacks.distances import cosine, l2_l1, mean_leaf_cosine, squared_l2
from selgrad.attacks.hidden import Target, fill
from selgrad.attacks.outer import Outer, factored
from selgrad.base import Batch, InputSpec
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS, own_model

SPEC = InputSpec((8, 8, 1), 4)
DISTANCES = {"squared_l2": squared_l2, "l2_l1": lambda g, t: l2_l1(g, t, 0.01), "cosine": cosine, "mean_leaf_cosine": mean_leaf_cosine}


class Heads(nn.Module):
    """A dense layer of several output axes, one that is used twice, and a network's own transposed product."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = nn.DenseGeneral((3, 5), name="heads")(x).reshape(len(x), -1)
        twice = nn.Dense(15, name="twice")
        x = jnp.tanh(twice(jnp.tanh(twice(x))))
        w = self.param("own", nn.initializers.normal(), (4, 15))
        return x @ jax.jit(jnp.transpose)(w)


def drawn(name, shape, batch_size):
    key = jax.random.key(len(name) + batch_size)
    model = own_model(Heads(), SPEC, head="") if name == "heads" else MODELS[name](SPEC)
    update = UPDATES["gradient"](batch_size=batch_size)
    params = jax.jit(model.init)(key)
    inputs, labels = jax.random.uniform(key, (batch_size, *shape)), jnp.arange(batch_size) % 4
    return model, update, params, inputs, labels


@pytest.fixture(scope="module", params=[("mlp", 1), ("mlp", 3), ("cnn", 1), ("lenet", 2), ("heads", 1), ("heads", 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request):
    name, batch_size = request.param
    model, update, params, inputs, labels = drawn(name, SPEC.shape, batch_size)
    soft = jax.nn.one_hot(labels, 4)
    function = lambda params, inputs: update(model, params, inputs, soft)
    grads = jax.jit(lambda: update.client(model, params, Batch(inputs, labels), soft))()
    rng = np.random.default_rng(0)
    mask = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < 0.3), grads)
    return function, params, inputs + 0.3, observe(model, update, params, grads, mask), grads


def written(tree):
    return jax.tree.map(lambda leaf: leaf.dense() if isinstance(leaf, Outer) else leaf, tree, is_leaf=outer.is_outer)


def test_the_update_is_the_same_written_out(case):
    function, params, inputs, _, grads = case
    found = jax.jit(lambda: written(factored(function, params, inputs)))()
    for path, a, b in zip(trees.paths(grads), jax.tree.leaves(found), jax.tree.leaves(jax.jit(function)(params, inputs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(jnp.abs(b).max()), err_msg=path)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_and_derivatives_are_those_of_the_written_update(case, distance):
    function, params, inputs, observation, _ = case
    measure = DISTANCES[distance]

    @jax.jit
    def both(inputs, target):
        updates = (lambda x: factored(function, params, x), lambda x: function(params, x))
        return [jax.value_and_grad(lambda x, update=update: measure(update(x), target))(inputs) for update in updates]

    for hidden in ("zero", "average", "ignore"):
        (value, slope), (plain, plain_slope) = both(inputs, fill(observation, hidden))
        np.testing.assert_allclose(value, plain, rtol=2e-5, atol=1e-6, err_msg=hidden)
        np.testing.assert_allclose(slope, plain_slope, rtol=1e-3, atol=2e-5 * float(jnp.abs(plain_slope).max()), err_msg=hidden)


@pytest.mark.parametrize(("name", "batch_size", "expected"), [("mlp", 1, 3), ("mlp", 2, 0), ("cnn", 1, 2), ("lenet", 1, 1), ("heads", 1, 2)])
def test_every_dense_layer_of_a_batch_of_one_has_factors(name, batch_size, expected):
    model, update, params, inputs, labels = drawn(name, SPEC.shape, batch_size)
    found = jax.eval_shape(lambda x: factored(lambda p, x: update(model, p, x, jax.nn.one_hot(labels, 4)), params, x), inputs)
    # One layer's gradient is a sum of two products, which no factor stands for.
    assert sum(isinstance(leaf, Outer) for leaf in jax.tree.leaves(found, is_leaf=outer.is_outer)) == expected


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 40), f=st.integers(1, 40), seed=st.integers(0, 2**16), share=st.floats(0, 1))
def test_sums_of_an_outer_product_are_those_of_the_matrix_in_float64(d, f, seed, share):
    rng = np.random.default_rng(seed)
    x, y, target, counted = rng.normal(size=d), rng.normal(size=f), rng.normal(size=(d, f)), rng.random((d, f)) >= share
    leaf, matrix = Outer(jnp.float32(x), jnp.float32(y), (d, f)), np.outer(x, y)
    scale = float(np.abs(matrix).sum()) + 1e-6
    np.testing.assert_allclose(leaf.inner(jnp.float32(target)), (matrix * target).sum(), rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(leaf.square(jnp.asarray(counted)), (matrix**2)[counted].sum(), rtol=1e-5, atol=1e-30)


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 13), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_a_total_is_the_sum_whatever_the_shape(shape, seed):
    x, y = (np.random.default_rng(seed + k).normal(size=shape) for k in (0, 1))
    (value, slopes) = jax.value_and_grad(lambda pair: trees.dot(*pair))((jnp.float32(x), jnp.float32(y)))
    np.testing.assert_allclose(value, (x * y).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes[0], y, rtol=1e-6)
    np.testing.assert_allclose(slopes[1], x, rtol=1e-6)


def test_the_option_turns_factors_off_and_the_attack_finds_the_same(monkeypatch):
    model, update, params, inputs, labels = drawn("mlp", SPEC.shape, 1)
    grads = update.client(model, params, Batch(inputs, labels), jax.nn.one_hot(labels, 4))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads)
    attack = ATTACKS["inverting_gradients"](num_steps=3)
    found = []
    for setting in ("1", "0"):
        monkeypatch.setenv("SELGRAD_FACTORS", setting)
        program = jax.jit(lambda key: attack.reconstruct(key, observe(model, update, params, grads, nothing, labels)))
        found.append((program.lower(jax.random.key(0)).as_text(), program(jax.random.key(0))))
    (text, with_factors), (plain_text, plain) = found
    assert text != plain_text
    np.testing.assert_allclose(with_factors.objective, plain.objective, rtol=1e-4)
    np.testing.assert_allclose(with_factors.inputs, plain.inputs, atol=1e-3)


def test_a_target_says_its_own_norms():
    grads = {"a": jnp.arange(4.0), "b": jnp.ones((2, 3))}
    target = Target.of(grads, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), grads))
    np.testing.assert_allclose(target.norms, np.sqrt([14, 6]), rtol=1e-6)
    np.testing.assert_allclose(target.inverse, 20**-0.5, rtol=1e-6)
