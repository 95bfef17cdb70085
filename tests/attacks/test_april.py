"""Patches of vision transformers as solutions of linear systems: exact where these determine them, and nothing where nothing is visible."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.april import reads_patches
from selgrad.base import InputSpec, Round
from selgrad.errors import UsageError
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS, adapt

SPEC = InputSpec((8, 12, 3), 5)


class Convolutional(nn.Module):
    """Patches read by a convolution, no class token, the mean of the tokens read at the end."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(24, (4, 4), strides=(4, 4), name="embed")(x).reshape(len(x), -1, 24)
        x = x + self.param("places", nn.initializers.normal(0.1), (6, 24))
        x = x + nn.SelfAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(24)(nn.gelu(nn.Dense(48)(nn.LayerNorm()(x))))
        # A weight for every token: with the mean alone all would be sent back nearly the same.
        return nn.Dense(5)(x.reshape(len(x), -1))


def client(model=None, update="gradient", **arguments):
    """A model, the update of one image, and the image."""
    model = model or MODELS["vit"](SPEC, patch=4, width=24, num_layers=2, num_heads=2)
    update = UPDATES[update](batch_size=1, **arguments)
    images = jax.random.uniform(jax.random.key(1), (1, *SPEC.shape))
    params = jax.jit(model.init)(jax.random.key(0))
    grads = jax.jit(lambda p: update(model, p, images, jax.nn.one_hot(jnp.asarray([3]), 5)))(params)
    return model, update, params, grads, images


def hide(tree, chosen):
    return jax.tree.unflatten(
        jax.tree.structure(tree), [jnp.broadcast_to(jnp.asarray(chosen(path, leaf)), leaf.shape) for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True)]
    )  # fmt: skip


def read(model, update, params, grads, mask, **arguments):
    return ATTACKS["april"](**arguments).reconstruct(jax.random.key(0), observe(model, update, params, grads, mask))


@pytest.mark.parametrize("model", ["vit", "convolutional"])
@pytest.mark.parametrize(("update", "arguments"), [("gradient", {}), ("fedavg", {"num_steps": 3, "learning_rate": 0.1})])
def test_an_image_is_read_exactly_whatever_lies_above_its_patches(model, update, arguments):
    own = None if model == "vit" else adapt(Convolutional())(SPEC)
    *seen, images = client(own, update, **arguments)
    found = read(*seen, hide(seen[-1], lambda path, leaf: False))
    np.testing.assert_allclose(found.inputs, images, atol=2e-3)
    assert found.moved and found.labels[0] == 3 and found.objective < 1e-2
    used = json.loads(found.report)["used"]
    assert used == [("embed/kernel" if own else "patches/kernel").join(["places, " if own else "positions, ", " (nothing hidden; solved)"])]


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_hidden_entries_are_completed_as_there_are_more_pixels_in_a_patch_than_patches(ratio):
    *seen, images = client()
    mask = hide(seen[-1], lambda path, leaf: np.random.default_rng(len(path)).random(leaf.shape) < ratio)
    np.testing.assert_allclose(read(*seen, mask).inputs, images, atol=5e-2)
    zero = read(*seen, mask, hidden="zero")
    assert np.abs(np.asarray(zero.inputs) - np.asarray(images)).max() > 0.5


def test_what_is_left_open_is_the_likeliest_image():
    """Two pixels in three of every patch are hidden whole: the others are exact, and these are nearer than grey, since neighbours are alike."""
    model, update, params, _, noise = client()
    smooth = jax.image.resize(noise[:, ::4, ::4], (1, *SPEC.shape), "cubic")
    grads = jax.jit(lambda p: update(model, p, smooth, jax.nn.one_hot(jnp.asarray([3]), 5)))(params)
    rows = np.arange(48) % 9 >= 3
    found = read(model, update, params, grads, hide(grads, lambda path, leaf: rows[:, None] if path == "patches/kernel" else False))
    away, grey = (np.asarray(image[0]) - np.asarray(smooth[0]) for image in (found.inputs, jnp.full_like(smooth, 0.5)))
    hidden = np.asarray(rows).reshape(4, 4, 3)
    hidden = np.tile(hidden, (2, 3, 1))
    assert np.abs(away[~hidden]).max() < 1e-2
    assert (away[hidden] ** 2).mean() < 0.3 * (grey[hidden] ** 2).mean()


def test_rounds_of_one_image_are_columns_of_one_system():
    """Of either round a third of the columns is visible, fewer than there are patches; both together determine them."""
    model, update, params, _, images = client()
    sent = []
    for t in range(2):
        weights = jax.tree.map(lambda leaf, t=t: leaf * (1 + 0.1 * t), params)
        grads = jax.jit(lambda p: update(model, p, images, jax.nn.one_hot(jnp.asarray([3]), 5)))(weights)
        mask = hide(grads, lambda path, leaf, t=t: (np.arange(leaf.shape[-1]) % 6 != t) if path.startswith(("patches", "positions")) else False)
        sent.append(Round(weights, trees.hide(grads, mask), mask))
    observation = observe(model, update, params, grads, mask)
    both = ATTACKS["april"]().reconstruct(jax.random.key(0), type(observation)(model, tuple(sent), update, None))
    one = ATTACKS["april"]().reconstruct(jax.random.key(0), type(observation)(model, tuple(sent[:1]), update, None))
    np.testing.assert_allclose(both.inputs, images, atol=2e-3)
    assert np.abs(np.asarray(one.inputs) - np.asarray(images)).max() > 0.1


def test_without_the_positions_it_says_that_it_has_nothing():
    *seen, _ = client()
    found = read(*seen, hide(seen[-1], lambda path, leaf: path == "positions"))
    report = json.loads(found.report)
    assert not found.moved and not report["used"] and report["unused"][0].startswith("positions, patches/kernel")


def test_other_models_and_batches_are_refused():
    lenet = MODELS["lenet"](SPEC)
    assert not reads_patches(lenet.split(jax.eval_shape(lenet.init, jax.random.key(0)))[0], SPEC)
    *seen, _ = client(lenet)
    with pytest.raises(UsageError, match="choose vit"):
        read(*seen, hide(seen[-1], lambda path, leaf: False))
    model, _, params, grads, _ = client()
    with pytest.raises(UsageError, match="batch_size=2"):
        read(model, UPDATES["gradient"](batch_size=2), params, grads, hide(grads, lambda path, leaf: False))
    with pytest.raises(UsageError, match="num_steps=0"):
        ATTACKS["april"](num_steps=0)
