"""What an attacker is told besides what it sees: labels, padding, and how the client chose.

One object holds the threat model of a run (docs/threat_model.md), so that every engine asks the same one.
"""

from __future__ import annotations

import dataclasses

from selgrad.base import Attack, Evidence, Metric, Selector
from selgrad.errors import UsageError
from selgrad.experiment.setting import Setting
from selgrad.registry import Spec


@dataclasses.dataclass(frozen=True)
class Threat:
    """What an attacker is told.

    Attributes:
      known_labels: whether it is told the labels.
      known_padding: whether it is told which positions of a text are padding.
    """

    known_labels: bool = False
    known_padding: bool = True


TOLD_PADDING = Threat()
"""What attackers are told by default: which positions of a text are padding."""


def evidence_for(attack: Attack, setting: Setting, metric: Spec, selector: Spec) -> Evidence | None:
    """Returns the client's metric, where an attack reads masks as evidence.

    Raises:
      UsageError: if the masks do not follow from the largest scores alone, or attackers know more than what is sent.
    """
    if not attack.evidence:
        return None
    if setting.discloses:
        raise UsageError(f"hidden={attack.rung!r} reads masks of all that is matched, and statistics='known' adds to it what was never sent; take another rung")
    if setting.leaves_out:
        raise UsageError(
            f"hidden={attack.rung!r} reads masks of the largest scores, and {setting.protection_spec.label} hides further entries; take another rung"
        )
    chosen: Selector = selector.build()
    if chosen.top_of is None:
        raise UsageError(
            f"hidden={attack.rung!r} needs a mask of the largest scores, and selector {selector.label!r} chooses by more; use global_top or per_leaf_top"
        )
    scored: Metric = metric.build()
    return Evidence(scored, chosen.top_of == "leaf")
