"""One gradient in the place of many local steps: the midpoint rule, and Inverting Gradients where there is one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.surrogate import between
from selgrad.base import InputSpec
from selgrad.errors import UsageError
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS

SPEC = InputSpec((8, 8, 1), 5)
LABELS = jnp.asarray([3, 1], jnp.int32)


def seen_of(update, hide=lambda leaf: jnp.zeros(leaf.shape, bool)):
    model = MODELS["mlp"](SPEC, activation="sigmoid", width=16)
    params = jax.jit(model.init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, *SPEC.shape))
    grads = jax.jit(lambda p: update(model, p, images, jax.nn.one_hot(LABELS, 5)))(params)
    return images, observe(model, update, params, grads, jax.tree.map(hide, grads), labels=LABELS)


def test_a_client_that_sends_its_gradient_meets_inverting_gradients():
    _, seen = seen_of(UPDATES["gradient"](batch_size=2))
    given = {"num_steps": 20, "total_variation_weight": 0.01}
    found, same = (jax.jit(ATTACKS[name](**given).reconstruct)(jax.random.key(2), seen) for name in ("surrogate", "inverting_gradients"))
    np.testing.assert_allclose(found.inputs, same.inputs, atol=1e-5)
    np.testing.assert_allclose(found.objective, same.objective, rtol=1e-4)


def test_the_gradient_half_way_points_most_nearly_along_all_steps():
    """The midpoint rule errs by the square of the way, and either end by the way itself."""
    images, seen = seen_of(UPDATES["fedavg"](batch_size=2, num_steps=8, learning_rate=0.02))

    def apart(position):
        one = UPDATES["gradient"](batch_size=2)(seen.model, between(seen, position), images, jax.nn.one_hot(LABELS, 5))
        gradient = trees.ravel(one)
        sent = trees.ravel(seen.visible)
        return 1 - float(gradient @ sent / jnp.linalg.norm(gradient) / jnp.linalg.norm(sent))

    start, middle, end = apart(0.0), apart(0.5), apart(1.0)
    assert middle < 0.05 * min(start, end) and start > 1e-5


def test_encrypted_entries_count_as_no_movement():
    _, seen = seen_of(UPDATES["fedavg"](batch_size=2, num_steps=3), hide=lambda leaf: jnp.ones(leaf.shape, bool))
    jax.tree.map(np.testing.assert_array_equal, between(seen, 1.0), seen.params)
    _, seen = seen_of(UPDATES["fedavg"](batch_size=2, num_steps=3))
    moved = jax.tree.map(lambda old, lost: old - 0.5 * lost, seen.params, seen.visible)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), between(seen, 0.5), moved)


@pytest.mark.parametrize("wrong", [{"positions": ()}, {"positions": (0.5, 1.5)}, {"hidden": "bounded"}])
def test_what_it_cannot_be_asked_is_said(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ATTACKS["surrogate"](**wrong)
