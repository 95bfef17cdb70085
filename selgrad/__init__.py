"""selgrad: which entries of a client's gradient to encrypt, which attacks that stops, and what it costs.

Importing this package is cheap; JAX is loaded only when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selgrad.base import Attack, GradientContext, InputSpec, Metric, Observation, Reconstruction, Selector, TextSpec
    from selgrad.config import load as load_config
    from selgrad.config import parse as parse_config
    from selgrad.data import from_arrays, from_sentences
    from selgrad.direct import add, attack, decrypt, encrypt, keys, mask, scores
    from selgrad.experiment import run_cell
    from selgrad.federation.run import federate
    from selgrad.gradients import observe
    from selgrad.models import configured as model
    from selgrad.registry import register
    from selgrad.report.page import make_report
    from selgrad.report.tables import read_records
    from selgrad.suites.decide import Question
    from selgrad.suites.recommend import recommend, run_suite
    from selgrad.sweep.runner import run_sweep

_HOMES = {
    "Attack": ("selgrad.base", "Attack"),
    "GradientContext": ("selgrad.base", "GradientContext"),
    "InputSpec": ("selgrad.base", "InputSpec"),
    "Metric": ("selgrad.base", "Metric"),
    "Observation": ("selgrad.base", "Observation"),
    "Question": ("selgrad.suites.decide", "Question"),
    "Reconstruction": ("selgrad.base", "Reconstruction"),
    "Selector": ("selgrad.base", "Selector"),
    "TextSpec": ("selgrad.base", "TextSpec"),
    "add": ("selgrad.direct", "add"),
    "attack": ("selgrad.direct", "attack"),
    "decrypt": ("selgrad.direct", "decrypt"),
    "encrypt": ("selgrad.direct", "encrypt"),
    "federate": ("selgrad.federation.run", "federate"),
    "from_arrays": ("selgrad.data", "from_arrays"),
    "from_sentences": ("selgrad.data", "from_sentences"),
    "keys": ("selgrad.direct", "keys"),
    "load_config": ("selgrad.config", "load"),
    "make_report": ("selgrad.report.page", "make_report"),
    "mask": ("selgrad.direct", "mask"),
    "model": ("selgrad.models", "configured"),
    "observe": ("selgrad.gradients", "observe"),
    "parse_config": ("selgrad.config", "parse"),
    "read_records": ("selgrad.report.tables", "read_records"),
    "recommend": ("selgrad.suites.recommend", "recommend"),
    "register": ("selgrad.registry", "register"),
    "run_cell": ("selgrad.experiment", "run_cell"),
    "run_suite": ("selgrad.suites.recommend", "run_suite"),
    "run_sweep": ("selgrad.sweep.runner", "run_sweep"),
    "scores": ("selgrad.direct", "scores"),
}

__all__ = [
    "Attack",
    "GradientContext",
    "InputSpec",
    "Metric",
    "Observation",
    "Question",
    "Reconstruction",
    "Selector",
    "TextSpec",
    "__version__",
    "add",
    "attack",
    "decrypt",
    "encrypt",
    "federate",
    "from_arrays",
    "from_sentences",
    "keys",
    "load_config",
    "make_report",
    "mask",
    "model",
    "observe",
    "parse_config",
    "read_records",
    "recommend",
    "register",
    "run_cell",
    "run_suite",
    "run_sweep",
    "scores",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selgrad' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
