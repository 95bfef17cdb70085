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
from selgrad.sources import own_hash
from selgrad.sweep.plan import BlockPlan

_KINDS = ("dataset", "model", "update", "metric", "selector", "attack", "protection")

COLUMNS: dict[str, tuple[str, str]] = {
    "cell_id": ("text", "Hash of everything that decides the cell's result."),
    "sweep": ("text", "Name of the sweep."),
    "suite": ("text", "Suite that the attacks belong to, as name, version, budget and hash; empty where attacks were chosen one by one."),
    **{kind: ("text", f"Name of the {kind}.") for kind in _KINDS},
    **{f"{kind}_label": ("text", f"Name of the {kind} with the arguments that differ from their defaults.") for kind in _KINDS},
    **{f"{kind}_arguments": ("JSON", f"All arguments of the {kind}; of one's own code the hash of its source.") for kind in _KINDS},
    "hidden": ("text", "How the attack treats encrypted entries: the rung of the attacker ladder."),
    "ratio": ("float", "Share of entries to encrypt, in [0, 1]."),
    "sample": ("int", "Index of the batch in the data set."),
    "seed": ("int", "Seed of weights, metric and attack."),
    "known_labels": ("bool", "Whether the attacker is given the labels."),
    "known_padding": ("bool", "Whether the attacker knows which positions of a text are padding."),
    "num_rounds": ("int", "Number of updates of the same data that the attacker has."),
    "embedding": ("text", "For text, whether word embeddings are frozen, sent or always encrypted."),
    "objective": ("float", "The attack's own objective at the reconstruction; inf where it diverged."),
    "<measure>": ("float", "One column for each measure of the data, such as mse, psnr (dB), ssim, rouge1, rouge2, rougeL, label_correct."),
    "certificate_<field>": (
        "float",
        "With `certificates`, what the values of the visible entries leave identifiable, to first order and for a Gaussian prior; see docs/theory.md.",
    ),
    "objective_at_truth": ("float", "The attack's own objective at the truth perturbed by float32's rounding; NaN for an attack without one."),
    "best_mse": ("float", "Of images, the smallest mean squared error of one image of the batch; the level `exact` goes by it."),
    "misfit": ("float", "The objective at the reconstruction without regularisers such as total variation: how badly it explains the visible entries."),
    "misfit_at_truth": ("float", "The same at the truth perturbed by float32's rounding."),
    "moved": ("bool", "Whether the reconstruction differs from the attack's start and from prior knowledge."),
    "converged": ("bool", "Whether the reconstruction explains the visible entries as well as the truth does, so that a failure is not due to the search."),
    "restarts_converged": ("float", "Share of restarts that converged; where it lies between 0 and 1, more restarts may recover more."),
    "better_than_prior": ("bool", "Whether the reconstruction is closer to the truth than the mean of public data, or than grey."),
    "level": (
        "text",
        "What the attack recovered: exact, recognisable (the input is identified among the others), attribute (class, or half of the words), or nothing.",
    ),
    "num_others": ("int", "Number n of other inputs of the data set among which the input is identified; a guess succeeds once in n + 1."),
    "success": ("bool", "Whether the success rule holds."),
    "success_rule": ("text", "The rule, such as `level: recognisable` or `mse < 0.001`."),
    "diverged": ("bool", "Whether every restart left the finite numbers; measures are NaN then."),
    "restart": ("int", "Index of the restart that the attack's own objective selected."),
    "num_evaluations": ("int", "Number of evaluations of the objective's gradient, the largest over restarts."),
    "num_total": ("int", "Number of entries of the update."),
    "num_selected": ("int", "Number of encrypted entries."),
    "num_visible": ("int", "Number of entries sent in the clear, without those that a protection leaves out."),
    "visible_per_unknown": (
        "float",
        "Number of visible non-zero entries of the first round, divided by the number of input coordinates that the attacker does not know.",
    ),
    "hidden_by_layer": ("JSON", "Share of each layer's entries that are hidden in the first round."),
    "plain_bytes": ("int", "Bytes of the entries sent in the clear."),
    "num_clients": ("int or null", "Number of clients in the measured encryption; this and the following columns of it are null where nothing was encrypted."),
    "num_ciphertexts": ("int or null", "Number of ciphertexts per client."),
    "num_slots": ("int or null", "Number of values that a ciphertext holds."),
    "ciphertext_bytes": ("int or null", "Bytes of ciphertexts per client, serialised."),
    "num_clipped": ("int or null", "Number of values beyond the public bound, over all clients."),
    "index_bytes": ("int", "Bytes of the list of encrypted entries, as sent."),
    "score_seconds": ("float", "Seconds to score one sample, without compilation."),
    "score_standard_error": ("float", "Relative standard error of a metric that estimates squared norms from probes; 0 for one that is exact."),
    "mask_seconds": ("float", "Seconds to rank one sample's entries."),
    "encrypt_seconds": ("float or NaN", "Seconds per client to encrypt."),
    "add_seconds": ("float or NaN", "Seconds to add the ciphertexts of all clients."),
    "decrypt_seconds": ("float or NaN", "Seconds to decrypt the sum."),
    "attack_seconds": ("float", "Seconds of the block without compilation, divided by its number of cells."),
    "attack_report": ("JSON or empty", "Report of an attack on the host: leaves that it used, did not use (with reasons), and used although they are 0."),
    "selgrad_version": ("text", "Version of selgrad that ran the cell."),
    "selgrad_source": ("text", "Hash of selgrad's source files that ran the cell: 12 hexadecimal digits, which change with any edit."),
    "jax_version": ("text", "Version of JAX that ran the cell."),
    "jax_settings": ("text", "JAX's settings that change results and differed from their defaults, such as `jax_enable_x64=True`; empty if none did."),
    "device": ("text", "Kind of accelerator."),
    "run_id": ("text", "Identity of the sweep's folder."),
}
"""Column -> type and meaning, in the order of the records."""

EMPTY: dict[str, str] = {
    "suite": "attacks were chosen one by one",
    "hidden": "the attack has no rungs",
    "embedding": "images",
    "<measure>": "cells of other data; the search diverged",
    "certificate_<field>": "`certificates` is off",
    "objective_at_truth": "the attack has no objective",
    "best_mse": "the data are text, or the attack diverged",
    "misfit": "the attack has no objective",
    "misfit_at_truth": "the attack has no objective",
    **dict.fromkeys(
        ("num_clients", "num_ciphertexts", "num_slots", "ciphertext_bytes", "num_clipped", "encrypt_seconds", "add_seconds", "decrypt_seconds"),
        "nothing was encrypted, or OpenFHE does not load",
    ),
    "attack_report": "the attack reports nothing",
    "jax_settings": "all settings are JAX's defaults",
}
"""Column -> when it is empty (null, NaN or no text); the others never are."""


def unit(name: str, kind: str) -> str:
    """Returns the unit of a column: bytes, s, 1 for another number, or no text."""
    if name.endswith("_bytes") or name.startswith("bytes_"):
        return "bytes"
    return "s" if name.endswith("_seconds") else "1" if kind.startswith(("int", "float")) and name != "<measure>" else ""


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
        "selgrad_source": own_hash(),
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
