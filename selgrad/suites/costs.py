"""What a recommendation and its alternatives cost, measured with real CKKS on the selections of real updates.

The round trip of every measurement is proven exact (`selgrad.experiment.encryption_cost`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from selgrad import encryption
from selgrad.config import EncryptionConfig
from selgrad.errors import UsageError
from selgrad.experiment import Lane, SchemeCache, Setting, encryption_cost
from selgrad.suites.decide import Answer
from selgrad.suites.search import Arm, Search
from selgrad.sweep.run import OnEvent

ADAPTER_RANK = 8
"""Rank of the adapters that are priced as an alternative to a transformer whose clients send all weights."""


class Alternative(NamedTuple):
    """An alternative to encrypting a part.

    Attributes:
      name: what is done instead.
      num_entries: number of encrypted entries.
      bytes: size of a client's ciphertexts.
      seconds: time to encrypt them.
      about: what else it changes.
    """

    name: str
    num_entries: int
    bytes: int
    seconds: float
    about: str


def costs_of(search: Search, answers: Mapping[str, Answer], options: EncryptionConfig | None, on_event: OnEvent) -> tuple[pd.DataFrame, list[Alternative], str]:
    """Returns one row per arm, the cheapest that protects first; alternatives, including other profiles for that arm; and why there are no costs, if so."""
    note = "encryption is off" if options is None else encryption.unavailable() or ""
    schemes = None if note or options is None else SchemeCache(options)
    setting, seed = search.settings[0], search.config.seeds[0]
    rows = []
    for arm in search.arms:
        answer = answers[arm.label]
        protects = answer.verdict in ("protected", "encrypt everything")
        row = {"metric": arm.label, **dataclasses.asdict(answer), "protects": protects, "bytes": math.nan, "seconds": math.nan}
        if schemes is not None and not math.isnan(answer.ratio):
            on_event(f"encrypting {answer.ratio:.1%} by {arm.label}")
            lane = Lane(seed, 0, arm.metric, arm.selector, answer.ratio)
            paid = encryption_cost(setting, lane, schemes)
            row |= {"bytes": float(paid.ciphertext_bytes + _index_bytes(setting, lane)), "seconds": paid.encrypt_seconds}
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(["protects", "bytes", "ratio"], ascending=[False, True, True], kind="stable")
    sorted_table = table.reset_index(drop=True)
    if schemes is None:
        return sorted_table, [], note
    on_event("encrypting everything")
    instead = _alternatives(setting, search.arms[0], seed, schemes)
    best = search.arms[table.index[0]]
    if options is not None and sorted_table["protects"][0]:
        instead += _profiles(setting, Lane(seed, 0, best.metric, best.selector, float(sorted_table["ratio"][0])), options, on_event)
    return sorted_table, instead, note


def _index_bytes(setting: Setting, lane: Lane) -> int:
    """Returns the size of the list that says which entries are encrypted; where all are, none is needed."""
    if lane.ratio == 1:
        return 0
    return len(encryption.encode_indices(np.unpackbits(setting.chosen(lane).bits, count=setting.num_total).view(bool)))


def _profiles(setting: Setting, lane: Lane, options: EncryptionConfig, on_event: OnEvent) -> list[Alternative]:
    """Prices the same selection under other profiles that hold as many clients, except the textbook's, whose parameters are for comparison alone."""
    alternatives, index = [], _index_bytes(setting, lane)
    for profile in encryption.PROFILES.values():
        if profile.name in (options.profile, "textbook"):
            continue
        try:
            other = EncryptionConfig.parse({**options.model_dump(), "profile": profile.name})
        except UsageError:
            continue
        assert other is not None
        on_event(f"encrypting {lane.ratio:.1%} with profile {profile.name}")
        paid = encryption_cost(setting, lane, SchemeCache(other))
        size = paid.ciphertext_bytes + index
        alternatives.append(Alternative(f"profile {profile.name}", setting.num_selected(lane.ratio), size, paid.encrypt_seconds, profile.about.rstrip(".")))
    return alternatives


def _alternatives(setting: Setting, arm: Arm, seed: int, schemes: SchemeCache) -> list[Alternative]:
    everything = lambda priced: encryption_cost(priced, Lane(seed, 0, arm.metric, arm.selector, 1.0), schemes)
    paid = everything(setting)
    alternatives = [
        Alternative(
            "everything encrypted", setting.num_total, paid.ciphertext_bytes, paid.encrypt_seconds, "nothing is left to attack but the sum of the clients"
        )
    ]
    dataset, model, update = setting.specs
    if model.get("lora_rank") == 0:
        smaller = Setting(dataset, model.changed(lora_rank=ADAPTER_RANK), update, [0])
        paid = everything(smaller)
        about = f"clients train adapters of rank {ADAPTER_RANK} and send nothing else; another training, whose accuracy is to be measured"
        alternatives.append(Alternative("adapters, all encrypted", smaller.num_total, paid.ciphertext_bytes, paid.encrypt_seconds, about))
    return alternatives
