"""Audits: what index lists alone reveal, and whether encrypting named leaves is safe.

`audit_masks` analyses the masks of many samples without any gradient value; `audit_paths` tests a mask by leaf paths with a certificate and the strongest of
several attacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad import trees
from selgrad.attacks.rank_one import pixel_layer
from selgrad.base import TextModel, TextSpec
from selgrad.config import SuccessConfig
from selgrad.errors import UsageError, require_seed
from selgrad.evaluation.certificates import Certificate
from selgrad.evaluation.mask_leak import extra_entries, leak
from selgrad.experiment import Certifier, Lane, Setting, SuccessRule, run_lanes
from selgrad.measures import Measure
from selgrad.registry import Spec, make_spec

_FREQUENT = 200
OnEvent = Callable[[str], None]


def _flat(ranks: Any) -> npt.NDArray[np.int32]:
    """The ranks of all leaves as one array (samples, n) int32."""
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(ranks)], axis=1)


def _places(ranks: npt.NDArray[Any], count: int, ordered: bool) -> npt.NDArray[Any]:
    """What a list of the first `count` entries reveals about each entry: whether it is listed, or its position, from 1 at the head to 0 if not listed."""
    return np.where(ranks < count, 1 - ranks.astype(np.float32) / max(count, 1), 0) if ordered else ranks < count


@dataclasses.dataclass(frozen=True)
class _Truth:
    """The private facts that masks may reveal, and the leaf that has one row for each pixel or token.

    Attributes:
      labels: (samples,), of the first input of each batch.
      inputs: (samples, d): pixels, or the counts of the most frequent tokens.
      occurs: (samples, rows): which pixels are not 0, or which tokens occur.
      leaf: path of the leaf with these rows; None if there is none.
      rows: indices of its rows that are used.
    """

    labels: npt.NDArray[Any]
    inputs: npt.NDArray[Any]
    occurs: npt.NDArray[np.bool_]
    leaf: str | None
    rows: npt.NDArray[np.int64]


def _truth(setting: Setting, seed: int) -> _Truth:
    spec, model, size = setting.input_spec, setting.model, setting.num_samples
    inputs, labels = np.asarray(setting.batches.inputs), np.asarray(setting.batches.labels).reshape(size, -1)[:, 0]
    grads = setting.sent(seed, 0, 0).grads
    if not isinstance(spec, TextSpec):
        lit = np.asarray((spec.pixels(jnp.asarray(inputs)) > 0).any(axis=1)).reshape(size, -1)
        return _Truth(labels, inputs.reshape(size, -1), lit, pixel_layer(grads, spec), np.arange(lit.shape[1]))
    counts = np.stack([np.bincount(row, minlength=spec.vocabulary_size) for row in inputs.reshape(size, -1)])
    words = np.setdiff1d(np.arange(spec.vocabulary_size), spec.special_ids)
    counts = counts[:, words]
    sends_embedding = isinstance(model, TextModel) and model.embedding in trees.paths(grads) and model.embedding not in model.always_encrypted
    frequent = np.argsort(-(counts > 0).sum(axis=0), kind="stable")[:_FREQUENT]
    return _Truth(labels, counts[:, frequent], counts > 0, model.embedding if sends_embedding and isinstance(model, TextModel) else None, words)


def audit_masks(
    *, dataset: Any, model: Any, metrics: Sequence[Any], ratios: Sequence[float], selectors: Sequence[Any] = ("global_top",), update: Any = "gradient",
    seed: int = 0, public: Any = None, protection: Any = "none", ordered: bool = False, on_event: OnEvent = lambda _: None,
) -> pd.DataFrame:  # fmt: skip
    """Measures what the masks of every metric, selector and ratio reveal about the samples of a data set.

    Args:
      dataset, model, update: a name, or a mapping of `name` and arguments; take 200 samples or more.
      metrics, selectors: lists of names or mappings.
      ratios: shares of encrypted entries, in [0, 1].
      seed: of weights and metrics; all samples are seen at the same weights.
      public: a data set that everybody has, for amortised metrics.
      protection: what clients do to their updates before they choose entries.
      ordered: whether the lists are read in order, as MaskCrypt's clients send them to be interleaved, and not as sets.
      on_event: called with a line before each metric.

    Returns:
      One row per metric, selector and ratio: `metric`, `selector`, `ratio`, `ordered`, the columns of `MaskLeak`, and `extra_entries`, how many more entries
      (as a share of the selection, median over samples) the selector must encrypt to cover 90 % of what the metric's own top entries would be.

    Raises:
      UsageError: for unknown names, ratios outside [0, 1], or fewer than 20 samples.
    """
    require_seed(seed)
    specs = Spec.of("dataset", dataset), Spec.of("model", model), Spec.of("update", update)
    setting = Setting(*specs, public=None if public is None else Spec.of("dataset", public), protection=Spec.of("protection", protection))
    if setting.num_samples < 20:
        raise UsageError(f"an audit of masks needs 20 samples and has {setting.num_samples}; raise count of {setting.specs[0].label}, such as count=300")
    truth, rows, top_selector = _truth(setting, seed), [], make_spec("selector", "global_top")
    for metric in [Spec.of("metric", entry) for entry in metrics]:
        for selector in [Spec.of("selector", entry) for entry in selectors]:
            on_event(f"masks of {setting.num_samples} samples by {metric.label}, {selector.label}")
            ranks = setting.ranks(metric, selector, seed)[0]
            flat, top_ranks = _flat(ranks), _flat(setting.ranks(metric, top_selector, seed)[0])
            for ratio in ratios:
                count = setting.num_selected(ratio)
                hidden = None if truth.leaf is None else (_places(trees.subtree(ranks, truth.leaf), count, ordered).mean(axis=-1)[:, truth.rows], truth.occurs)
                leakage = leak(_places(flat, count, ordered), truth.labels, truth.inputs, hidden)
                extra = np.median([extra_entries(a, b, count) for a, b in zip(top_ranks, flat, strict=True)]) / max(count, 1)
                rows.append(
                    {
                        "metric": metric.label, "selector": selector.label, "ratio": float(ratio), "ordered": ordered, "num_selected": count,
                        "num_total": setting.num_total, **dataclasses.asdict(leakage), "extra_entries": float(extra),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


@dataclasses.dataclass(frozen=True)
class PathAudit:
    """The answer to "is it safe to encrypt these leaves?".

    Attributes:
      encrypted: paths of the leaves that are encrypted whole.
      num_selected, num_total: entries.
      certificate: of the first sample; None if its Jacobian does not fit in memory.
      attacks: one row per attack, the strongest first: `attack`, `quality` (mean over samples of `measure`), `success` (share), `num_samples`.
      measure: the measure of `quality`.
      rule: the success rule in words.
    """

    encrypted: tuple[str, ...]
    num_selected: int
    num_total: int
    certificate: Certificate | None
    attacks: pd.DataFrame
    measure: Measure
    rule: str

    @property
    def safe(self) -> bool:
        """Whether no attack succeeded on any sample."""
        return not (self.attacks["success"] > 0).any()


def default_attacks(setting: Setting, seed: int) -> list[Spec]:
    """The strongest variants of the attacks that apply to the data, which `audit_paths` runs by default."""
    if isinstance(setting.input_spec, TextSpec):
        chosen = [
            make_spec("attack", "dager", {"num_attempts": 1, "max_candidates": 32}),
            make_spec("attack", "tag", {"num_steps": 1000, "start": "vocabulary", "learning_rate": 0.01, "hidden": "complete"}),
        ]
    else:
        grads = setting.sent(seed, 0, 0).grads
        chosen = [make_spec("attack", name) for name in ("rank_one", "silhouette")] if pixel_layer(grads, setting.input_spec) else []
        chosen += [
            make_spec("attack", "bayesian", {"num_steps": 60, "hidden": "complete"}),
            make_spec("attack", "inverting_gradients", {"num_steps": 1000, "total_variation_weight": 0.01, "hidden": "complete"}),
        ]
    return chosen if setting.public is None else [*chosen, make_spec("attack", "learned")]


def audit_paths(
    paths: Sequence[str], *, dataset: Any, model: Any, update: Any = "gradient", attacks: Sequence[Any] = (), samples: Sequence[int] = (0, 1),
    seed: int = 0, public: Any = None, protection: Any = "none", success: Any = None, on_event: OnEvent = lambda _: None,
) -> PathAudit:  # fmt: skip
    """Encrypts the named leaves whole, certifies what remains identifiable, and attacks the visible rest.

    Args:
      paths: shell patterns over leaf paths, such as ["conv*/**"].
      dataset, model, update: a name, or a mapping of `name` and arguments.
      attacks: a list of the same; by default the strongest variants of those that apply to the data.
      samples: batches of the data set to attack.
      seed: of weights and attacks.
      public: a data set that everybody has, for the learned decoder and the certificate's prior.
      protection: what clients do to their updates besides encrypting.
      success: a mapping of `level`, or of `measure` and `threshold`; by default an attack succeeds if the input is recognisable (docs/verdicts.md).
      on_event: called with a line before the certificate and before each attack.

    Raises:
      UsageError: for unknown names, or a pattern that names no leaf. If the certificate's Jacobian does not fit, only the certificate is left out.
    """
    require_seed(seed)
    specs = Spec.of("dataset", dataset), Spec.of("model", model), Spec.of("update", update)
    setting = Setting(*specs, samples, None if public is None else Spec.of("dataset", public), protection=Spec.of("protection", protection))
    grads = setting.sent(seed, 0, 0).grads
    named = trees.matching_leaves(grads, paths)
    always = [trees.matches(path, setting.model.always_encrypted) for path in trees.paths(grads)]
    sizes = [leaf.size for leaf in jax.tree.leaves(grads)]
    chosen = sum(size for size, is_named, is_always in zip(sizes, named, always, strict=True) if is_named and not is_always)
    ratio = chosen / max(setting.num_total - setting.num_always, 1)
    selector, metric = make_spec("selector", "by_path", {"paths": list(paths)}), make_spec("metric", "magnitude")
    count = setting.num_selected(ratio)
    certificate: Certificate | None = None
    try:
        on_event("certificate")
        certificate = Certifier(setting).certify(metric, selector, seed, (count,), 0)[0][0]
    except UsageError as error:
        on_event(f"no certificate: {error}")
    rule, measure = SuccessRule.of(SuccessConfig.read(success or {}, "success"), setting), setting.modality.headline
    rows, lanes = [], [Lane(seed, i, metric, selector, ratio) for i in range(setting.num_samples)]
    for attack in [Spec.of("attack", entry) for entry in attacks] or default_attacks(setting, seed):
        on_event(attack.label)
        outcomes = [lane.measures for lane in run_lanes(setting, attack, lanes).found]
        quality, successes = [values[measure.name] for values in outcomes], [rule(values, setting.modality.level(values, False)) for values in outcomes]
        rows.append({"attack": attack.label, "quality": float(np.mean(quality)), "success": float(np.mean(successes)), "num_samples": len(outcomes)})
    table = pd.DataFrame(rows).sort_values(["success", "quality"], ascending=False, ignore_index=True)
    encrypted = tuple(path for path, is_named, is_always in zip(trees.paths(grads), named, always, strict=True) if is_named or is_always)
    return PathAudit(encrypted, count, setting.num_total, certificate, table, measure, str(rule))
