"""Records: one row per cell, with every column documented here and nowhere else; `docs/records.md` is printed from this table.

Measures and certificates define their own columns (`selgrad.measures`, `selgrad.evaluation.certificates`); a measure that the data do not have has no column.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd

from selgrad import __version__, devices, encryption
from selgrad.base import Attack
from selgrad.config import SweepConfig
from selgrad.experiment import Certifier, Exposed, Lane, Setting, SuccessRule
from selgrad.modality import LaneResult
from selgrad.registry import Spec
from selgrad.sweep.plan import BlockPlan

_KINDS = ("dataset", "model", "update", "metric", "selector", "attack", "protection")

COLUMNS: dict[str, tuple[str, str]] = {
    "cell_id": ("text", "Hash of everything that decides the cell's result."),
    "sweep": ("text", "Name of the sweep."),
    "suite": ("text", "Of the attacks: name, version, budget and hash; empty where somebody chose them."),
    **{kind: ("text", f"Name of the {kind}.") for kind in _KINDS},
    **{f"{kind}_label": ("text", f"Name of the {kind} with the arguments that differ from their defaults.") for kind in _KINDS},
    **{f"{kind}_arguments": ("JSON", f"All arguments of the {kind}; of one's own code the hash of its source.") for kind in _KINDS},
    "hidden": ("text", "What the attack makes of encrypted entries: the rung of the attacker ladder."),
    "ratio": ("float", "Share of entries to encrypt, in [0, 1]."),
    "sample": ("int", "Which batch of the data set."),
    "seed": ("int", "Of weights, metric and attack."),
    "known_labels": ("bool", "Whether the attacker is given the labels."),
    "known_padding": ("bool", "Whether it is told which positions of a text are padding."),
    "num_rounds": ("int", "Updates of the same data that the attacker has."),
    "embedding": ("text", "Of text: whether word embeddings are frozen, sent or always encrypted."),
    "objective": ("float", "The attack's own objective at what it returns; inf where it diverged."),
    "<measure>": ("float", "One column for each measure of the data, such as mse, psnr (dB), ssim, rouge1, rouge2, rougeL, label_correct."),
    "certificate_<field>": ("float", "With `certificates`: what the mask leaves identifiable, for any attacker; see docs/theory.md."),
    "objective_at_truth": ("float", "The attack's own objective beside the truth, which is moved by float32's rounding; NaN for an attack without one."),
    "moved": ("bool", "Whether the attack returned anything but its start."),
    "converged": ("bool", "Whether it matches what is visible as well as the truth does, so that a failure is not the search's."),
    "restarts_converged": ("float", "Share of its restarts that do; between 0 and 1 more restarts may find more."),
    "better_than_prior": ("bool", "Whether it is nearer to the truth than the mean of public data, or than grey."),
    "level": ("text", "What the attack got of the input: exact, recognisable (told from the others), attribute (class, or half of the words), or nothing."),
    "num_others": ("int", "Other inputs of the data set from which `identified` tells the truth; by chance one in so many and one."),
    "success": ("bool", "Whether the success rule holds."),
    "success_rule": ("text", "The rule, such as `level: recognisable` or `mse < 0.001`."),
    "diverged": ("bool", "Whether every restart left the finite numbers; measures are NaN then."),
    "restart": ("int", "Which restart was chosen, by the attack's own objective."),
    "num_evaluations": ("int", "Evaluations of the objective's gradient, the largest over restarts."),
    "num_total": ("int", "Entries of the update."),
    "num_selected": ("int", "Encrypted entries."),
    "num_visible": ("int", "Entries sent in the clear; fewer than the rest where a protection leaves some out."),
    "visible_per_unknown": ("float", "Visible entries of the first round that are not 0, for each coordinate of the input that the attacker does not know."),
    "hidden_by_layer": ("JSON", "Share of each layer's entries that nobody sees, in the first round."),
    "plain_bytes": ("int", "Of the entries sent in the clear."),
    "num_clients": ("int or null", "Clients in the measured encryption; null, like all that follow of it, where nothing was encrypted."),
    "num_ciphertexts": ("int or null", "Per client."),
    "num_slots": ("int or null", "Values that a ciphertext holds."),
    "ciphertext_bytes": ("int or null", "Per client, as serialised."),
    "num_clipped": ("int or null", "Values beyond the public bound, over all clients."),
    "index_bytes": ("int", "Of the list of encrypted entries, as sent."),
    "score_seconds": ("float", "To score one sample, compilation apart."),
    "score_standard_error": ("float", "Relative standard error of a metric that estimates squared norms from probes; 0 for one that is exact."),
    "mask_seconds": ("float", "To rank one sample's entries."),
    "encrypt_seconds": ("float or NaN", "Per client."),
    "add_seconds": ("float or NaN", "Over all clients."),
    "decrypt_seconds": ("float or NaN", "Of the sum."),
    "attack_seconds": ("float", "Of the block, compilation apart, divided by its cells."),
    "attack_report": ("JSON or empty", "What an attack on the host says of itself: leaves used, not used (with reasons), and used although they are 0."),
    "selgrad_version": ("text", "That ran it."),
    "jax_version": ("text", "That ran it."),
    "jax_settings": ("text", "JAX's settings that change results and were not at their defaults, such as `jax_enable_x64=True`; empty where all were."),
    "device": ("text", "Kind of accelerator."),
    "run_id": ("text", "Of the sweep's folder."),
}
"""Column -> type and meaning, in the order of the records."""


def _facts(spec: Spec) -> list[Any]:
    return [spec.name, *spec.arguments]


def cell_id(config: SweepConfig, setting: Setting, attack: Spec, lane: Lane) -> str:
    """Returns the hash of everything that decides a cell's result; later features that a cell does not use leave its hash unchanged."""
    dataset, model, update = setting.specs
    named = {"dataset": dataset, "model": model, "update": update, "metric": lane.metric, "selector": lane.selector, "attack": attack}
    identity = {kind: _facts(spec) for kind, spec in named.items()}
    if config.public is not None:
        identity["public"] = _facts(config.public)
    if config.features is not None:
        identity["features"] = [*_facts(config.features.spec), config.features.normalisation]
    if setting.protection.changes:
        identity["protection"] = _facts(setting.protection_spec)
    if config.rounds.count > 1:
        identity["rounds"] = [config.rounds.count, config.rounds.server_learning_rate]
    text = json.dumps([identity, lane.ratio, lane.sample, lane.seed, config.known_labels, config.known_padding], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell_ids(config: SweepConfig, setting: Setting, part: BlockPlan) -> Iterator[str]:
    """Yields the hashes of a block's cells."""
    return (cell_id(config, setting, part.attack, lane) for lanes in part.lanes for lane in lanes)


def certificate_columns(config: SweepConfig, certifier: Certifier, setting: Setting, lane: Lane) -> dict[str, Any]:
    """Returns the columns `certificate_*` of one cell, computed for all ratios of the sample at once."""
    if not config.certificates:
        return {}
    counts = tuple(sorted({setting.num_selected(ratio) for ratio in config.ratio}))
    certificates, bounds = certifier.certificates(lane.metric, lane.selector, lane.seed, counts)
    index = counts.index(setting.num_selected(lane.ratio))
    certificate = dataclasses.asdict(certificates[lane.sample][index])
    return {**{f"certificate_{name}": value for name, value in certificate.items()}, "certificate_van_trees_mse": bounds[index]}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What all cells of a block have in common.

    Attributes:
      config: the sweep's configuration.
      setting, certifier, exposed: those of the block.
      attack: the attack, built.
      costs: costs of the encryption by metric label, selector label and ratio; None where nothing is encrypted.
      run_id: the folder's run id.
    """

    config: SweepConfig
    setting: Setting
    certifier: Certifier
    exposed: Exposed
    attack: Attack
    costs: dict[tuple[str, str, float], encryption.Cost] | None
    run_id: str


def row(origin: Origin, spec: Spec, lane: Lane, result: LaneResult, report: str, attack_seconds: float) -> dict[str, Any]:
    """Returns the record of one cell."""
    config, setting = origin.config, origin.setting
    selected, visible = setting.num_selected(lane.ratio), setting.num_visible(lane)
    left = origin.exposed.left(lane)
    bits, score_seconds, mask_seconds = setting.chosen(lane)
    rule, level = SuccessRule.of(config.success, setting), setting.modality.level(result.measures, config.known_labels)
    cost = None if origin.costs is None else origin.costs[lane.metric.label, lane.selector.label, lane.ratio]
    dataset, model, update = setting.specs
    specs = dict(zip(_KINDS, (dataset, model, update, lane.metric, lane.selector, spec, setting.protection_spec), strict=True))
    separate = ("diverged", "moved", "converged", "better_than_prior", "restart", "num_evaluations")
    return {
        "cell_id": cell_id(config, setting, spec, lane),
        "sweep": config.name,
        "suite": config.suite,
        **{k: s.name for k, s in specs.items()},
        **{f"{k}_label": s.label for k, s in specs.items()},
        **{f"{k}_arguments": s.arguments_json for k, s in specs.items()},
        "hidden": origin.attack.rung,
        "ratio": lane.ratio,
        "sample": lane.sample,
        "seed": lane.seed,
        "known_labels": config.known_labels,
        "known_padding": config.known_padding,
        "num_rounds": config.rounds.count,
        **setting.modality.columns(setting.model),
        **{k: float(value) for k, value in result.measures.items() if k not in separate},
        **certificate_columns(config, origin.certifier, setting, lane),
        "level": level,
        "num_others": len(setting.others),
        "success": rule(result.measures, level),
        "success_rule": str(rule),
        **{k: bool(result.measures[k]) for k in separate[:4]},
        "restart": int(result.measures["restart"]),
        "num_evaluations": int(result.measures["num_evaluations"]),
        "num_total": setting.num_total,
        "num_selected": selected,
        "num_visible": visible,
        "visible_per_unknown": left.num_nonzero / max(1, left.num_unknown),
        "hidden_by_layer": json.dumps(left.hidden),
        "plain_bytes": setting.protection.num_bytes(visible, setting.num_total),
        "num_clients": None if cost is None or config.encryption is None else config.encryption.num_clients,
        "num_ciphertexts": None if cost is None else cost.num_ciphertexts,
        "num_slots": None if cost is None else cost.num_slots,
        "ciphertext_bytes": None if cost is None else cost.ciphertext_bytes,
        "num_clipped": None if cost is None else cost.num_clipped,
        "index_bytes": len(encryption.encode_indices(np.unpackbits(bits, count=setting.num_total).view(bool))),
        "score_seconds": score_seconds,
        "score_standard_error": setting.choices.standard_error(lane.metric),
        "mask_seconds": mask_seconds,
        "encrypt_seconds": None if cost is None else cost.encrypt_seconds,
        "add_seconds": None if cost is None else cost.add_seconds,
        "decrypt_seconds": None if cost is None else cost.decrypt_seconds,
        "attack_seconds": attack_seconds,
        "attack_report": report,
        "selgrad_version": __version__,
        "jax_version": jax.__version__,
        "jax_settings": devices.numerical_settings(),
        "device": jax.local_devices()[0].device_kind,
        "run_id": origin.run_id,
    }


def frame(origin: Origin, part: BlockPlan, results: dict[tuple[int, int], LaneResult], reports: dict[tuple[int, int], str], seconds: float) -> pd.DataFrame:
    """Returns the records of a block."""
    cells = [(i, j, lane) for i, lanes in enumerate(part.lanes) for j, lane in enumerate(lanes)]
    table = pd.DataFrame([row(origin, part.attack, lane, results[i, j], reports.get((i, j), ""), seconds) for i, j, lane in cells])
    whole = dict.fromkeys((name for name, (kind, _) in COLUMNS.items() if kind == "int or null"), "Int64")
    real = dict.fromkeys((name for name, (kind, _) in COLUMNS.items() if kind == "float or NaN"), "float64")
    return table.astype({**whole, **real})
