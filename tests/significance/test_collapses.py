"""Where two metrics are the same mask under two names, as the mathematics says (docs/design.md, "Where metrics coincide")."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.significance import METRICS

RATIOS = (0.01, 0.1, 0.425, 0.9)


def mask(scores, ratio):
    bits = trees.top(trees.rank(scores), trees.count(ratio, trees.size(scores)))
    return np.concatenate([np.ravel(m) for m in jax.tree.leaves(bits)])


def test_label_sensitivity_at_batch_one_is_magnitudes_mask(problem, spec, x64, double):
    context = double(problem(spec, model="lenet").context)
    magnitude, sensitivity = METRICS["magnitude"]()(context), METRICS["sensitivity"](target="label")(context)
    for a, b in zip(jax.tree.leaves(magnitude), jax.tree.leaves(sensitivity), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-15)
    for ratio in RATIOS:
        np.testing.assert_array_equal(mask(sensitivity, ratio), mask(magnitude, ratio))


def test_label_sensitivity_at_batch_b_is_the_mean_of_per_sample_magnitudes(problem, spec, x64, double):
    context = double(problem(spec, model="lenet", batch_size=3).context)
    found = METRICS["sensitivity"](target="label")(context)
    each = [
        jax.grad(context.model.loss)(context.params, context.batch.inputs[k : k + 1], jax.nn.one_hot(context.batch.labels[k : k + 1], 10, dtype=jnp.float64))
        for k in range(3)
    ]
    expected = jax.tree.map(lambda *leaves: sum(map(jnp.abs, leaves)) / 3 / 3, *each)  # the batch loss is itself a mean over 3
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)
    assert (mask(found, 0.1) != mask(METRICS["magnitude"]()(context), 0.1)).any(), "a sum of gradients is not a sum of magnitudes"


@pytest.mark.parametrize("update", ["gradient", "fedavg"])
def test_product_from_the_old_weights_after_one_step_is_magnitudes_mask(problem, spec, x64, update, double):
    arguments = {"num_steps": 1, "learning_rate": 0.1} if update == "fedavg" else {}
    context = double(problem(spec, model="lenet", update=update, **arguments).context)
    product, magnitude = METRICS["product"](exposed="old", signed=True)(context), METRICS["magnitude"]()(context)
    for ratio in RATIOS:
        np.testing.assert_array_equal(mask(product, ratio), mask(magnitude, ratio))


def test_product_from_zero_is_the_weight_times_the_gradient(problem, spec, x64, double):
    context = double(problem(spec, model="lenet").context)
    signed, absolute = (METRICS["product"](exposed="zero", signed=s)(context) for s in (True, False))
    for found, size, w, g in zip(*map(jax.tree.leaves, (signed, absolute, context.params, context.grads)), strict=True):
        np.testing.assert_allclose(found, -w * g, rtol=1e-6)
        np.testing.assert_allclose(size, np.abs(w * g), rtol=1e-6)


def test_fisher_at_batch_one_is_magnitudes_mask(problem, spec, x64, double):
    context = double(problem(spec, model="lenet").context)
    np.testing.assert_array_equal(mask(METRICS["fisher"]()(context), 0.2), mask(METRICS["magnitude"]()(context), 0.2))


def test_non_degenerate_sensitivities_are_other_masks(problem, spec):
    context = problem(spec, model="lenet").context
    magnitude = mask(METRICS["magnitude"]()(context), 0.1)
    for target in ("labels", "inputs"):
        other = mask(METRICS["sensitivity"](target=target)(context), 0.1)
        assert 0.01 < (other != magnitude).mean() / 0.2 < 0.99


def test_layerwise_orders_whole_leaves(problem, spec):
    context = problem(spec).context
    for order, first in (("depth", "fc_0/bias"), ("reverse", "fc_2/kernel")):
        ranks = trees.rank(METRICS["layerwise"](order=order)(context))
        leaf = next(r for name, r in zip(trees.paths(ranks), jax.tree.leaves(ranks), strict=True) if name == first)
        assert sorted(np.ravel(leaf)) == list(range(leaf.size))
    named = trees.rank(METRICS["layerwise"](paths=["fc_1/**"])(context))["fc_1"]
    assert max(int(leaf.max()) for leaf in jax.tree.leaves(named)) == trees.size(named) - 1
