"""Selectors that say less of one client, against what they promise in hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.encryption.agreement import interleaved
from selgrad.errors import UsageError
from selgrad.experiment import Setting
from selgrad.masks import SELECTORS
from selgrad.registry import make_spec

SHAPES = {"a": {"bias": (3,), "kernel": (4, 3)}, "b": {"kernel": (2, 2, 3, 5)}}
LIKE = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def scores(seed):
    return jax.tree.map(lambda leaf: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), leaf.size), leaf.shape), LIKE)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


class TestAligned:
    @pytest.mark.parametrize(("unit", "axis"), [("columns", -1), ("rows", -2)])
    def test_whole_lines_come_in_the_order_of_their_mean_score(self, unit, axis):
        one = scores(0)
        ranks = SELECTORS["aligned"](unit=unit)(one)
        lines = []
        for leaf, rank in zip(jax.tree.leaves(one), jax.tree.leaves(ranks), strict=True):
            leaf, rank = (np.atleast_2d(np.asarray(x)) for x in (leaf, rank))
            for i in range(leaf.shape[axis]):
                mean, places = np.take(leaf, i, axis).mean(), np.sort(np.take(rank, i, axis).ravel())
                assert (np.diff(places) == 1).all(), "a line is encrypted in one piece"
                lines.append((places[0], -mean))
        assert sorted(lines) == sorted(lines, key=lambda line: line[1])

    def test_slots_are_runs_of_the_flattened_tree(self):
        one = scores(1)
        ranks = flat(SELECTORS["aligned"](unit="slots", size=16)(one))
        means = [flat(one)[i : i + 16].mean() for i in range(0, len(ranks), 16)]
        first = [ranks[i : i + 16].min() for i in range(0, len(ranks), 16)]
        assert list(np.argsort(first)) == list(np.argsort(-np.asarray(means)))

    def test_a_run_has_a_positive_size(self):
        with pytest.raises(UsageError, match="size=0"):
            SELECTORS["aligned"](size=0)


class TestCommon:
    def cohort(self, count=5):
        every = [scores(i) for i in range(count)]
        own = np.stack([np.argsort(np.argsort(-flat(one), kind="stable")) for one in every])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *every), own

    def test_a_union_holds_everybodys_first_entries_before_others(self):
        stacked, own = self.cohort()
        ranks = flat(SELECTORS["common"](by="union").of_cohort(stacked))
        for k in (1, 7, 20):
            union = (own < k).any(axis=0)
            assert ranks[union].max() == union.sum() - 1

    def test_a_vote_holds_what_most_choose(self):
        stacked, own = self.cohort()
        ranks = flat(SELECTORS["common"](by="vote").of_cohort(stacked))
        for k in (20, 40, 60):
            most = (own < k).mean(axis=0) > 0.5
            assert most.any() and ranks[most].max() == most.sum() - 1

    def test_interleaving_takes_what_the_agreement_of_federated_runs_takes(self):
        stacked, own = self.cohort()
        ranks = flat(SELECTORS["common"](by="interleaved").of_cohort(stacked))
        for k in range(0, own.shape[1] + 1, 7):
            lists = [np.argsort(one, kind="stable")[:k] for one in own]
            np.testing.assert_array_equal(ranks < k, interleaved(lists, own.shape[1], k))

    def test_a_mean_weighs_every_client_alike(self):
        stacked, _ = self.cohort(3)
        louder = jax.tree.map(lambda leaf: leaf.at[0].multiply(1e4), stacked)
        common = SELECTORS["common"](by="mean")
        np.testing.assert_array_equal(flat(common.of_cohort(stacked)), flat(common.of_cohort(louder)))

    def test_all_samples_of_a_setting_get_one_mask(self):
        specs = (make_spec("dataset", "digits", {"count": 4}), make_spec("model", "mlp", {"width": 8}), make_spec("update", "gradient"))
        setting = Setting(*specs)
        magnitude = make_spec("metric", "magnitude")
        for leaf in jax.tree.leaves(setting.ranks(magnitude, make_spec("selector", "common", {"by": "vote"}), 0)[0]):
            assert (leaf == leaf[0]).all()
        own = setting.ranks(magnitude, make_spec("selector", "global_top"), 0)[0]
        assert any((leaf != leaf[0]).any() for leaf in jax.tree.leaves(own))


class TestRandomised:
    def test_it_lies_between_the_metric_and_chance(self):
        one = jax.tree.map(lambda leaf: jax.random.uniform(jax.random.key(leaf.size), leaf.shape), {"a": jnp.zeros((100, 100))})
        own, count = flat(trees.rank(one)), 2000
        np.testing.assert_array_equal(flat(SELECTORS["randomised"](flip=0.0)(one)), own)
        for flip in (0.3, 1.0):
            chosen = flat(SELECTORS["randomised"](flip=flip)(one)) < count
            # An own entry stays with probability 1 - flip, or the coin puts it there. Places that two claim move a few.
            expected = 1 - flip + flip * count / chosen.size
            assert (own[chosen] < count).mean() == pytest.approx(expected, abs=0.06)

    def test_coins_differ_between_samples_and_not_between_calls(self):
        pick = SELECTORS["randomised"](flip=1.0)
        np.testing.assert_array_equal(flat(pick(scores(0))), flat(pick(scores(0))))
        assert (flat(pick(scores(0))) != flat(pick(scores(1)))).any()

    def test_a_probability_is_one(self):
        with pytest.raises(UsageError, match="flip=1.5"):
            SELECTORS["randomised"](flip=1.5)
