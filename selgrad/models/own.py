"""User-defined models: a Flax Linen or NNX module, a pair of plain functions, or anything that honours `selgrad.base.Model`.

Properties of a network are detected where possible (its last dense layer, whether it has batch statistics), and an unusable one gives a one-line reason.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from selgrad import trees
from selgrad.base import InputSpec, Model, TextSpec
from selgrad.callables import is_factory, positional, unusable
from selgrad.errors import SelgradError, UsageError
from selgrad.models.classifier import ImageClassifier, Mode, Statistics
from selgrad.models.networks import FunctionNetwork, LinenNetwork, NNXNetwork
from selgrad.sources import source_hash

_WANTED = "a Flax module, a pair of functions (init, apply), an object that honours selgrad.base.Model, or a function of the input spec that returns one"


def own_model(
    item: Any,
    input_spec: InputSpec | TextSpec,
    *,
    head: str | None = None,
    mode: Mode = "evaluation",
    statistics: Statistics = "kept",
    dropout_seed: int | None = None,
    checkpoint: str | None = None,
) -> Model:
    """Makes a model from a user-defined network.

    Args:
      item: a Flax Linen module; an NNX module, whose weights it starts from; a function of `rngs` that makes one; or a pair (init, apply) of functions, key
        -> parameters and (parameters, inputs) -> logits. The mode is passed as an argument `train`, `training`, `is_training`, `deterministic` or
        `use_running_average`, where its call has one.
      input_spec: of the data set.
      head: path of the last dense layer; by default the last one with as many outputs as there are classes. "" means that there is none.
      mode: "evaluation" normalises by running statistics, "train" by the batch's.
      statistics: in mode "train", how the new running statistics are handled: `kept` by the client, kept but `known` to attackers, `sent`, or sent `encrypted`.
      dropout_seed: in mode "train", seed of stochastic layers.
      checkpoint: weights to start from, which the caller loads (`selgrad.weights.load`).

    Raises:
      UsageError: if it cannot be used, with the reason.
    """
    if isinstance(item, Model) and not isinstance(item, type):
        return item
    if not isinstance(input_spec, InputSpec):
        raise UsageError("model: a module of your own reads images, and the data set holds text; give an object that honours selgrad.base.TextModel")
    network = _network(item, input_spec)
    head_path = _head(_shapes(network, input_spec), head, input_spec.num_classes)
    model = ImageClassifier(network, input_spec, head_path, mode=mode, statistics=statistics, dropout_seed=dropout_seed)
    _check(model, input_spec)
    return model


def _network(item: Any, input_spec: InputSpec) -> Any:
    if isinstance(item, nn.Module):
        return LinenNetwork(item, input_spec.shape)
    if isinstance(item, nnx.Module):
        return NNXNetwork(None, item, source_hash((type(item), nnx.to_pure_dict(nnx.split(item, nnx.Param, ...)[1]))))
    if isinstance(item, tuple) and len(item) == 2 and all(callable(function) for function in item):
        if len(positional(item[0])) != 1 or len(positional(item[1])) != 2:
            raise UsageError("model: a pair of functions is (init, apply): init takes a key, and apply parameters and inputs")
        return FunctionNetwork(*item)
    if callable(item) and "rngs" in inspect.signature(item).parameters:
        return NNXNetwork(item)
    raise unusable("model", item, _WANTED)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[0].split())[:200]}" if lines else type(error).__name__


def _shapes(network: Any, input_spec: InputSpec) -> Any:
    try:
        return jax.eval_shape(lambda key: network.init(key)[0], jax.random.key(0))
    except SelgradError:
        raise
    except Exception as error:  # any error that a user's network raises
        shape = (1, *input_spec.shape)
        raise UsageError(f"model: the network cannot be initialised on inputs of shape {shape} ({_reason(error)})") from None


def _head(shapes: Any, requested: str | None, num_classes: int) -> str:
    leaves = dict(zip(trees.paths(shapes), jax.tree.leaves(shapes), strict=True))
    dense = [path for path, leaf in leaves.items() if leaf.ndim == 2 and path.endswith("/kernel")]
    name = lambda path: path.removesuffix("/kernel")
    if requested is not None:
        if requested and requested not in map(name, dense):
            raise UsageError(f"model: head={requested!r} is not a dense layer; there are {', '.join(map(name, dense)) or 'none'}")
        return requested
    fitting = [path for path in dense if leaves[path].shape[-1] == num_classes]
    # Where several fit, the deepest is the last one in natural order, since leaves are ordered by name.
    return name(sorted(fitting, key=trees.natural)[-1]) if fitting else ""


def _check(model: ImageClassifier, input_spec: InputSpec) -> None:
    """Traces the network once on shapes, so that an unusable one is detected before anything runs."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((2, *input_spec.shape), jnp.float32)
    for path, leaf in zip(trees.paths(params), jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UsageError(f"model: parameter {path!r} is of type {leaf.dtype}; a gradient needs floats")
    try:
        logits = jax.eval_shape(model.logits, params, inputs)
    except SelgradError:
        raise
    except Exception as error:  # any error that a user's network raises
        name = type(error).__name__
        if "Rng" in name or "rng" in str(error)[:200].lower():
            raise UsageError("model: the network has stochastic layers and no key for them; give dropout_seed, or mode 'evaluation'") from None
        if "ModifyScope" in name:
            raise UsageError("model: the network changes its batch statistics in evaluation; let its call take `train`, or choose mode 'train'") from None
        raise UsageError(f"model: the network cannot be applied to float inputs of shape {inputs.shape} ({_reason(error)})") from None
    if logits.shape != (2, input_spec.num_classes):
        wanted = (2, input_spec.num_classes)
        raise UsageError(f"model: the network gives outputs of shape {logits.shape} for 2 inputs; {wanted} is wanted, one score for each class")


def configured(item: Any, **options: Any) -> Callable[..., Model]:
    """Binds a network to options, to be passed as `model`: `selgrad.model(MyNet(), mode="train", head="fc")`.

    Args:
      item: as in `own_model`.
      options: keyword arguments of `own_model`.
    """
    return functools.partial(own_model, item, **options)


@dataclasses.dataclass(frozen=True)
class _Fresh:
    """Makes an NNX module from `rngs`; instances with equal class and arguments are equal."""

    made_from: type
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, *, rngs: Any) -> Any:
        return self.made_from(**dict(self.arguments), rngs=rngs)


def _of_class(item: type) -> Callable[..., Model]:
    """Returns a factory for a class of modules, whose arguments are the class's fields and those of `own_model`."""
    fields: dict[str, inspect.Parameter] = {}
    keyword = inspect.Parameter.KEYWORD_ONLY
    if issubclass(item, nn.Module):
        hints = typing.get_type_hints(item)
        for field in dataclasses.fields(item):
            if field.name not in ("parent", "name"):
                default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
                fields[field.name] = inspect.Parameter(field.name, keyword, default=default, annotation=hints.get(field.name, Any))
    else:
        # The metaclass hides the signature.
        for parameter in list(inspect.signature(item.__init__).parameters.values())[1:]:
            if parameter.name != "rngs":
                fields[parameter.name] = parameter.replace(kind=keyword, annotation=Any if isinstance(parameter.annotation, str) else parameter.annotation)
    if "num_classes" in fields and fields["num_classes"].default is inspect.Parameter.empty:
        fields["num_classes"] = fields["num_classes"].replace(default=None, annotation=int | None)
    mine = {p.name: p for p in inspect.signature(own_model).parameters.values() if p.kind is keyword}
    hints_of_mine = typing.get_type_hints(own_model)

    def make(input_spec: InputSpec | TextSpec, **overrides: Any) -> Model:
        arguments = {name: overrides.get(name, fields[name].default) for name in fields}
        if "num_classes" in arguments and arguments["num_classes"] is None:
            arguments["num_classes"] = input_spec.num_classes
        module = item(**arguments) if issubclass(item, nn.Module) else _Fresh(item, tuple(arguments.items()))
        return own_model(module, input_spec, **{name: overrides[name] for name in mine if name in overrides})

    first = inspect.Parameter("input_spec", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = [p.replace(annotation=hints_of_mine[p.name]) for p in mine.values() if p.name not in fields]
    make.__signature__ = inspect.Signature([first, *fields.values(), *options])  # type: ignore[attr-defined]
    make.__annotations__ = {}
    return make


def adapt(item: Any) -> Callable[..., Any]:
    """Returns a factory of a model from an input spec: a registry's own factory unchanged, or one that wraps the user's object.

    Raises:
      UsageError: if the item is not a model or a factory of one.
    """
    if isinstance(item, type) and issubclass(item, nn.Module | nnx.Module):
        return _of_class(item)
    if isinstance(item, nn.Module | nnx.Module | tuple) or (isinstance(item, Model) and not isinstance(item, type)):
        return functools.partial(own_model, item)
    if callable(item) and "rngs" in inspect.signature(item).parameters:
        return functools.partial(own_model, item)
    if not is_factory(item, 1):
        raise unusable("model", item, _WANTED)
    if (getattr(item, "__module__", "") or "").startswith("selgrad.") or (isinstance(item, functools.partial) and item.func is own_model):
        factory: Callable[..., Any] = item
        return factory

    @functools.wraps(item)
    def make(input_spec: InputSpec | TextSpec, **arguments: Any) -> Model:
        return own_model(item(input_spec, **arguments), input_spec)

    return make
