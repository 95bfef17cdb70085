"""User-defined metrics: a function of the gradient pytree, or of everything that the defender knows.

A metric is a pure function, so its result is checked once, while it is traced, at no cost afterwards.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import GradientContext, Metric, Scores
from selgrad.callables import constant, is_factory, positional, unusable
from selgrad.errors import UsageError


def _reads_context(function: Callable[..., Any]) -> bool:
    """Says whether the function's argument is annotated as a `GradientContext`."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations may name what only a type checker sees
        hints = getattr(function, "__annotations__", {})
    annotation = hints.get(positional(function)[0].name)
    return annotation is GradientContext or (isinstance(annotation, str) and annotation.endswith("GradientContext"))


def checked(scores: Any, grads: Any, name: str) -> Scores:
    """Returns scores in the gradient's dtype, one for each entry of the gradient.

    Raises:
      UsageError: if their tree or shapes differ from the gradient's, or they are complex.
    """
    if str(jax.tree.structure(scores)) != str(jax.tree.structure(grads)):
        raise UsageError(f"metric {name!r} returned another tree than the gradient's; return one array for each leaf, as jax.tree.map does")
    for path, score, leaf in zip(trees.paths(grads), jax.tree.leaves(scores), jax.tree.leaves(grads), strict=True):
        if jnp.shape(score) != jnp.shape(leaf):
            raise UsageError(f"metric {name!r}: leaf {path!r} has scores of shape {jnp.shape(score)} and the gradient {jnp.shape(leaf)}; score every entry")
        if jnp.issubdtype(jnp.result_type(score), jnp.complexfloating):
            raise UsageError(f"metric {name!r}: leaf {path!r} has complex scores; return real numbers")
    return jax.tree.map(lambda score, leaf: jnp.asarray(score, jax.dtypes.canonicalize_dtype(leaf.dtype)), scores, grads)


def as_metric(function: Any) -> Metric:
    """Makes a metric from a function of a gradient pytree, or of a `GradientContext` where its argument is annotated as one."""
    if isinstance(function, Metric):
        return function
    name = getattr(function, "__name__", type(function).__name__)
    if not callable(function) or len(positional(function)) != 1:
        raise unusable("metric", function, "a function of the gradient pytree that returns one score for each entry")
    if _reads_context(function):
        # Whether the function draws from the key cannot be seen from outside.
        return Metric(lambda context: checked(function(context), context.grads, name), draws=True)
    return Metric(lambda context: checked(function(context.grads), context.grads, name))


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of a metric: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not a metric or a factory of one.
    """
    if isinstance(item, Metric) or (callable(item) and not inspect.isclass(item) and not is_factory(item)):
        return constant(as_metric(item))
    if not callable(item):
        raise unusable("metric", item, "a function of the gradient pytree that returns one score for each entry")

    @functools.wraps(item)
    def make(*args: Any, **kwargs: Any) -> Metric:
        return as_metric(item(*args, **kwargs))

    return make
