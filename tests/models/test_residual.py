"""What compilers make of residual streams: fusions that do not grow with the depth."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad.base import TextSpec
from selgrad.models import MODELS
from selgrad.models._transformer import TransformerConfig
from selgrad.models.residual import kept


def largest_fusion(num_layers: int) -> int:
    """Parameters of the largest fused computation of a gradient's gradient."""
    model = MODELS["bert"](TextSpec((8,), 2, 50), size="tiny")
    config: TransformerConfig = dataclasses.replace(model.config, num_layers=num_layers, width=32, mlp_width=64)
    model = dataclasses.replace(model, network=dataclasses.replace(model.network, config=config), config=config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    labels = jnp.asarray([[1.0, 0.0]])

    def mismatch(params, embedded):
        grads = jax.grad(model.loss)(params, embedded, labels)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads))

    text = jax.jit(jax.grad(mismatch, argnums=1)).lower(params, jax.ShapeDtypeStruct((1, 8, 32), jnp.float32)).compile().as_text()
    bodies = re.findall(r"^%fused_computation[^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return max(body.count(" parameter(") for body in bodies)


@pytest.mark.once
def test_fusions_of_a_deep_transformer_are_no_larger_than_those_of_a_shallow_one():
    assert largest_fusion(6) <= largest_fusion(3) + 5


def test_values_and_derivatives_are_kept_to_the_bit_even_where_they_are_not_numbers():
    x = jnp.asarray([jnp.inf, 2e-38, -2.5, jnp.nan])
    assert np.asarray(kept(x)).tobytes() == np.asarray(x).tobytes()
    value, slope = jax.value_and_grad(lambda y: jnp.sum(kept(y) ** 3))(jnp.asarray([3.0, -0.7]))
    assert (value, slope.tolist()) == (jnp.sum(jnp.asarray([3.0, -0.7]) ** 3), (3 * jnp.asarray([3.0, -0.7]) ** 2).tolist())
