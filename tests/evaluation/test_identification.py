"""Who is told from a thousand others: everybody by a faithful copy, nobody but by chance from what has nothing to do with them."""

import numpy as np
import pytest

from selgrad.evaluation import identified_images, identified_sentences

RNG = np.random.default_rng(0)
OTHERS = RNG.random((200, 6, 6, 1)).astype(np.float32)
OWN = RNG.random((1, 6, 6, 1)).astype(np.float32)


@pytest.mark.parametrize(
    "copy", [lambda x: x, lambda x: 0.3 * x + 0.5, lambda x: x + 0.1 * RNG.normal(size=x.shape).astype(np.float32)], ids=["exact", "faint", "noisy"]
)
def test_a_copy_is_recognised_whatever_its_contrast(copy):
    assert identified_images(OWN, copy(OWN), OTHERS) == 1


def test_what_has_nothing_to_do_with_it_is_recognised_by_chance_alone():
    draws = [identified_images(OWN, RNG.random(OWN.shape).astype(np.float32), OTHERS[:49]) for _ in range(400)]
    # One in 50 by either comparison, which mostly agree.
    assert 0.005 < np.mean(draws) < 0.06
    assert identified_images(OWN, np.full_like(OWN, np.nan), OTHERS) == 0 == identified_images(OWN, OTHERS[:1], OTHERS)


def test_of_a_batch_it_is_the_share():
    both = np.concatenate([OWN, RNG.random(OWN.shape).astype(np.float32)])
    assert identified_images(both, np.concatenate([OWN, OTHERS[3:4]]), OTHERS) == 0.5


def test_sentences():
    others = ["the cat sat", "a dog ran home", "home ran a dog"]
    assert identified_sentences(["the dog sat"], ["the dog sat"], others) == 1
    assert identified_sentences(["the dog sat"], ["the cat sat down"], others) == 0
    assert identified_sentences(["a dog ran home"], ["a dog ran home"], others[2:]) == 1, "the order decides among the same words"
    assert identified_sentences(["the dog sat"], [""], others) == 0 == identified_sentences(["the dog sat"], ["unrelated"], others)
    assert identified_sentences(["one two", "a b"], ["one two", "c d"], others) == 0.5


def test_without_others_nothing_is_said():
    assert np.isnan(identified_images(OWN, OWN, OTHERS[:0])) and np.isnan(identified_sentences(["a"], ["a"], ()))
