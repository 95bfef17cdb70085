"""User-defined selectors: a function from scores to ranks.

Ranks are a permutation of 0 .. n-1 over the whole tree; the mask at k encrypted entries is `rank < k`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from selgrad.base import Selector
from selgrad.callables import constant, is_factory, positional, unusable

_WANTED = "a function from a pytree of scores to a pytree of int32 ranks"


def as_selector(function: Any) -> Selector:
    """Makes a selector from a function of one tree of scores.

    Raises:
      UsageError: if the argument is not such a function.
    """
    if isinstance(function, Selector):
        return function
    if not callable(function) or len(positional(function)) != 1:
        raise unusable("selector", function, _WANTED)
    return Selector(function)


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of a selector: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not a selector or a factory of one.
    """
    if isinstance(item, Selector) or (callable(item) and not inspect.isclass(item) and not is_factory(item)):
        return constant(as_selector(item))
    if not callable(item):
        raise unusable("selector", item, _WANTED)

    @functools.wraps(item)
    def make(*args: Any, **kwargs: Any) -> Selector:
        return as_selector(item(*args, **kwargs))

    return make
