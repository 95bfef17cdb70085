"""Text measures: ROUGE-1, ROUGE-2 and ROUGE-L between decoded sentences, as F1 in [0, 1].

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004 (lin2004rouge): lower case, no stemming. For English the words are those of the package
rouge-score, which only knows the letters a to z and digits; here letters of any other script count as well, and in scripts without spaces each character is
a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from selgrad.measures import Measure

# Scripts written without spaces: Thai and Lao, Tibetan, Burmese, Khmer, kana, Han and its extensions.
_ALONE = "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"([{_ALONE}])")


def words(text: str) -> list[str]:
    """Splits text into runs of letters, marks and digits, and into single characters with their marks for scripts without spaces.

    >>> words("It's 5 o'clock"), words("Привет, мир!"), words("我喜欢猫")
    (['it', 's', '5', 'o', 'clock'], ['привет', 'мир'], ['我', '喜', '欢', '猫'])
    """
    composed = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in composed)
    apart = _CHARACTER.sub(lambda match: match[0] if unicodedata.category(match[0])[0] == "M" else f" {match[0]}", kept)
    parts = apart.split()
    # After a character that is a word by itself, another word begins.
    return [part for word in parts for part in re.findall(f"[{_ALONE}]+|[^{_ALONE}]+", word)]


def _f1(overlap: int, num_true: int, num_recovered: int) -> float:
    precision, recall = overlap / max(num_recovered, 1), overlap / max(num_true, 1)
    return 2 * precision * recall / (precision + recall) if overlap else 0.0


def _ngrams(sequence: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1))


def _longest_common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


@lru_cache(maxsize=256)
def rouge(truth: str, found: str) -> dict[str, float]:
    """Returns `rouge1`, `rouge2` and `rougeL` as F1 in [0, 1].

    >>> {name: round(value, 3) for name, value in rouge("the cat sat down", "the cat sat up").items()}
    {'rouge1': 0.75, 'rouge2': 0.667, 'rougeL': 0.75}
    """
    a, b = words(truth), words(found)
    result = {}
    for size in (1, 2):
        mine, theirs = _ngrams(a, size), _ngrams(b, size)
        result[f"rouge{size}"] = _f1(sum((mine & theirs).values()), sum(mine.values()), sum(theirs.values()))
    result["rougeL"] = _f1(_longest_common(a, b), len(a), len(b))
    return result


def align_texts(truths: Sequence[str], found: Sequence[str]) -> npt.NDArray[np.int64]:
    """Returns for each true sentence the index of the recovered one, by the assignment of the largest total ROUGE; identity at batch 1.

    A gradient is a sum over samples and so has no order. The truth determines the order here, for measuring only.
    """
    from scipy.optimize import linear_sum_assignment

    scores = np.asarray([[sum(rouge(t, f).values()) for f in found] for t in truths])
    return np.asarray(linear_sum_assignment(-scores)[1])


def token_accuracy(truth: npt.NDArray[np.int32], found: npt.NDArray[np.int32], content: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Returns `token_accuracy`, the share of content tokens recovered at their position, and `exact_match`, the share of sequences without an error.

    Args:
      truth, found: (B, T) aligned.
      content: (B, T) True where a token is neither padding nor special.
    """
    correct = (truth == found) | ~content
    accuracy = (correct & content).sum() / max(int(content.sum()), 1)
    return {"token_accuracy": float(accuracy), "exact_match": float(correct.all(axis=1).mean())}


def _rouge(name: str) -> Callable[[str, str], float]:
    return lambda truth, found: rouge(truth, found)[name]


def _tokens(name: str) -> Callable[..., float]:
    return lambda truth, found, content: token_accuracy(truth, found, content)[name]


MEASURES = (
    Measure("rouge1", "ROUGE-1", "F1 of single words.", _rouge("rouge1"), "sentences", curve=True, summary=True),
    Measure("rouge2", "ROUGE-2", "F1 of pairs of words.", _rouge("rouge2"), "sentences", curve=True, summary=True),
    Measure(
        "rougeL", "ROUGE-L", "F1 of the longest common subsequence.", _rouge("rougeL"), "sentences", threshold=0.5, headline=True, curve=True, summary=True
    ),
    Measure("token_accuracy", "share of tokens in place", "Share of content tokens found at their place.", _tokens("token_accuracy"), "tokens"),
    Measure("exact_match", "share of sentences without an error", "Share of sequences without an error.", _tokens("exact_match"), "tokens"),
)
