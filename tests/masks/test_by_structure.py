"""Structured selection: whole groups, in the order of their mean score, before everything else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.errors import UsageError
from selgrad.masks import SELECTORS


@pytest.fixture(scope="module")
def scores(text_problem):
    model = text_problem(exposure="sent")
    shapes = model.grads
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    return jax.tree.map(lambda leaf: jax.random.uniform(next(keys), leaf.shape), shapes)


def encrypted(scores, part, count, **arguments):
    ranks = SELECTORS["by_structure"](part=part, **arguments)(scores)
    return trees.top(ranks, count)


def test_embedding_rows_are_whole_and_the_highest_mean_comes_first(scores):
    table = np.asarray(scores["embeddings"]["word"]["embedding"])
    every = np.concatenate(
        [np.asarray(leaf).mean(axis=1) for path, leaf in zip(trees.paths(scores), jax.tree.leaves(scores), strict=True) if path.endswith("embedding")]
    )
    mask = encrypted(scores, "embedding_rows", 32)
    assert sum(int(m.sum()) for m in jax.tree.leaves(mask)) == 32
    rows = [np.asarray(m).all(axis=1) for path, m in zip(trees.paths(mask), jax.tree.leaves(mask), strict=True) if path.endswith("embedding")]
    chosen = np.concatenate(rows)
    assert chosen.sum() == 1 and chosen.argmax() == every.argmax() and table.shape == (30, 32)


def test_a_head_is_its_columns_of_query_key_and_value(scores):
    size = 3 * (32 + 1) * 16
    mask = encrypted(scores, "heads", size, num_heads=2)
    touched = [path for path, m in zip(trees.paths(mask), jax.tree.leaves(mask), strict=True) if np.asarray(m).any()]
    assert len({path.split("/")[0] for path in touched}) == 1 and len(touched) == 6
    columns = {tuple(np.flatnonzero(np.asarray(trees.subtree(mask, path)).reshape(-1, 32).all(axis=0))) for path in touched}
    assert columns in ({tuple(range(16))}, {tuple(range(16, 32))})


def test_norms_and_biases_come_before_every_kernel(scores):
    count = sum(leaf.size for path, leaf in zip(trees.paths(scores), jax.tree.leaves(scores), strict=True) if path.endswith(("scale", "bias")))
    mask = encrypted(scores, "norms_and_biases", count)
    for path, m in zip(trees.paths(mask), jax.tree.leaves(mask), strict=True):
        assert np.asarray(m).all() == path.endswith(("scale", "bias")) and np.asarray(m).any() == np.asarray(m).all()


def test_gpt2s_fused_kernel_has_three_blocks(text_problem):
    scores = jax.tree.map(jnp.abs, text_problem(causal=True).grads)
    mask = encrypted(scores, "qkv_blocks", 32 * 32)
    found = [np.asarray(trees.subtree(mask, f"layer_{i}/attention/qkv/kernel")).all(axis=0).reshape(3, 32).all(axis=1) for i in range(2)]
    biases = [np.asarray(trees.subtree(mask, f"layer_{i}/attention/qkv/bias")).sum() for i in range(2)]
    assert np.concatenate(found).sum() + sum(biases) // 32 >= 1


def test_a_part_that_is_not_there_is_named(scores):
    with pytest.raises(UsageError, match="adapters"):
        SELECTORS["by_structure"](part="adapters")(scores)
    with pytest.raises(UsageError, match="num_heads=5"):
        SELECTORS["by_structure"](part="heads", num_heads=5)(scores)
