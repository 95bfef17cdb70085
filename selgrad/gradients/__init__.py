"""The client's update, and the part of it that is exposed.

`UPDATES` maps a name to a factory; an update is a pure function of model, parameters and batch that the attacker also simulates.
"""

from collections.abc import Callable
from typing import Any

from selgrad.base import Update
from selgrad.callables import constant, is_factory, unusable
from selgrad.gradients.exposure import attacked, disclose, observe
from selgrad.gradients.fedavg import fedavg
from selgrad.gradients.gradient import gradient

__all__ = ["UPDATES", "adapt", "attacked", "disclose", "observe"]

UPDATES = {"gradient": gradient, "fedavg": fedavg}


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of an update: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not an update or a factory of one.
    """
    if isinstance(item, Update) and not isinstance(item, type):
        return constant(item)
    if is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("update", item, "an object that honours selgrad.base.Update, or a function of keyword arguments that returns one")
