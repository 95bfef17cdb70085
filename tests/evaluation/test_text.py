"""ROUGE against the package rouge-score, and alignment of a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from selgrad.evaluation.text import align_texts, rouge, token_accuracy

SCORER = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
WORDS = st.lists(st.sampled_from(["the", "cat", "Cat's", "sat", "42", "-", "it’s", "on", "a_b", "."]), max_size=12).map(" ".join)


@given(WORDS, WORDS)
@settings(max_examples=300, deadline=None)
def test_rouge_is_that_of_rouge_score(truth, found):
    expected = {name: score.fmeasure for name, score in SCORER.score(truth, found).items()}
    assert rouge(truth, found).keys() == expected.keys()
    for name, value in rouge(truth, found).items():
        assert abs(value - expected[name]) < 1e-12


SCRIPTS = ["Привет, мир! Как дела?", "我喜欢猫。你呢?", "ひらがなとカタカナ", "नमस्ते दुनिया", "สวัสดีชาวโลก", "γειά σου Κόσμε", "مرحبا بالعالم"]


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_has_words(text):
    assert rouge(text, text) == dict.fromkeys(("rouge1", "rouge2", "rougeL"), 1.0)
    for other in SCRIPTS:
        assert other == text or rouge(text, other)["rouge1"] == 0


def test_words_are_what_they_are_in_their_script():
    assert abs(rouge("привет мир", "привет дом")["rouge1"] - 0.5) < 1e-12
    assert abs(rouge("我喜欢猫", "我喜欢狗")["rouge1"] - 0.75) < 1e-12, "characters where there are no spaces"
    assert abs(rouge("नमस्ते दुनिया", "नमस्ते भारत")["rouge1"] - 0.5) < 1e-12, "marks belong to their letters"
    assert rouge("ﬁne cafe\u0301", "fine café")["rouge1"] == 1, "one spelling of two"


def test_a_batch_is_aligned_by_the_best_assignment_and_not_greedily():
    truths = ["a b c d", "a b c e"]
    found = ["a b c e", "a b x y"]
    # Greedily the first would take its near match, which the second needs.
    assert align_texts(truths, found).tolist() == [1, 0]
    assert align_texts(["one"], ["two"]).tolist() == [0]


def test_token_accuracy_counts_content_only():
    truth, found = np.asarray([[2, 7, 8, 3, 0], [2, 9, 3, 0, 0]], np.int32), np.asarray([[5, 7, 6, 3, 0], [2, 9, 3, 9, 9]], np.int32)
    content = np.asarray([[False, True, True, False, False], [False, True, False, False, False]])
    assert token_accuracy(truth, found, content) == {"token_accuracy": 2 / 3, "exact_match": 0.5}
