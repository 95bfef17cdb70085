"""Tells a factory from the object that it would make, by signature, for objects that users bring to the registries.

A factory takes its arguments by keyword only, as every registry entry does; a metric, a selector or a model's function takes something by position.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from selgrad.errors import UsageError

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def positional(item: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that a callable takes by position and that have no default.

    Raises:
      UsageError: if Python cannot determine its signature.
    """
    try:
        parameters = inspect.signature(item).parameters.values()
    except (TypeError, ValueError):
        raise UsageError(f"{item!r} has no signature; wrap it in a function with named arguments") from None
    return [p for p in parameters if p.kind in _BY_POSITION and p.default is inspect.Parameter.empty]


def is_factory(item: Any, num_positional: int = 0) -> bool:
    """Whether a callable takes exactly `num_positional` arguments by position and all others by keyword."""
    return callable(item) and len(positional(item)) == num_positional


def constant(value: Any) -> Callable[[], Any]:
    """A factory that always returns one given object."""

    def make() -> Any:
        return value

    return make


def unusable(kind: str, item: Any, wanted: str) -> UsageError:
    """An error that says what an object is and what is wanted in its place."""
    sort = "class" if isinstance(item, type) else "function" if inspect.isroutine(item) else type(item).__name__
    described = f"the {sort} {getattr(item, '__name__', '')}".strip()
    return UsageError(f"{kind}: {described} cannot be used; give {wanted}")
