"""Identification: does a reconstruction single out the true input among a thousand others of its data set?

No threshold on an error says when a person recognises a picture or can read a sentence. Whether the truth is nearer to the reconstruction than each of N
others is a question that an attacker would ask, and by chance the answer is yes once in N + 1 times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from selgrad.evaluation.text import rouge, words
from selgrad.measures import Measure


def identified_images(
    truths: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    others: npt.NDArray[np.float32],
    features: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
) -> float:
    """Returns the share of images that are nearest to their own reconstruction.

    Nearest means in squared error, in correlation, which ignores brightness and contrast, or in the features of a trained network.

    Args:
      truths, found: (B, H, W, C) pixels in [0, 1], aligned.
      others: (N, H, W, C) of the same data set.
      features: of the three, (B, F), (B, F) and (N, F), of length 1; without them only pixels are compared.

    Returns:
      In [0, 1]; NaN where there are no others.
    """
    if not len(others):
        return math.nan
    flat = lambda images: np.asarray(images, np.float32).reshape(len(images), -1)

    def standard(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        centred = rows - rows.mean(axis=1, keepdims=True)
        standard: npt.NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        return standard

    truth, image, rest = flat(truths), np.nan_to_num(flat(found)), flat(others)
    # -|a - b|^2 up to a term that all candidates share.
    nearer = lambda rows, recovered: 2 * rows @ recovered - (rows**2).sum(axis=1)
    num_identified = 0
    for index, (own, recovered) in enumerate(zip(truth, image, strict=True)):
        by_error = nearer(own[None], recovered)[0] > nearer(rest, recovered).max()
        direction = standard(recovered[None])[0]
        by_correlation = standard(own[None])[0] @ direction > (standard(rest) @ direction).max()
        by_features = features is not None and features[0][index] @ features[1][index] > (features[2] @ features[1][index]).max()
        num_identified += bool(by_error or by_correlation or by_features)
    return num_identified / len(truth)


def identified_sentences(truths: Sequence[str], found: Sequence[str], others: Sequence[str]) -> float:
    """Returns the share of sentences that share more words with their reconstruction than all others do, or as many words and a longer subsequence.

    The result is NaN where there are no others.
    """
    if not others:
        return math.nan
    counted = [(Counter(words(other)), other) for other in others]
    num_identified = 0
    for truth, text in zip(truths, found, strict=True):
        recovered, true_words = Counter(words(text)), Counter(words(truth))
        shared = lambda other, recovered=recovered: 2 * sum((recovered & other).values()) / max(1, sum(recovered.values()) + sum(other.values()))
        score = shared(true_words)
        rivals = [other for count, other in counted if shared(count) >= score]
        as_good = all(shared(Counter(words(other))) == score and rouge(other, text)["rougeL"] < rouge(truth, text)["rougeL"] for other in rivals)
        num_identified += bool(score > 0 and as_good)
    return num_identified / len(truths)


MEASURES = (
    Measure(
        "identified",
        "share identified",
        "Share of inputs told from 1,000 others of their data set by the reconstruction.",
        None,
        "others",
        curve=True,
        summary=True,
    ),
    Measure(
        "feature_distance",
        "distance in a trained network's features",
        "One minus the cosine of what the last hidden layer of the network `features` makes of the truth and of the reconstruction.",
        None,
        "others",
        lower_is_better=True,
        limits=(0.0, 2.0),
    ),
)
