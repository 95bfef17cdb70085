"""Protections that a client applies to its update instead of encryption: the baselines, one file each.

`PROTECTIONS` maps a name to a factory; the protection that it returns is public, and an attacker simulates as much of it as can be simulated.
"""

from collections.abc import Callable
from typing import Any

from selgrad.base import Protection
from selgrad.callables import constant, is_factory, unusable
from selgrad.protections.dp_gaussian import dp_gaussian
from selgrad.protections.nothing import none
from selgrad.protections.protected import Protected
from selgrad.protections.pruning import pruning
from selgrad.protections.quantised import quantised

__all__ = ["PROTECTIONS", "Protected", "adapt"]

PROTECTIONS = {"none": none, "pruning": pruning, "dp_gaussian": dp_gaussian, "quantised": quantised}


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of a protection: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not a protection or a factory of one.
    """
    if isinstance(item, Protection) and not isinstance(item, type):
        return constant(item)
    if is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("protection", item, "an object that honours selgrad.base.Protection, or a function of keyword arguments that returns one")
