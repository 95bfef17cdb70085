"""Images and text: the one place where they part. Everything else asks the modality of its data set.

A modality knows how to measure, decode and keep what an attack found, what success means by default, and what an attacker knows of the inputs beforehand.
"""

from __future__ import annotations

from selgrad.base import InputSpec, TextSpec
from selgrad.modality.images import Images
from selgrad.modality.protocol import LaneResult, Modality, Outcome
from selgrad.modality.text import Text

__all__ = ["LaneResult", "Modality", "Outcome", "modality_of"]


def modality_of(spec: InputSpec | TextSpec) -> Modality:
    """The modality of a data set or a model with this spec."""
    return Text(spec) if isinstance(spec, TextSpec) else Images(spec)
