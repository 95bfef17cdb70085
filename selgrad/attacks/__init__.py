"""Gradient inversion attacks, one file each, assembled from shared parts.

An attack sees an `Observation` and nothing else: this package imports neither data nor encryption, which a test checks.
"""

from collections.abc import Callable
from typing import Any

from selgrad.attacks.april import april
from selgrad.attacks.bayesian import bayesian
from selgrad.attacks.candidates import candidates
from selgrad.attacks.dager import dager
from selgrad.attacks.dlg import dlg
from selgrad.attacks.dlg_text import dlg_text
from selgrad.attacks.gauss_newton import gauss_newton
from selgrad.attacks.idlg import idlg
from selgrad.attacks.inverting_gradients import inverting_gradients
from selgrad.attacks.lamp import lamp
from selgrad.attacks.learned import learned
from selgrad.attacks.rank_one import rank_one
from selgrad.attacks.silhouette import silhouette
from selgrad.attacks.surrogate import surrogate
from selgrad.attacks.tag import tag
from selgrad.base import Attack
from selgrad.callables import constant, is_factory, unusable

ATTACKS = {
    "dlg": dlg,
    "idlg": idlg,
    "inverting_gradients": inverting_gradients,
    "surrogate": surrogate,
    "bayesian": bayesian,
    "gauss_newton": gauss_newton,
    "dlg_text": dlg_text,
    "tag": tag,
    "lamp": lamp,
    "dager": dager,
    "rank_one": rank_one,
    "silhouette": silhouette,
    "april": april,
    "learned": learned,
    "candidates": candidates,
}


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of an attack: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not an attack or a factory of one.
    """
    if isinstance(item, Attack) and not isinstance(item, type):
        return constant(item)
    if is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("attack", item, "an Attack, or a function of keyword arguments that returns one")
