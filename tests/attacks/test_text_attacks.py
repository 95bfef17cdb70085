"""Attacks on text: row spaces and their completion, DAGER under masks, LAMP's moves, labels, and what the word embeddings give away."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad import trees
from selgrad.attacks import ATTACKS, row_space
from selgrad.attacks.dager import _distances, _layer, _layer_inputs, _read, _Vocabulary, _width
from selgrad.attacks.distances import l2_l1, mean_leaf_cosine, squared_l2
from selgrad.attacks.hidden import Target, fill
from selgrad.attacks.labels import plausible
from selgrad.attacks.moves import first_alike, log_perplexities, once, random_move
from selgrad.attacks.spaces import embeddings, known_tokens, nearest_tokens, possible_tokens
from selgrad.base import TextSpec
from selgrad.errors import UsageError
from selgrad.gradients import observe
from selgrad.models import MODELS

KERNELS = [f"layer_{i}/attention/{name}/kernel" for i in range(2) for name in ("query", "key", "value")]


def hide(p, chosen):
    """An observation whose mask is `chosen(path, leaf)`."""
    leaves, treedef = jax.tree.flatten(p.grads)
    mask = jax.tree.unflatten(
        treedef, [jnp.broadcast_to(jnp.asarray(chosen(path, leaf)), leaf.shape) for path, leaf in zip(trees.paths(p.grads), leaves, strict=True)]
    )
    return observe(p.model, p.update, p.params, p.grads, mask, valid=p.batch.valid)


class TestRowSpace:
    def low_rank(self, rank=8, decades=5, shape=(40, 120)):
        generator = np.random.default_rng(0)
        left, right = (np.linalg.qr(generator.normal(size=(n, rank)))[0] for n in shape)
        return left, (left * np.logspace(0, -decades, rank)) @ right.T

    @pytest.mark.parametrize("hidden", [0.01, 0.1, 0.4])
    def test_hidden_entries_are_completed_over_five_decades_of_singular_values(self, hidden):
        left, matrix = self.low_rank()
        visible = np.random.default_rng(1).random(matrix.shape) > hidden
        factor = np.linalg.qr(row_space.complete_low_rank(np.where(visible, matrix, 123.0), visible, 8))[0]
        assert np.linalg.norm(left - factor @ (factor.T @ left), axis=0).max() < 1e-3

    def test_what_is_hidden_is_never_read(self):
        _, matrix = self.low_rank()
        visible = np.random.default_rng(1).random(matrix.shape) > 0.2
        a, b = (row_space.complete_low_rank(np.where(visible, matrix, junk), visible, 8) for junk in (0.0, 1e6))
        np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("hidden", ["zero", "ignore"])
    def test_a_gradient_of_zeros_says_nothing_and_says_so(self, hidden):
        """An adapter's first factor in the first round: whatever was read, nothing spans anything."""
        _, matrix = self.low_rank()
        nothing, mask = np.zeros(matrix.shape), np.zeros(matrix.shape, bool)
        space = row_space.find([("lora_a", nothing, mask), ("w", matrix, mask)], hidden=hidden, max_rank=8, rank_tolerance=1e-8)
        assert space.leaves == ("w",) and space.unused == ("lora_a (0 in every visible entry)",)
        alone = row_space.find([("lora_a", nothing, mask)], hidden=hidden, max_rank=8, rank_tolerance=1e-8)
        assert not alone.leaves and not alone.basis.size

    def test_a_full_space_says_nothing_and_says_so(self):
        matrix = np.random.default_rng(0).normal(size=(10, 50))
        space = row_space.find([("w", matrix, np.zeros(matrix.shape, bool))], hidden="ignore", max_rank=64, rank_tolerance=1e-8)
        assert space.basis.shape[1] == 0 and not space.leaves and "full" in space.unused[0]
        assert (space.distances(np.ones((3, 10))) == 1).all()

    def test_distances_are_zero_inside_and_one_across(self):
        left, matrix = self.low_rank(decades=1)
        space = row_space.find([("w", matrix, np.zeros(matrix.shape, bool))], hidden="ignore", max_rank=8, rank_tolerance=1e-8)
        outside = np.linalg.svd(left)[0][:, 8:].T
        assert space.distances(left.T).max() < 1e-6 and space.distances(outside).min() > 0.999


class TestDager:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize(
        ("chosen", "unused"),
        [
            (lambda path, leaf: False, ()),
            (lambda path, leaf: path not in KERNELS and "qkv" not in path, ()),
            (lambda path, leaf: path.endswith("query/kernel"), ("layer_0/attention/query/kernel", "layer_1/attention/query/kernel")),
            (lambda path, leaf: (np.arange(leaf.shape[0]) % 4 == 0).reshape(-1, *[1] * (leaf.ndim - 1)), ()),
            (lambda path, leaf: np.arange(leaf.shape[-1]) % 3 == 0, ()),
            (lambda path, leaf: np.random.default_rng(len(path)).random(leaf.shape) < 0.3, ()),
        ],
        ids=["nothing", "all but attention", "one leaf", "rows", "columns", "entries"],
    )  # fmt: skip
    def test_recovers_the_sentence_and_says_which_leaves_it_used(self, text_problem, causal, chosen, unused):
        p = text_problem(causal=causal)
        found = ATTACKS["dager"]().reconstruct(jax.random.key(0), hide(p, chosen))
        np.testing.assert_array_equal(found.inputs, p.batch.inputs)
        report = json.loads(found.report)
        assert {text.split(" ")[0] for text in report["unused"]} == (set() if causal else set(unused))
        assert "layer_0/attention/qkv/kernel" in report["used"] if causal else "layer_0/attention/value/kernel" in report["used"]

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize(("rank", "chosen", "read"), [(12, 0.0, True), (12, 0.3, True), (12, 1.0, False), (6, 0.0, False)])
    def test_a_fresh_adapter_is_read_through_its_second_factor_unless_as_many_tokens_occur_as_its_rank(self, text_problem, causal, rank, chosen, read):
        p = text_problem(causal=causal, lora_rank=rank, lora_alpha=16.0)
        assert not any(leaf.any() for path, leaf in zip(trees.paths(p.grads), jax.tree.leaves(p.grads), strict=True) if path.endswith("lora_a"))
        found = ATTACKS["dager"]().reconstruct(jax.random.key(0), hide(p, lambda path, leaf: np.random.default_rng(len(path)).random(leaf.shape) < chosen))
        assert bool((found.inputs == p.batch.inputs).all()) == read
        used = json.loads(found.report)["used"]
        assert all(path.endswith("lora_b") for path in used) and any(path.startswith("layer_0") for path in used) == read

    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("every", [0, 4])
    def test_the_device_measures_what_the_row_space_says(self, text_problem, number, every):
        """In batches that do not divide the tokens, and with rows hidden whole."""
        p = text_problem()
        seen = hide(p, lambda path, leaf: (np.arange(leaf.shape[0]) % every == 0).reshape(-1, *[1] * (leaf.ndim - 1)) if every else False)
        (part,) = _layer(seen, number, "ignore", 8, 1e-8).parts
        space = part.space
        length = seen.valid.shape[1]
        others = np.random.default_rng(0).integers(5, 40, (10, length)).astype(np.int32)
        tokens = np.concatenate([np.asarray(p.batch.inputs), others])
        real = np.broadcast_to(np.asarray(seen.valid)[0], tokens.shape)
        expected = space.distances(_layer_inputs(seen, tokens, real, number, 16))
        found = _distances(_read(seen, tokens, real, number, 4), space, _width(seen))
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
        # The last layer's gradient has the rank of the queries that the loss reads, and says less.
        assert ((found[0][real[0]] < 1e-2).all() or number == 2) and np.median(found[1:]) > 0.1

    @pytest.mark.parametrize("every", [0, 4])
    def test_inputs_of_all_words_are_kept_for_the_weights_that_they_are_of(self, text_problem, monkeypatch, every):
        p = text_problem()
        seen = hide(p, lambda path, leaf: (np.arange(leaf.shape[0]) % every == 0).reshape(-1, *[1] * (leaf.ndim - 1)) if every else False)
        other = dataclasses.replace(
            seen, sent=tuple(one._replace(params=jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), one.params)) for one in seen.sent)
        )
        layer, length, allowed = _layer(seen, 1, "ignore", 8, 1e-8), seen.valid.shape[1], np.arange(5, 40)
        vocabulary, read = _Vocabulary(), []
        module = sys.modules[_Vocabulary.__module__]
        monkeypatch.setattr(module, "_read", lambda *arguments: read.append(1) or _read(*arguments))
        expected = layer.distances(np.broadcast_to(allowed[:, None], (len(allowed), length)).astype(np.int32), np.ones((len(allowed), length), bool), 8)
        read.clear()
        for _ in range(2):
            np.testing.assert_array_equal(layer.distances_of_words(vocabulary, allowed, length, 8), expected)
        assert len(read) == 1
        moved = layer._replace(parts=(layer.parts[0]._replace(seen=other),)).distances_of_words(vocabulary, allowed, length, 8)
        assert len(read) == 2 and np.abs(moved - expected).max() > 1e-3
        # Where there is no room they are made each time.
        monkeypatch.setattr(module, "KEPT_BYTES", 10)
        for _ in range(2):
            np.testing.assert_array_equal(layer.distances_of_words(_Vocabulary(), allowed, length, 8), expected)
        assert len(read) == 4

    def test_hiding_the_attention_stops_it(self, text_problem):
        p = text_problem()
        found = ATTACKS["dager"]().reconstruct(jax.random.key(0), hide(p, lambda path, leaf: "attention" in path))
        assert (np.asarray(found.inputs) != np.asarray(p.batch.inputs)).sum() >= 3
        assert not json.loads(found.report)["used"] and found.objective == 1

    def test_taking_hidden_entries_for_zero_is_worse_than_completing_them(self, text_problem):
        p = text_problem()
        observation = hide(p, lambda path, leaf: np.random.default_rng(len(path)).random(leaf.shape) < 0.3)
        zero, ignore = (ATTACKS["dager"](hidden=hidden).reconstruct(jax.random.key(0), observation) for hidden in ("zero", "ignore"))
        assert (np.asarray(ignore.inputs) == np.asarray(p.batch.inputs)).all() and (np.asarray(zero.inputs) != np.asarray(p.batch.inputs)).any()

    @pytest.mark.parametrize(("causal", "batch_size"), [(True, 2), (False, 2), (False, 4)])
    def test_the_sentences_of_a_batch_are_told_apart(self, text_problem, causal, batch_size):
        p = text_problem(causal=causal, batch_size=batch_size, layers=3, width=64, mlp_width=128)
        found = ATTACKS["dager"]().reconstruct(jax.random.key(0), hide(p, lambda path, leaf: False))
        assert {tuple(t) for t in np.asarray(found.inputs)} == {tuple(t) for t in np.asarray(p.batch.inputs)}

    def test_it_refuses_images(self, problem, spec):
        p = problem(spec)
        mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), p.grads)
        with pytest.raises(UsageError, match="images"):
            ATTACKS["dager"]().reconstruct(jax.random.key(0), observe(p.model, p.update, p.params, p.grads, mask))


class TestMoves:
    @given(st.integers(0, 2**31 - 1), st.integers(0, 3), st.integers(0, 6))
    @settings(max_examples=200, deadline=None)
    def test_a_move_is_a_permutation_that_leaves_known_positions(self, seed, first, count):
        order = np.asarray(MOVE(jax.random.key(seed), first, count))
        assert sorted(order) == list(range(10))
        outside = [i for i in range(10) if not first <= i < first + count]
        assert (order[outside] == outside).all()

    def test_every_kind_of_move_occurs(self):
        orders = np.asarray(jax.vmap(lambda k: random_move(k, jnp.int32(1), jnp.int32(6), 8))(jax.random.split(jax.random.key(0), 500)))
        changed = (orders != np.arange(8)).sum(axis=1)
        assert len(np.unique(orders, axis=0)) > 40 and {0, 2, 3, 6} <= set(changed)

    def test_batches_give_what_vmap_gives(self):
        x = jnp.arange(23.0)
        np.testing.assert_array_equal(once(jax.vmap(lambda v: v**2), x, jnp.arange(23), jnp.ones(23, bool), 5), x**2)

    @given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=12))
    @settings(max_examples=50, deadline=None)
    def test_the_first_row_that_begins_alike(self, rows):
        found = np.asarray(first_alike(jnp.asarray(rows, jnp.int32)))
        expected = [[next(j for j, other in enumerate(rows) if other[: t + 1] == row[: t + 1]) for t in range(3)] for row in rows]
        assert found.tolist() == expected

    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20), st.integers(1, 7))
    @settings(max_examples=50, deadline=None)
    def test_each_distinct_item_is_computed_once(self, items, at_once):
        values = np.asarray([value for value, _ in items], np.float32)
        # Items that are alike are needed alike.
        needed = np.asarray([any(wanted for other, wanted in items if other == value) for value, _ in items])
        first = np.asarray([list(values).index(value) for value in values])
        batches = []

        def square(x):
            jax.debug.callback(lambda part: batches.append(part), x)
            return x**2

        found = np.asarray(once(square, jnp.asarray(values), jnp.asarray(first), jnp.asarray(needed), at_once))
        jax.effects_barrier()
        np.testing.assert_array_equal(found[needed], values[needed] ** 2)
        assert len(batches) == -(-len(set(values[needed])) // at_once)

    def test_candidates_are_judged_as_one_by_one(self):
        spec = TextSpec((7,), 2, 30, start_id=2, end_id=3, special_ids=(0, 1, 2, 3))
        model = MODELS["gpt2"](spec, size="tiny", task="causal_lm")
        params = jax.tree.map(lambda leaf: 10 * leaf, jax.jit(model.init)(jax.random.key(0)))
        real = jnp.arange(7) < 6
        moves = jax.vmap(lambda key: random_move(key, jnp.int32(1), jnp.int32(4), 7))(jax.random.split(jax.random.key(1), 30))
        candidates = jnp.asarray([2, 5, 6, 5, 9, 3, 0])[moves]
        one = jax.jit(jax.vmap(lambda row: model.log_perplexity(params, row[None], real[None])[0]))(candidates)
        assert np.ptp(one) > 0.1
        needed = jnp.ones(30, bool)
        for at_once in (1, 4, 64):
            found = log_perplexities(model, params, candidates, real, needed=needed, at_once=at_once)
            np.testing.assert_allclose(found, one, rtol=1e-5)


MOVE = jax.jit(lambda key, first, count: random_move(key, first, count, 10))


class TestSpace:
    def test_known_tokens_are_put_in_and_the_rest_reads_back(self, text_problem):
        p = text_problem()
        observation = hide(p, lambda path, leaf: False)
        space = embeddings()(observation)
        tokens, known = known_tokens(observation)
        assert np.asarray(known)[0].tolist() == [True, False, False, False, False, True, True]
        np.testing.assert_array_equal(np.asarray(tokens)[np.asarray(known)], np.asarray(p.batch.inputs)[np.asarray(known)])
        start = space.fix(space.draw(jax.random.key(0)))
        table = p.params["embeddings"]["word"]["embedding"]
        np.testing.assert_array_equal(start[0, 0], table[2])
        np.testing.assert_array_equal(space.read(p.model.embed(p.params, p.batch.inputs)), p.batch.inputs)
        assert not np.isin(np.asarray(nearest_tokens(observation, start))[0, 1:5], [0, 1, 2, 3]).any()

    def test_a_start_has_variance_one_or_the_vocabularys_norm(self, text_problem):
        observation = hide(text_problem(), lambda path, leaf: False)
        table = text_problem().params["embeddings"]["word"]["embedding"]
        normal, vocabulary = (embeddings(start)(observation).draw(jax.random.key(0)) for start in ("normal", "vocabulary"))
        np.testing.assert_allclose(np.std(normal), 1, atol=0.2)
        np.testing.assert_allclose(jnp.linalg.norm(vocabulary, axis=-1), jnp.linalg.norm(table, axis=1).mean(), rtol=1e-5)

    def test_without_the_padding_only_the_first_token_is_known(self, text_problem):
        p = text_problem()
        mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), p.grads)
        _, known = known_tokens(observe(p.model, p.update, p.params, p.grads, mask))
        assert np.asarray(known)[0].tolist() == [True] + [False] * 6

    def test_a_visible_embedding_gradient_names_the_tokens_and_a_hidden_one_does_not(self, text_problem):
        p = text_problem(exposure="sent")
        seen = np.flatnonzero(possible_tokens(hide(p, lambda path, leaf: False)))
        assert set(seen) == set(np.asarray(p.batch.inputs)[0, 1:5])
        hidden = possible_tokens(hide(p, lambda path, leaf: path.endswith("word/embedding")))
        assert np.flatnonzero(hidden).tolist() == list(range(4, 30))

    def test_leaves_that_embedding_reads_are_not_matched(self, text_problem):
        p = text_problem(exposure="sent")
        observation = hide(p, lambda path, leaf: False)
        dummy = p.update(p.model, p.params, p.model.embed(p.params, p.batch.inputs), p.context.labels, p.batch.valid)
        for hidden in ("zero", "average", "ignore"):
            assert float(squared_l2(dummy, fill(observation, hidden))) < 1e-9


def test_labels_of_single_sentences_are_read_off_the_bias_and_guessed_without(text_problem):
    p = text_problem()
    client = jax.jit(lambda batch: p.update.client(p.model, p.params, batch, jax.nn.one_hot(batch.labels, 3)))
    rule = jax.jit(lambda key, observation: plausible()(key, observation, fill(observation, "ignore")))

    def read(label, chosen):
        batch = type(p.batch)(p.batch.inputs, jnp.asarray([label], jnp.int32), p.batch.valid)
        grads = client(batch)
        q = type("P", (), {"model": p.model, "update": p.update, "params": p.params, "grads": grads, "batch": batch})
        observation = hide(q, chosen)
        return [(int(found.labels[0, 0]), bool(found.certain)) for found in (rule(jax.random.key(k), observation) for k in range(6))]

    for label in range(3):
        assert set(read(label, lambda path, leaf: False)) == {(label, True)}
        assert set(read(label, lambda path, leaf: path == "classifier/kernel")) == {(label, True)}
        assert set(read(label, lambda path, leaf: path == "classifier/bias")) == {(label, True)}, "columns alone tell it, whatever the signs of the features"
    assert not any(certain for _, certain in read(0, lambda path, leaf: path.startswith("classifier")))


def test_label_counts_of_a_batch(text_problem):
    # Exact where the model says about the same of every input, as an untrained one does.
    p = text_problem(batch_size=6, initializer_range=0.02)
    observation = hide(p, lambda path, leaf: False)
    found = jax.jit(lambda key, observation: plausible()(key, observation, fill(observation, "ignore")))(jax.random.key(0), observation)
    assert found.certain and sorted(found.labels[0].tolist()) == [0, 0, 1, 1, 2, 2]


def test_l2_l1_is_the_sum_of_both_and_a_leaf_below_rounding_counts_as_nothing():
    target = Target.of({"a": jnp.asarray([4.0, 0.0]), "b": jnp.asarray([1e-12])}, {"a": jnp.asarray([True, False]), "b": jnp.asarray([True])})
    candidate = {"a": jnp.asarray([12.0, 50.0]), "b": jnp.asarray([-1e-12])}
    np.testing.assert_allclose(l2_l1(candidate, target, 0.5), 4 + 0.5 * 2, rtol=1e-6)
    value, slope = jax.value_and_grad(mean_leaf_cosine)(candidate, target)
    np.testing.assert_allclose(value, 0.5, atol=1e-6)
    assert np.isfinite(slope["b"]).all() and slope["b"] == 0
