"""Registries: the components of an experiment by name or as objects, whether they come with selgrad or from you.

A factory's keyword-only arguments are its configuration, so this module hard-codes no metric, attack or data set. A name refers to a registry, to an entry
point of an installed package, or to a place: `package.module:attribute` or `file.py:attribute`. Objects are used as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from selgrad.errors import UsageError, did_you_mean
from selgrad.sources import source_hash

REGISTRIES = {
    "dataset": ("selgrad.data", "DATASETS"),
    "model": ("selgrad.models", "MODELS"),
    "update": ("selgrad.gradients", "UPDATES"),
    "metric": ("selgrad.significance", "METRICS"),
    "selector": ("selgrad.masks", "SELECTORS"),
    "attack": ("selgrad.attacks", "ATTACKS"),
    "protection": ("selgrad.protections", "PROTECTIONS"),
    "engine": ("selgrad.sweep.executors", "ENGINES"),
}
"""Kind -> module and name of its registry, which is a plain dict of factories."""

_ENTRY_POINTS = {kind: f"selgrad.{kind}s" for kind in REGISTRIES}
_WEIGHTS = {
    # Every model can start from stored weights instead of fresh ones.
    "checkpoint": inspect.Parameter("checkpoint", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None),
    "checkpoint_names": inspect.Parameter("checkpoint_names", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Sequence[str] | None),
}
WEIGHTS_ABOUT = {
    "checkpoint": "trained weights, Orbax, safetensors or msgpack, whose leaves are found by name; none starts from fresh ones.",
    "checkpoint_names": "`ours=theirs` for leaves that are named otherwise there.",
}
"""The descriptions that `selgrad list` shows for these arguments, since no factory takes them."""
_LATER = ("checkpoint_names",)
"""Arguments that were added later: unless they are given, specs, and so the identities of older sweeps, stay the same."""
_PLACES = ("path", "count", "offset", "split")
"""Arguments that say where data are stored or which part is used, not what the data are; labels omit them."""

MOST = 10_000
"""The largest number of specs of one entry."""

_T = TypeVar("_T", bound=Callable[..., Any])


def registry(kind: str) -> dict[str, Callable[..., Any]]:
    """The registry of a kind, imported on first use."""
    module, name = REGISTRIES[kind]
    result: dict[str, Callable[..., Any]] = getattr(importlib.import_module(module), name)
    return result


def register(kind: str, name: str | None = None) -> Callable[[_T], _T]:
    """Returns a decorator that registers a factory, or your own function or class, under a name of a kind.

    Args:
      kind: a key of `REGISTRIES`.
      name: to register under; the object's `__name__` by default.

    Raises:
      UsageError: for an unknown kind, a name that is not an identifier, or one that is already taken.

    >>> import jax.numpy as jnp, jax
    >>> @register("metric", "smallest_first")
    ... def smallest_first(grads):
    ...     return jax.tree.map(lambda g: -jnp.abs(g), grads)
    >>> make_spec("metric", "smallest_first").label
    'smallest_first'
    """
    if kind not in REGISTRIES:
        raise UsageError(f"register: unknown kind {kind!r}; {did_you_mean(kind, REGISTRIES)}")

    def enter(item: _T) -> _T:
        called = name if name is not None else str(getattr(item, "__name__", ""))
        if not called.isidentifier():
            raise UsageError(f"register: {called!r} is not a name for a {kind}; give letters, digits and underscores")
        known = registry(kind)
        if called in known and known[called] is not item and source_hash(known[called]) != source_hash(item):
            raise UsageError(f"register: there is a {kind} {called!r} already; choose another name")
        known[called] = item
        return item

    return enter


def _is_place(name: str) -> bool:
    """Whether a name is a place: `package.module:attribute` or `file.py:attribute`."""
    return ":" in name


@functools.lru_cache(maxsize=64)
def _load_file(path: str, stamp: tuple[int, int]) -> types.ModuleType:
    name = f"selgrad_file_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def _import_place(kind: str, name: str) -> Any:
    """Imports the object at `package.module:attribute` or `file.py:attribute`.

    Raises:
      UsageError: if it cannot be imported or has no such attribute.
    """
    where, _, attribute = name.rpartition(":")
    try:
        if where.endswith(".py"):
            file = Path(where).expanduser().resolve()
            if not file.is_file():
                raise UsageError(f"{kind} {name!r}: there is no file {where!r}; give a path from the current folder")
            module = _load_file(str(file), (file.stat().st_mtime_ns, file.stat().st_size))
        else:
            module = importlib.import_module(where)
    except UsageError:
        raise
    except Exception as error:  # a user's module may raise anything while it is imported
        raise UsageError(f"{kind} {name!r}: {where!r} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [member for member in vars(module) if not member.startswith("_")]
            raise UsageError(f"{kind} {name!r}: {where!r} has no {attribute!r}; {did_you_mean(attribute, public)}")
        target = getattr(target, part)
    return target


@functools.lru_cache(maxsize=1)
def installed() -> dict[tuple[str, str], Any]:
    """Entry points of installed packages by kind and name, without loading them."""
    groups = {group: kind for kind, group in _ENTRY_POINTS.items()}
    points: dict[tuple[str, str], Any] = {}
    for group, kind in groups.items():
        for point in importlib.metadata.entry_points(group=group):
            points[kind, point.name] = point
    return points


def names(kind: str) -> list[str]:
    """Every name of a kind, including those of installed packages."""
    return [*registry(kind), *(name for point_kind, name in installed() if point_kind == kind and name not in registry(kind))]


def _find(kind: str, name: str) -> tuple[Any, str]:
    """The object that a name refers to, and the hash of its source unless it comes with selgrad.

    Raises:
      UsageError: if nothing has that name.
    """
    known = registry(kind)
    if name in known:
        item = known[name]
        return item, "" if _is_ours(item) else source_hash(item)
    if _is_place(name):
        item = _import_place(kind, name)
        return item, source_hash(item)
    point = installed().get((kind, name))
    if point is None:
        raise UsageError(f"unknown {kind} {name!r}; {did_you_mean(str(name), names(kind))}; your own is file.py:attribute or package.module:attribute")
    try:
        item = point.load()
    except Exception as error:  # a user's package may raise anything while it is imported
        raise UsageError(f"{kind} {name!r} of an installed package cannot be imported ({type(error).__name__}: {error})") from None
    return item, source_hash(item)


def _is_ours(item: Any) -> bool:
    return (getattr(item, "__module__", None) or "").split(".")[0] == "selgrad"


def _adapt(kind: str, item: Any) -> Callable[..., Any]:
    """Makes a factory from an object, with the `adapt` function of the package for its kind.

    Raises:
      UsageError: if that package cannot use the object.
    """
    adapted: Callable[..., Any] = importlib.import_module(REGISTRIES[kind][0]).adapt(item)
    return adapted


@dataclasses.dataclass(frozen=True)
class Spec:
    """One component of an experiment with all its arguments, defaults filled in; it is hashed by value.

    Attributes:
      kind: of the registry, such as "metric".
      name: in the registry, a place, or the name of an object.
      arguments: sorted (name, value) pairs; sequences are tuples. For components that do not come with selgrad they include the hash of the source, so that
        changed code makes a different sweep.
      given: names of the arguments that differ from their defaults, which labels show.
      target: the object, if the component was given as one.
    """

    kind: str
    name: str
    arguments: tuple[tuple[str, Any], ...]
    given: tuple[str, ...] = ()
    target: Any = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, kind: str, given: Any) -> Spec:
        """Makes a spec from a name, a mapping of `name` and arguments, a spec, or your own object.

        Raises:
          UsageError: for an unknown name or argument, or an object that cannot be used.
        """
        if isinstance(given, Spec):
            return given
        if isinstance(given, str):
            return make_spec(kind, given)
        if isinstance(given, Mapping) and isinstance(given.get("name"), str):
            return make_spec(kind, given["name"], {k: v for k, v in given.items() if k != "name"})
        if given is None:
            raise UsageError(f"{kind} is missing; give a name ({', '.join(names(kind))}), a mapping with a name, or an object of your own")
        keywords = _keywords(_adapt(kind, given))
        required = [p.name for p in keywords.values() if p.default is inspect.Parameter.empty]
        if required:
            raise UsageError(f"{kind}: {_name_of(given)} needs {', '.join(required)}; give them with functools.partial")
        # Arguments set on the object are recorded like those of a name; values that are not plain only enter the hash.
        plain = {p.name: p.default for p in keywords.values() if isinstance(p.default, str | int | float | type(None)) and p.name not in _LATER}
        chosen = given.keywords if isinstance(given, functools.partial) else {}
        arguments = tuple(sorted({**plain, "source": source_hash(given)}.items()))
        return cls(kind, _name_of(given), arguments, tuple(name for name in chosen if name in plain and name not in _PLACES), target=given)

    @property
    def short(self) -> str:
        """The name without its module or file."""
        return self.name.rpartition(":")[2]

    @property
    def label(self) -> str:
        """The name with its non-default arguments, such as `sensitivity(target=inputs)`."""
        shown = [f"{k}={v}" for k, v in self.arguments if k in self.given]
        return f"{self.short}({', '.join(shown)})" if shown else self.short

    @property
    def arguments_json(self) -> str:
        """All arguments as a JSON object with sorted keys."""
        return json.dumps(dict(self.arguments), sort_keys=True)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of one argument."""
        return dict(self.arguments).get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """The spec as a configuration writes it: a mapping of `name` and arguments."""
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in self.arguments}}

    def changed(self, **arguments: Any) -> Spec:
        """The same spec with new values for existing arguments."""
        return dataclasses.replace(self, arguments=tuple((k, arguments.get(k, v)) for k, v in self.arguments))

    def build(self, *positional: Any) -> Any:
        """Calls the factory and returns the component."""
        apart = ("source", *(_WEIGHTS if self.kind == "model" else ()))
        arguments = {k: v for k, v in self.arguments if k not in apart}
        item = self.target if self.target is not None else _find(self.kind, self.name)[0]
        return _adapt(self.kind, item)(*positional, **arguments)


def _name_of(item: Any) -> str:
    if isinstance(item, functools.partial):
        # A configured network is named after the network.
        return _name_of(item.args[0] if item.args else item.func)
    if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
        return "_and_".join(dict.fromkeys(_name_of(part) for part in item[:2]))
    name = getattr(item, "__name__", None) or type(item).__name__
    return "lambda" if name == "<lambda>" else str(name)


def _keywords(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a factory, with annotations resolved."""
    target = factory.func if isinstance(factory, functools.partial) else factory
    try:
        hints = typing.get_type_hints(target)
    except Exception:  # annotations may refer to names that exist only for type checkers
        hints = {}
    signature_parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in signature_parameters if p.kind is p.KEYWORD_ONLY}


def lookup(kind: str, name: str) -> Any:
    """The object behind a name, a place or an entry point.

    Raises:
      UsageError: if nothing has that name, or it cannot be imported.
    """
    return _find(kind, name)[0]


def parameters(kind: str, name: str) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of the factory with this name, with annotations resolved."""
    return {**_keywords(_adapt(kind, _find(kind, name)[0])), **(_WEIGHTS if kind == "model" else {})}


def _is_sequence(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_is_sequence(a) for a in typing.get_args(annotation))
    origin = typing.get_origin(annotation)
    return origin is not None and isinstance(origin, type) and issubclass(origin, Sequence)


def _is_mapping(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_is_mapping(a) for a in typing.get_args(annotation))
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a configuration value has an annotated type."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return True
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        return any(fits(value, a) for a in inner)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None or annotation is type(None):
        return value is None
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(fits(v, inner[0]) for v in value)
    return isinstance(annotation, type) and isinstance(value, annotation)


def describe(annotation: Any) -> str:
    """Describes a type for messages: the choices of a Literal, `number`, `int`, `text`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        # Types that only Python code can supply, such as a loaded model, are left out of a configuration's help.
        written = [a for a in inner if a is not type(None) and not getattr(a, "_is_protocol", False)]
        return " | ".join(map(describe, written)) + (" | none" if type(None) in inner else "")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {describe(inner[0])}"
    return {float: "number", int: "int", str: "text", bool: "true | false", Any: "anything"}.get(annotation, str(getattr(annotation, "__name__", annotation)))


_POSITIVE = ("width", "patch", "mlp_ratio", "num_heads", "num_layers", "num_starts")
"""Arguments of selgrad's components of which there is at least one."""


def _require_numbers(kind: str, name: str, key: str, value: Any) -> None:
    """Raises UsageError for a number that no component of selgrad takes: one that is negative, infinite, or a count beyond 32 bits."""
    if key in _POSITIVE and value == 0:
        raise UsageError(f"{kind} {name!r}: {key}=0 must be at least 1")
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool) and not 0 <= number < (2**31 if isinstance(number, int) else math.inf):
            raise UsageError(f"{kind} {name!r}: {key}={number} is out of range; give a finite number of at least 0, and an integer below 2**31")


def wanted(annotation: Any) -> str:
    """Describes a type within a sentence that says what a value is not, such as `an integer or none`."""
    words = {"number": "a number", "int": "an integer", "none": "none"}
    *others, last = [words.get(part, part) for part in describe(annotation).split(" | ")]
    return f"{', '.join(others)} or {last}" if others else last


def make_spec(kind: str, name: str, arguments: Mapping[str, Any] | None = None) -> Spec:
    """Validates one name and its arguments against the registry.

    Raises:
      UsageError: for an unknown name or argument, a missing argument, a value of the wrong type, or source that has changed since its hash was recorded.
    """
    _, source = _find(kind, name)
    values: dict[str, Any] = {}
    allowed, requested = parameters(kind, name), dict(arguments or {})
    if source:
        pinned = requested.pop("source", source)
        if pinned != source:
            raise UsageError(f"{kind} {name!r} has changed: its source is {source} and the configuration names {pinned}; take out `source` or go back")
        values["source"] = source
    for key, value in requested.items():
        if key not in allowed:
            raise UsageError(f"{kind} {name!r} takes no argument {key!r}; {did_you_mean(str(key), allowed)}")
        annotation = allowed[key].annotation
        if not fits(value, annotation):
            hint = ""
            if typing.get_origin(annotation) is Literal and isinstance(value, str):
                hint = f"; {did_you_mean(value, map(str, typing.get_args(annotation)))}"
            raise UsageError(f"{kind} {name!r}: {key}={value!r} is not {wanted(annotation)}{hint}")
        if not source:
            _require_numbers(kind, name, key, value)
        values[key] = tuple(value) if isinstance(value, list) else value
    for key, parameter in allowed.items():
        if key not in values:
            if parameter.default is inspect.Parameter.empty:
                raise UsageError(f"{kind} {name!r} needs {key} ({describe(parameter.annotation)})")
            if key not in _LATER:
                values[key] = parameter.default
    # In the factory's order, regardless of the order in a file, so that equal requests have equal labels and blocks.
    given = tuple(k for k, parameter in allowed.items() if k in values and values[k] != parameter.default and k not in _PLACES)
    return Spec(kind, name, tuple(sorted(values.items())), given)


def expand(kind: str, entry: Any) -> list[Spec]:
    """Expands one entry of a configuration to its specs: a name, a mapping with `name`, an object, or a list of these; lists in a mapping are axes.

    >>> [s.label for s in expand("metric", ["random", {"name": "sensitivity", "target": ["labels", "inputs"]}])]
    ['random', 'sensitivity(target=labels)', 'sensitivity(target=inputs)']
    """
    if isinstance(entry, list):
        if not entry:
            raise UsageError(f"{kind} is an empty list; name at least one, known: {', '.join(sorted(names(kind)))}")
        return [spec for element in entry for spec in expand(kind, element)]
    if isinstance(entry, tuple) and all(isinstance(element, Spec | str) for element in entry):
        return [spec for element in entry for spec in expand(kind, element)]
    if isinstance(entry, Mapping) and not isinstance(entry.get("name"), str):
        raise UsageError(f"{kind}: {entry!r} is neither a name nor a mapping with a name; known: {', '.join(sorted(names(kind)))}")
    if isinstance(entry, bool | int | float):
        raise UsageError(f"{kind}: {entry!r} is neither a name nor a mapping with a name; known: {', '.join(sorted(names(kind)))}")
    if not isinstance(entry, Mapping):
        return [Spec.of(kind, entry)]
    name, rest = entry["name"], {k: v for k, v in entry.items() if k != "name"}
    allowed = parameters(kind, name)

    def values(key: str, value: Any) -> Sequence[Any]:
        sequence = key in allowed and _is_sequence(allowed[key].annotation)
        if isinstance(value, list) and not (sequence and not any(isinstance(v, list) for v in value)):
            return value
        return [value]

    axes = [[(key, v) for v in values(key, value)] for key, value in rest.items()]
    if math.prod(map(len, axes)) > MOST:
        raise UsageError(f"{kind} {name!r}: its lists make {math.prod(map(len, axes)):,} combinations, and the limit is {MOST:,}; give fewer values")
    return [make_spec(kind, name, dict(combination)) for combination in itertools.product(*axes)]


def one(kind: str, entry: Any) -> Spec:
    """The only spec of an entry.

    Raises:
      UsageError: if the entry describes several.
    """
    specs = expand(kind, entry)
    if len(specs) != 1:
        raise UsageError(f"{kind}: {len(specs)} are given ({', '.join(s.label for s in specs)}), and only one is allowed here")
    return specs[0]
