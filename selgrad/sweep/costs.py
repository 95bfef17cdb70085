"""The cost of encrypting each selection of a sweep, measured once for every setting, metric, selector and ratio, and joined to the records.

Each client encrypts its own update under the first sample's mask, the server adds, and the decrypted integers are compared with the plain sum.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from selgrad import encryption
from selgrad.config import EncryptionConfig, SweepConfig
from selgrad.experiment import Lane, SchemeCache, Setting, encryption_cost

Costs = dict[tuple[int, str, str, float], encryption.Cost]
"""(setting, metric, selector, ratio) -> cost."""


def measure_costs(
    config: SweepConfig, options: EncryptionConfig, settings: Iterable[tuple[int, Setting]], saved: dict[str, Any], on_event: Callable[[str], None]
) -> Costs:
    """Proves the round trip on real selected entries of every metric, selector and ratio, and measures its cost.

    Args:
      config: the axes.
      options: options of the encryption.
      settings: each setting with its index.
      saved: earlier measurements, by name; new ones are added.
      on_event: called with a line before each measurement.
    """
    schemes, result, seed = SchemeCache(options), {}, config.seeds[0]
    for index, setting in settings:
        for metric, selector, ratio in itertools.product(config.metric, config.selector, config.ratio):
            name = json.dumps([index, metric.label, selector.label, ratio])
            if name not in saved:
                on_event(f"encrypting {ratio:.1%} of {setting.specs[1].label} by {metric.label}")
                saved[name] = dataclasses.asdict(encryption_cost(setting, Lane(seed, 0, metric, selector, ratio), schemes))
            result[index, metric.label, selector.label, ratio] = encryption.Cost(**saved[name])
    return result
