"""What the list of encrypted entries alone reveals to an attacker: labels, inputs and tokens, read off masks of many samples without gradient values.

A mask that depends on the data is a message about the data, and the index list of selective encryption is sent in the clear (docs/theory.md, section 7).
Mutual information is bounded from below by a classifier's log-loss: Barber and Agakov 2003 (barber2003im).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

_COMPONENTS = 100
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class MaskLeak:
    """What masks of one metric, selector and ratio reveal. Everything is measured on held-out samples.

    Attributes:
      num_samples: number of masks.
      label_accuracy: of a logistic regression from masks to labels.
      label_chance: accuracy of always naming the most frequent label.
      label_bits: lower bound on the mutual information of mask and label, in bits; at most the labels' entropy.
      label_entropy: in bits.
      input_explained: share of the variance of the inputs that a ridge regression on the masks explains: of pixels, or of the counts of tokens. 0 if none.
      support_auc: area under the ROC curve of "this sample's mask hides more of the row of a coordinate (a token) than another's" for "the coordinate is
        not 0 (the token occurs)", mean over coordinates; it needs no fitting. 0.5 is a guess, NaN where no leaf has a row for each.
    """

    num_samples: int
    label_accuracy: float
    label_chance: float
    label_bits: float
    label_entropy: float
    input_explained: float
    support_auc: float


def principal_components(masks: npt.NDArray[Any], count: int = _COMPONENTS) -> npt.NDArray[np.float64]:
    """Returns coordinates (samples, at most `count`) of masks (samples, n) along their principal axes, each of variance 1; none if all masks are equal."""
    samples = len(masks)
    gram: Any = np.zeros((samples, samples))
    for start in range(0, masks.shape[1], 2**16):
        part = masks[:, start : start + 2**16].astype(np.float32)
        part = part[:, (part != part[0]).any(axis=0)]
        part -= part.mean(axis=0)
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram)
    # Masks that differ at all have a variance of about a half or more.
    keep = values > 1e-9 * max(float(values[-1]), 1.0)
    chosen: npt.NDArray[np.float64] = vectors[:, keep][:, ::-1][:, :count] * math.sqrt(samples)
    return chosen


def label_information(components: npt.NDArray[np.float64], labels: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    """Returns accuracy, chance, bits and entropy as defined in `MaskLeak`, by cross-validation in 5 folds.

    Classes of a single sample are left out; accuracy and bits are NaN where no others are left.
    """
    from sklearn.model_selection import StratifiedKFold

    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 <= (counts >= 2).sum():
        # A class of one sample cannot be both learnt and tested.
        kept = np.isin(labels, classes[counts >= 2])
        return label_information(components[kept], labels[kept])
    share = counts / counts.sum()
    entropy, chance = float(-(share * np.log2(share)).sum()), float(share.max())
    folds = min(_FOLDS, int(counts.min()))
    if components.shape[1] == 0 or len(classes) < 2:
        return chance, chance, 0.0, entropy
    if folds < 2:
        return math.nan, chance, math.nan, entropy
    num_correct, bits = 0, 0.0
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(components, labels):
        candidates = []
        # The strength of the regularisation is chosen inside the fold.
        inner = np.random.default_rng(0).permutation(train)
        cut = max(len(classes), len(inner) * 4 // 5)
        for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            candidates.append((_log_likelihood(components, labels, classes, inner[:cut], inner[cut:], strength)[0], strength))
        strength = max(candidates)[1]
        log_likelihood, correct = _log_likelihood(components, labels, classes, train, test, strength)
        bits, num_correct = bits + log_likelihood, num_correct + correct
    return num_correct / len(labels), chance, max(0.0, min(entropy, entropy + bits / len(labels))), entropy


def _log_likelihood(
    components: npt.NDArray[np.float64], labels: npt.NDArray[Any], classes: npt.NDArray[Any], train: npt.NDArray[Any], test: npt.NDArray[Any], strength: float
) -> tuple[float, int]:
    """Returns the sum over the test samples of log2 p(label | mask), and the number of labels that are right."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=strength, max_iter=300).fit(components[train], labels[train])
    probabilities = np.full((len(test), len(classes)), 1e-6)
    probabilities[:, np.searchsorted(classes, model.classes_)] += model.predict_proba(components[test])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    columns = np.searchsorted(classes, labels[test])
    return float(np.log2(probabilities[np.arange(len(test)), columns]).sum()), int((classes[probabilities.argmax(axis=1)] == labels[test]).sum())


def input_information(components: npt.NDArray[np.float64], inputs: npt.NDArray[Any]) -> float:
    """Returns the share of variance of inputs (samples, d) that ridge regression explains on held-out samples of 5 folds; 0 if worse than the mean."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    inputs = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    if components.shape[1] == 0 or len(inputs) < 2 * _FOLDS:
        return 0.0
    wrong = whole = 0.0
    for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(inputs):
        model = RidgeCV(alphas=np.logspace(0, 5, 11)).fit(components[train], inputs[train])
        wrong += float(((model.predict(components[test]) - inputs[test]) ** 2).sum())
        whole += float(((inputs[train].mean(axis=0) - inputs[test]) ** 2).sum())
    return max(0.0, 1 - wrong / whole) if whole > 0 else 0.0


def support_auc(rows_hidden: npt.NDArray[Any], occurs: npt.NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve over samples, as the mean over the rows that occur in some samples but not in all.

    Args:
      rows_hidden: (samples, rows) share of hidden entries of each row.
      occurs: (samples, rows) whether the coordinate is not 0, or the token occurs.
    """
    from sklearn.metrics import roc_auc_score

    both = occurs.any(axis=0) & ~occurs.all(axis=0)
    if not both.any():
        return math.nan
    return float(np.mean([roc_auc_score(o, r) for o, r in zip(occurs.T[both], rows_hidden.T[both], strict=True)]))


Rows: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]


def leak(masks: npt.NDArray[Any], labels: npt.NDArray[Any], inputs: npt.NDArray[Any], rows: Rows | None) -> MaskLeak:
    """Measures what masks reveal.

    Args:
      masks: (samples, n), True where encrypted; or numbers that fall along a priority list, 0 where an entry is not on it.
      labels: (samples,), those of the first input of each batch.
      inputs: (samples, d) pixels, or counts of tokens.
      rows: share of hidden entries of each row and whether the coordinate or token occurs, both (samples, rows), where a leaf has such rows.
    """
    components = principal_components(masks)
    accuracy, chance, bits, entropy = label_information(components, labels)
    return MaskLeak(len(masks), accuracy, chance, bits, entropy, input_information(components, inputs), math.nan if rows is None else support_auc(*rows))


def extra_entries(own: npt.NDArray[Any], mitigated: npt.NDArray[Any], num_selected: int, coverage: float = 0.9) -> int:
    """Returns how many more entries a mitigated order must encrypt to include this share of a client's own choice.

    Args:
      own, mitigated: ranks (n,), 0 is encrypted first.
      num_selected: number of entries in the client's own choice.
      coverage: share of that choice, in (0, 1].
    """
    if not num_selected:
        return 0
    needed = math.ceil(coverage * num_selected)
    positions = np.sort(mitigated[own < num_selected])
    return max(0, int(positions[needed - 1]) + 1 - num_selected)
