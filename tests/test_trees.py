"""Exact top-k, ranks, and the refusals of wrong masks and wrong numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selgrad import topk, trees
from selgrad.errors import GradientError, UsageError

scores = hnp.arrays(np.float32, st.integers(1, 60), elements=st.integers(-3, 3).map(np.float32))


@settings(deadline=None, max_examples=50)
@given(scores)
def test_ranks_sort_stably_and_descending(values):
    ranks = np.asarray(trees.descending_ranks(jnp.asarray(values)))
    expected = np.empty(values.size, int)
    expected[np.argsort(-values, kind="stable")] = np.arange(values.size)
    np.testing.assert_array_equal(ranks, expected)


@settings(deadline=None, max_examples=100)
@given(scores, st.integers(0, 60), st.booleans(), st.integers(1, 20))
def test_ranks_on_the_host_sort_stably_and_descending_whatever_the_parts(values, cut, first, num_parts):
    values = np.where(values == 3, -0.0, values).astype(np.float32)
    tree = {"a": values[:cut].reshape(-1, 1), "b": values[cut:]}
    found = topk.rank_on_host(tree, [False, True] if first else None, num_parts)
    late = (np.arange(values.size) < cut) & first
    expected = np.empty(values.size, int)
    expected[np.lexsort((np.arange(values.size), -values, late))] = np.arange(values.size)
    np.testing.assert_array_equal(np.concatenate([found["a"].reshape(-1), found["b"]]), expected)
    assert found["a"].shape == tree["a"].shape


@settings(deadline=None, max_examples=200)
@given(scores, st.integers(0, 60), st.booleans(), st.lists(st.integers(0, 60), max_size=4), st.floats(1e-30, 1e30))
def test_packed_masks_are_the_ranks_below_each_count(values, cut, first, counts, scale):
    values = np.where(values == 3, -0.0, values * np.float32(scale)).astype(np.float32)
    tree = {"a": values[:cut].reshape(-1, 1), "b": values[cut:]}
    counts = [min(count, values.size) for count in counts]
    found = topk.top_on_host(tree, counts, [False, True] if first else None)
    assert found.shape == (len(counts), -(-values.size // 8))
    late = (np.arange(values.size) < cut) & first
    ranks = np.empty(values.size, int)
    ranks[np.lexsort((np.arange(values.size), -values, late))] = np.arange(values.size)
    for count, packed in zip(counts, found, strict=True):
        a, b = topk.unpack(packed, tree)
        assert a.shape == tree["a"].shape
        np.testing.assert_array_equal(np.concatenate([a.reshape(-1), b]), ranks < count)


def test_ranks_on_the_host_are_those_on_the_device():
    tree = {"a": jax.random.normal(jax.random.key(0), (40, 30)), "b": jnp.zeros(500), "c": jnp.round(jax.random.normal(jax.random.key(1), (700,)))}
    jax.tree.map(np.testing.assert_array_equal, topk.rank_on_host(tree), trees.rank(tree))
    first = [False, False, True]
    jax.tree.map(np.testing.assert_array_equal, topk.rank_on_host(tree, first), trees.rank_first(trees.rank(tree), first))


@settings(deadline=None, max_examples=50)
@given(scores, st.floats(0, 1), st.floats(0, 1))
def test_masks_are_nested_and_exact(values, a, b):
    ranks = trees.descending_ranks(jnp.asarray(values))
    small, large = (np.asarray(ranks < trees.count(r, values.size)) for r in sorted((a, b)))
    assert not (small & ~large).any()
    assert large.sum() == round(max(a, b) * values.size)


def test_count_is_exact_where_float32_is_not():
    assert trees.count(0.425, 109_482_243) == 46_529_953
    assert round(np.float32(0.425) * np.float32(109_482_243)) != 46_529_953


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_a_ratio_outside_the_unit_interval_is_refused(ratio):
    with pytest.raises(UsageError, match=r"lies outside \[0, 1\]"):
        trees.count(ratio, 10)


def test_split_inverts_concatenate():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.arange(4.0)}}
    back = trees.unravel(trees.ravel(tree), tree)
    np.testing.assert_array_equal(back["a"], tree["a"])
    np.testing.assert_array_equal(back["b"]["c"], tree["b"]["c"])
    assert trees.paths(tree) == ["a", "b/c"]


@pytest.mark.parametrize("size", [1, 3])
def test_an_axis_of_one_gives_what_vmap_gives(size):
    x, y = np.random.default_rng(0).standard_normal((2, size, 4)).astype(np.float32)
    function = lambda a, b, c: {"sum": (a * b).sum() + c, "pair": jnp.stack([a, b])}
    found = trees.mapped(function, (0, 0, None), size)(x, y, 2.0)
    jax.tree.map(np.testing.assert_array_equal, found, jax.vmap(function, (0, 0, None))(x, y, 2.0))


def test_scalars_of_leaves_keep_the_order_of_the_leaves_and_have_their_derivatives():
    draw = np.random.default_rng(1)
    a, b = ([jnp.asarray(draw.standard_normal(s), jnp.float32) for s in ((3,), (2, 5), (), (3,), (4, 2, 3), (7,), ())] for _ in range(2))
    want = [np.vdot(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(trees.by_leaf(trees.dot, a, b), want, rtol=1e-5)
    weights = jnp.arange(1.0, 8.0)
    slopes = jax.grad(lambda a: (weights * trees.by_leaf(trees.dot, a, b)).sum())(a)
    jax.tree.map(lambda found, w, y: np.testing.assert_allclose(found, w * y, rtol=1e-5), slopes, list(weights), b)


def test_a_mask_of_another_tree_is_refused_by_name():
    with pytest.raises(GradientError, match="another tree: leaf 'b'"):
        trees.require_same_tree({"a": jnp.zeros(3, bool), "b": jnp.zeros(2, bool)}, {"a": jnp.zeros(3)})


def test_nan_is_refused_by_leaf():
    with pytest.raises(GradientError, match="1 NaN or infinite entries in leaf 'a'"):
        trees.require_finite({"a": jnp.asarray([1.0, jnp.nan])}, "the update")


def test_path_patterns():
    assert trees.matches("conv_0/kernel", ["conv*/**"]) and trees.matches("fc/bias", ["fc"]) and not trees.matches("fc_1/bias", ["fc"])
    with pytest.raises(UsageError, match="names no leaf; the leaves are a"):
        trees.matching_leaves({"a": jnp.zeros(1)}, ["conv*/**"])


def test_partition_and_merge_are_inverse():
    tree = {"a": {"x": 1, "y": 2}, "b": 3}
    yes, no = trees.partition(tree, lambda path: path in ("a/x", "b"))
    assert yes == {"a": {"x": 1}, "b": 3} and no == {"a": {"y": 2}}
    assert trees.merge(yes, no) == tree and trees.subtree(tree, "a/y") == 2
