"""Pictures from the sizes of rows: exact where all is visible, and told from others where the list of what is encrypted is all there is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.silhouette import row_sizes
from selgrad.base import InputSpec
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS

SPEC = InputSpec((8, 8, 1), 5)


def client(scale=1.0, activation="sigmoid"):
    """The update of an image of which a third is black, hidden from an attacker as a mask says."""
    model, update = MODELS["mlp"](SPEC, activation=activation, width=64), UPDATES["gradient"](batch_size=1)
    image = jax.random.uniform(jax.random.key(1), (1, *SPEC.shape)) * jnp.where(jnp.arange(64) % 3 == 0, 0, 1).reshape(1, *SPEC.shape)
    params = jax.jit(model.init)(jax.random.key(0))
    grads = jax.jit(lambda p: update(model, p, image, jax.nn.one_hot(jnp.asarray([3]), 5)))(params)
    grads = jax.tree.map(lambda leaf: scale * leaf, grads)
    read = lambda mask: ATTACKS["silhouette"]().reconstruct(jax.random.key(0), observe(model, update, params, grads, mask))
    return grads, np.asarray(image).ravel(), read


def told_from_others(found, image):
    """From a thousand, each black at places of its own."""
    rng = np.random.default_rng(0)
    others = rng.random((1000, 64)) * (rng.random((1000, 64)) > 1 / 3)
    return np.corrcoef(found, image)[0, 1] > max(np.corrcoef(found, other)[0, 1] for other in others)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_it_is_the_image_up_to_a_factor_where_nothing_is_encrypted(scale):
    grads, image, read = client(scale)
    found = read(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads))
    np.testing.assert_allclose(np.asarray(found.inputs).ravel(), image / image.max(), atol=1e-5)
    assert bool(found.moved) and json.loads(found.report)["used"]


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_the_list_alone_says_which_picture_it_is(activation):
    """Nothing visible is left but zeros: of 64 pixels those that are not black are named, all of them."""
    grads, image, read = client(activation=activation)
    read_off = read(jax.tree.map(lambda leaf: leaf != 0, grads))
    assert json.loads(read_off.report)["used"][0].startswith("list of fc_0/kernel (")
    found = np.asarray(read_off.inputs).ravel()
    np.testing.assert_array_equal(found > 0, image > 0)
    # By magnitude in all but the smallest of its entries: the more of a row is encrypted, the brighter its pixel.
    kernel = np.abs(np.asarray(trees.subtree(grads, "fc_0/kernel")))
    hidden = kernel > np.quantile(kernel, 0.6)
    order = row_sizes(np.zeros(kernel.shape), hidden)
    assert told_from_others(order, image)


def test_rows_that_ties_hid_say_nothing():
    hidden = np.zeros((6, 4), bool)
    hidden[:2], hidden[3], hidden[5] = True, True, True
    np.testing.assert_allclose(row_sizes(np.zeros((6, 4)), hidden), [0.5, 0.5, 0, 1, 0, 1])


def test_masks_that_hide_everything_or_all_rows_alike_give_no_picture():
    grads, _, read = client()
    found = read(jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), grads))
    assert not found.inputs.any() and not bool(found.moved) and json.loads(found.report)["used"] == []
    assert not row_sizes(np.zeros((5, 3)), np.zeros((5, 3), bool)).any()


def test_random_masks_leave_the_sizes_of_what_is_visible():
    grads, image, read = client()
    ranks = trees.rank(jax.tree.map(lambda leaf: jax.random.uniform(jax.random.key(leaf.size), leaf.shape), grads))
    found = np.asarray(read(trees.top(ranks, round(0.8 * trees.size(grads)))).inputs).ravel()
    assert told_from_others(found, image)
