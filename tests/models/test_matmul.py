"""The products of dense layers: NumPy's values, and derivatives of every order and mode equal to those of JAX's own product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad.models.matmul import matmul, matmul_transposed


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


@pytest.fixture(autouse=True)
def double(x64):
    return x64


PAIRS = {"matmul": (matmul, lambda x, w: x @ w), "transposed": (lambda x, w: matmul_transposed(x, w.T), lambda x, w: x @ w)}


@pytest.mark.parametrize("name", PAIRS)
class TestProduct:
    def test_value_is_numpys(self, name):
        x, w = normal(0, 2, 3, 5), normal(1, 5, 4)
        np.testing.assert_allclose(PAIRS[name][0](x, w), np.asarray(x) @ np.asarray(w), rtol=1e-13)

    def test_gradient_matching_and_its_derivative(self, name):
        """Reverse over reverse: every product and every transpose of one occurs."""
        x, w, v, target = normal(0, 3, 5), normal(1, 5, 4), normal(2, 4, 6), normal(3, 5, 4)

        def objective(product, x):
            loss = lambda w: jnp.sin(product(jnp.tanh(product(x, w)), v)).sum()
            return ((jax.grad(loss)(w) - target) ** 2).sum()

        ours, theirs = (jax.value_and_grad(lambda x, p=p: objective(p, x))(x) for p in PAIRS[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), ours, theirs)

    @pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
    def test_forward_and_reverse_mode_over_the_gradient(self, name, outer):
        x, w = normal(0, 3, 5), normal(1, 5, 4)
        ours, theirs = (outer(jax.grad(lambda w, x, p=p: jnp.tanh(p(x, w)).sum()), argnums=1)(w, x) for p in PAIRS[name])
        np.testing.assert_allclose(ours, theirs, rtol=1e-11)

    @pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, None), (1, 1)])
    def test_lanes_that_share_operands_or_not(self, name, axes):
        shapes = {None: (3, 5), 0: (2, 3, 5), 1: (3, 2, 5)}, {None: (5, 4), 0: (2, 5, 4), 1: (5, 2, 4)}
        x, w = (normal(i, *shape[axis]) for i, (shape, axis) in enumerate(zip(shapes, axes, strict=True)))

        def objective(product, x, w):
            return (jax.grad(lambda w: jnp.sin(product(x, w)).sum())(w) ** 2).sum()

        ours, theirs = (jax.vmap(jax.grad(lambda x, w, p=p: objective(p, x, w), (0, 1)), axes)(x, w) for p in PAIRS[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)

    def test_seeds_around_lanes(self, name):
        """Weights have the outer axis only: within one seed, lanes share them."""
        x, w = normal(0, 2, 6, 3, 5), normal(1, 2, 5, 4)
        ours, theirs = (jax.vmap(jax.vmap(p, (0, None)))(x, w) for p in PAIRS[name])
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        ours, theirs = (jax.vmap(jax.vmap(p), (0, None))(normal(0, 6, 2, 3, 5), w) for p in PAIRS[name])
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)

    def test_types_are_promoted_as_by_the_usual_product(self, name):
        x, w = normal(0, 3, 5).astype(jnp.float32), normal(1, 5, 4)
        ours, theirs = (p(x, w) for p in PAIRS[name])
        assert ours.dtype == theirs.dtype == jnp.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_lanes_that_share_a_matrix_are_rows_of_one_product():
    lowered = jax.jit(jax.vmap(matmul, (0, None))).lower(normal(0, 6, 3, 5), normal(1, 5, 4)).as_text()
    assert "tensor<18x5xf64>" in lowered


def test_the_precision_is_the_one_asked_for_where_the_product_is_written():
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(matmul).trace(normal(0, 3, 5), normal(1, 5, 4))
    assert "HIGHEST" in traced.lower().as_text()
