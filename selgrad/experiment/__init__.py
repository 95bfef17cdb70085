"""Composes the component packages (docs/design.md): from a data set, a model and an update to a compiled block of attack cells.

`run_cell` runs one cell; `selgrad.sweep` runs many with the same parts.
"""

from selgrad.experiment.assemble import assemble, num_updates, shapes
from selgrad.experiment.cell import bind, make_engine, run_cell, run_lanes
from selgrad.experiment.certify import Certifier
from selgrad.experiment.costs import SchemeCache, encryption_cost
from selgrad.experiment.exposed import Exposed
from selgrad.experiment.results import SuccessRule, decode_lane
from selgrad.experiment.setting import Setting
from selgrad.experiment.threat import Threat
from selgrad.experiment.types import CellResult, Lane, Lanes

__all__ = [
    "CellResult",
    "Certifier",
    "Exposed",
    "Lane",
    "Lanes",
    "SchemeCache",
    "Setting",
    "SuccessRule",
    "Threat",
    "assemble",
    "bind",
    "decode_lane",
    "encryption_cost",
    "make_engine",
    "num_updates",
    "run_cell",
    "run_lanes",
    "shapes",
]
