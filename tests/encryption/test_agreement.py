"""Mask agreement: exact counts, permutations of clients, and the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selgrad.encryption import agreement
from selgrad.errors import EncryptionError


@given(seed=st.integers(0, 99), clients=st.integers(1, 5), total=st.integers(1, 60), share=st.floats(0, 1))
def test_every_agreement_chooses_as_many_as_it_says_whatever_the_order_of_clients(seed, clients, total, share):
    generator, k = np.random.default_rng(seed), round(share * total)
    scores = [generator.normal(size=total) for _ in range(clients)]
    choices = [agreement.own(s, k) for s in scores]
    order = generator.permutation(clients)
    assert agreement.fixed(total, k, seed).sum() == agreement.vote(choices, k).sum() == k == agreement.from_sum((1e6 * sum(scores)).astype(int), k).sum()
    np.testing.assert_array_equal(agreement.vote(choices, k), agreement.vote([choices[i] for i in order], k))
    whole = agreement.union(choices)
    assert all(whole[c].all() for c in choices) and whole.sum() <= min(total, k * clients)
    lists = [np.argsort(-s)[:k] for s in scores]
    taken = agreement.interleaved(lists, total, k)
    assert taken.sum() == k and not (taken & ~whole).any()


def test_a_vote_is_by_number_and_a_tie_by_index():
    choices = [np.array(c, bool) for c in ([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1])]
    assert agreement.vote(choices, 2).tolist() == [True, False, False, True]


def test_lists_are_interleaved_in_turn():
    taken = agreement.interleaved([np.array([5, 1, 2]), np.array([5, 3, 4])], 6, 3)
    assert np.flatnonzero(taken).tolist() == [1, 3, 5]


def test_a_client_of_large_scores_weighs_no_more():
    small, large = np.array([0.0, 1.0, 0.2]), np.array([1000.0, 0.0, 900.0])
    total = sum(np.rint(agreement.normalised(s, 1.0) * 2**24).astype(np.int64) for s in (small, large))
    assert np.flatnonzero(agreement.from_sum(total, 1)).tolist() == [2]
    assert not agreement.normalised(np.zeros(3), 1.0).any()


def test_other_models_are_refused():
    with pytest.raises(EncryptionError, match="must train one model"):
        agreement.vote([np.zeros(3, bool), np.zeros(4, bool)], 1)
    with pytest.raises(EncryptionError, match="names entries outside"):
        agreement.interleaved([np.array([7])], 3, 1)
    with pytest.raises(EncryptionError, match="name 1 entries and 2"):
        agreement.interleaved([np.array([0]), np.array([0])], 3, 2)
