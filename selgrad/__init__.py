"""selgrad: which entries of a client's gradient to encrypt, which attacks that stops, and what it costs.

Importing this package is light; JAX is loaded when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selgrad.config import load as load_config
    from selgrad.config import parse as parse_config
    from selgrad.experiment import run_cell
    from selgrad.federation.run import federate
    from selgrad.report.page import make_report
    from selgrad.report.tables import read_records
    from selgrad.runner import run_sweep

__all__ = ["__version__", "federate", "load_config", "make_report", "parse_config", "read_records", "run_cell", "run_sweep"]

_HOMES = {
    "load_config": ("selgrad.config", "load"),
    "parse_config": ("selgrad.config", "parse"),
    "federate": ("selgrad.federation.run", "federate"),
    "run_cell": ("selgrad.experiment", "run_cell"),
    "run_sweep": ("selgrad.runner", "run_sweep"),
    "read_records": ("selgrad.report.tables", "read_records"),
    "make_report": ("selgrad.report.page", "make_report"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selgrad' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
