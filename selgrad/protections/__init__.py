"""What a client does to its update in the place of encryption: the baselines, one file each.

`PROTECTIONS` maps a name to a factory; what it returns is public, and an attacker simulates as much of it as can be simulated.
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
    """A factory of a protection: a registry's own as it is, and one for what somebody brings.

    Raises:
      UsageError: if it is none.
    """
    if isinstance(item, Protection) and not isinstance(item, type):
        return constant(item)
    if is_factory(item):
        factory: Callable[..., Any] = item
        return factory
    raise unusable("protection", item, "an object that honours selgrad.base.Protection, or a function of keyword arguments that returns one")
