"""Configurations: names of registries, factory arguments, lists as axes; read from YAML or Python and validated strictly.

A factory's keyword-only arguments are its configuration, so this module knows no metric, attack or data set by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from selgrad.errors import EncryptionError, UsageError, did_you_mean, require_ratio


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; everybody who writes it means a number."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))

REGISTRIES = {
    "dataset": ("selgrad.data", "DATASETS"),
    "model": ("selgrad.models", "MODELS"),
    "update": ("selgrad.gradients", "UPDATES"),
    "metric": ("selgrad.significance", "METRICS"),
    "selector": ("selgrad.masks", "SELECTORS"),
    "attack": ("selgrad.attacks", "ATTACKS"),
    "protection": ("selgrad.protections", "PROTECTIONS"),
}
"""Kind -> module and name of its registry, a plain dict of factories."""


def registry(kind: str) -> dict[str, Callable[..., Any]]:
    """The registry of a kind, imported when first asked for."""
    module, name = REGISTRIES[kind]
    result: dict[str, Callable[..., Any]] = getattr(importlib.import_module(module), name)
    return result


@dataclasses.dataclass(frozen=True)
class Spec:
    """One entry of a registry with all its arguments, defaults filled in; hashes by value.

    Attributes:
      kind: of the registry, such as "metric".
      name: in the registry.
      arguments: sorted (name, value) pairs; sequences are tuples.
      given: names of the arguments that differ from their defaults, which is what a label shows.
    """

    kind: str
    name: str
    arguments: tuple[tuple[str, Any], ...]
    given: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Such as `sensitivity(target=inputs)`."""
        shown = [f"{k}={v}" for k, v in self.arguments if k in self.given]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    @property
    def arguments_json(self) -> str:
        """All arguments as a JSON object with sorted keys."""
        return json.dumps(dict(self.arguments), sort_keys=True)

    def get(self, name: str, default: Any = None) -> Any:
        """One argument."""
        return dict(self.arguments).get(name, default)

    def build(self, *positional: Any) -> Any:
        """Calls the factory."""
        arguments = {k: v for k, v in self.arguments if (self.kind, k) != ("model", "checkpoint")}
        return registry(self.kind)[self.name](*positional, **arguments)


def parameters(kind: str, name: str) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a factory, annotations resolved."""
    factory = registry(kind)[name]
    hints = typing.get_type_hints(factory)
    found = inspect.signature(factory).parameters.values()
    result = {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in found if p.kind is p.KEYWORD_ONLY}
    if kind == "model":
        # Every model can start from stored weights instead of fresh ones.
        result["checkpoint"] = inspect.Parameter("checkpoint", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None)
    return result


def _is_sequence(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_is_sequence(a) for a in typing.get_args(annotation))
    origin = typing.get_origin(annotation)
    return origin is not None and isinstance(origin, type) and issubclass(origin, Sequence)


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is Any or annotation is inspect.Parameter.empty:
        return True
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        return any(_fits(value, a) for a in inner)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None or annotation is type(None):
        return value is None
    if origin is not None:
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    return isinstance(annotation, type) and isinstance(value, annotation)


def describe(annotation: Any) -> str:
    """A type as a message shows it: the choices of a Literal, `number`, `int`, `text`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        # What only Python can give, such as a loaded model, has no place in a configuration's help.
        written = [a for a in inner if a is not type(None) and not getattr(a, "_is_protocol", False)]
        return " | ".join(map(describe, written)) + (" | none" if type(None) in inner else "")
    if origin is not None:
        return f"list of {describe(inner[0])}"
    return {float: "number", int: "int", str: "text", bool: "true | false"}.get(annotation, str(annotation))


def make_spec(kind: str, name: str, arguments: Mapping[str, Any] | None = None) -> Spec:
    """Validates one name and its arguments against the registry.

    Raises:
      UsageError: for an unknown name or argument, a missing one, or a value of the wrong type.
    """
    known = registry(kind)
    if name not in known:
        raise UsageError(f"unknown {kind} {name!r}; {did_you_mean(str(name), known)}")
    allowed, values, given = parameters(kind, name), {}, []
    for key, value in (arguments or {}).items():
        if key not in allowed:
            raise UsageError(f"{kind} {name!r} takes no argument {key!r}; {did_you_mean(str(key), allowed)}")
        annotation = allowed[key].annotation
        if not _fits(value, annotation):
            hint = ""
            if typing.get_origin(annotation) is Literal and isinstance(value, str):
                hint = f"; {did_you_mean(value, map(str, typing.get_args(annotation)))}"
            raise UsageError(f"{kind} {name!r}: {key}={value!r} is not {describe(annotation)}{hint}")
        values[key] = tuple(value) if isinstance(value, list) else value
        if values[key] != allowed[key].default:
            given.append(key)
    for key, parameter in allowed.items():
        if key not in values:
            if parameter.default is inspect.Parameter.empty:
                raise UsageError(f"{kind} {name!r} needs {key} ({describe(parameter.annotation)})")
            values[key] = parameter.default
    # Paths name where data lie, not what they are; labels leave them out.
    return Spec(kind, name, tuple(sorted(values.items())), tuple(k for k in given if k not in ("path", "count", "offset", "split")))


def expand(kind: str, entry: Any) -> list[Spec]:
    """All specs of one entry of a configuration: a name, a mapping with `name`, or a list of these; lists in a mapping are axes.

    >>> [s.label for s in expand("metric", ["random", {"name": "sensitivity", "target": ["labels", "inputs"]}])]
    ['random', 'sensitivity(target=labels)', 'sensitivity(target=inputs)']
    """
    if isinstance(entry, list | tuple):
        if not entry:
            raise UsageError(f"{kind} is an empty list; name at least one, known: {', '.join(sorted(registry(kind)))}")
        return [spec for one in entry for spec in expand(kind, one)]
    if isinstance(entry, Spec):
        return [entry]
    if isinstance(entry, str):
        return [make_spec(kind, entry)]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UsageError(f"{kind}: {entry!r} is neither a name nor a mapping with a name; known: {', '.join(sorted(registry(kind)))}")
    name, rest = entry["name"], {k: v for k, v in entry.items() if k != "name"}
    allowed = parameters(kind, name) if name in registry(kind) else {}

    def values(key: str, value: Any) -> Sequence[Any]:
        sequence = key in allowed and _is_sequence(allowed[key].annotation)
        if isinstance(value, list) and not (sequence and not any(isinstance(v, list) for v in value)):
            return value
        return [value]

    axes = [[(key, v) for v in values(key, value)] for key, value in rest.items()]
    return [make_spec(kind, name, dict(combination)) for combination in itertools.product(*axes)]


def _only(mapping: Any, what: str, allowed: Mapping[str, Any], numbers: Sequence[str] = ()) -> dict[str, Any]:
    """The defaults in `allowed`, overridden by a mapping that may name nothing else and keeps their types.

    Only keys whose default is None may be None; of these, `numbers` are numbers and the rest is checked by the caller.
    """
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{what}: {mapping!r} is not a mapping; it takes {', '.join(allowed)}")
    for key, value in mapping.items():
        if key not in allowed:
            raise UsageError(f"{what} takes no key {key!r}; {did_you_mean(str(key), allowed)}")
        default = allowed[key]
        kind: Any = float | None if key in numbers else list[str] if isinstance(default, list) else float if isinstance(default, float) else type(default)
        if (default is not None or key in numbers) and not _fits(value, kind):
            raise UsageError(f"{what}: {key}={value!r} is not {describe(kind)}")
    return {**allowed, **mapping}


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A whole sweep: one axis per field, its cells the product of them.

    Attributes:
      name: of the sweep, also in W&B.
      dataset, model, update, protection, metric, selector, attack: specs.
      ratio: shares of entries to encrypt, in [0, 1].
      seeds: of model weights, metric and attack; samples share starts across metrics and ratios, so that differences are not luck.
      encryption: `profile`, `num_clients` and `bound` (None: the profile's), or None to leave encryption out.
      known_labels: whether the threat model gives the labels away.
      known_padding: whether it says which positions of a text are padding, as LAMP's does.
      public: data that everybody has, for amortised metrics and learned attackers; None where nobody has any.
      rounds: `count` of updates that each client sends of the same data, all of which the attacker has, and `server_learning_rate`, by which the mean
        update moves the global weights between two of them.
      certificates: whether records hold what each mask leaves identifiable; it needs the whole Jacobian of the update in memory.
      success: `measure`, and the `threshold` below (mse) or above (all others) which an attack has succeeded; None is mse 1e-3 for images and
        rougeL 0.5 for text.
      gallery: samples whose reconstructions are kept.
      block_size: attacks (lanes times restarts) per compiled block; 0 chooses by memory.
      wandb: `project`, `entity`, `group`, `tags`, `runs` ("sweep" or "attack").
    """

    name: str
    dataset: tuple[Spec, ...]
    model: tuple[Spec, ...]
    update: tuple[Spec, ...]
    protection: tuple[Spec, ...]
    metric: tuple[Spec, ...]
    selector: tuple[Spec, ...]
    attack: tuple[Spec, ...]
    ratio: tuple[float, ...]
    seeds: tuple[int, ...]
    encryption: Mapping[str, Any] | None
    known_labels: bool
    known_padding: bool
    public: Spec | None
    rounds: Mapping[str, Any]
    certificates: bool
    success: Mapping[str, Any]
    gallery: int
    block_size: int
    wandb: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The configuration with every axis written out and every default filled in, as `config.yaml` keeps it."""
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Spec):
                value = {"name": value.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in value.arguments}}
            elif field.name in REGISTRIES:
                value = [{"name": s.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in s.arguments}} for s in value]
                value = [{k: [v] if isinstance(v, list) else v for k, v in one.items()} for one in value]
            elif isinstance(value, tuple):
                value = list(value)
            result[field.name] = dict(value) if isinstance(value, Mapping) else value
        return result

    @property
    def identity(self) -> str:
        """A hash of everything that decides the results (not of names, tags and the size of blocks)."""
        content = {k: v for k, v in self.to_dict().items() if k not in ("name", "wandb", "block_size")}
        # What came later and is not used leaves the identity of a sweep as it was.
        if content["rounds"]["count"] == 1:
            del content["rounds"]
        if content["protection"] == [{"name": "none"}]:
            del content["protection"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_DEFAULTS: dict[str, Any] = {
    "name": "sweep",
    "dataset": None,
    "model": None,
    "update": "gradient",
    "protection": "none",
    "metric": None,
    "selector": "global_top",
    "attack": None,
    "ratio": None,
    "seeds": [0],
    "encryption": {},
    "known_labels": False,
    "known_padding": True,
    "public": None,
    "rounds": {},
    "certificates": False,
    "success": {},
    "gallery": 4,
    "block_size": 0,
    "wandb": {},
}


def _numbers(what: str, value: Any, kind: type, remedy: str) -> tuple[Any, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    for v in values:
        if not _fits(v, kind):
            raise UsageError(f"{what}: {v!r} is not {describe(kind)}; {remedy}")
    if not values:
        raise UsageError(f"{what} is an empty list; {remedy}")
    repeated = sorted({v for v in values if list(values).count(v) > 1})
    if repeated:
        raise UsageError(f"{what}: {repeated[0]} is listed twice; name each value once")
    return tuple(kind(v) for v in values)


def parse_encryption(given: Any) -> dict[str, Any] | None:
    """`profile`, `num_clients` and `bound`, defaults filled in and checked; None leaves encryption out.

    Raises:
      UsageError: naming the key, the value and the remedy.
    """
    if given in (None, False, "none"):
        return None
    encryption = _only(given, "encryption", {"profile": "exact", "num_clients": 10, "bound": None}, numbers=("bound",))
    from selgrad.encryption.profiles import PROFILES

    if encryption["profile"] not in PROFILES:
        raise UsageError(f"unknown encryption profile {encryption['profile']!r}; {did_you_mean(str(encryption['profile']), PROFILES)}")
    profile = PROFILES[encryption["profile"]]
    if encryption["bound"] is not None and not 0 < encryption["bound"] < math.inf:
        raise UsageError(f"encryption: bound={encryption['bound']!r} is no positive number; give the largest entry to be held, such as 4")
    try:
        limit = dataclasses.replace(profile, bound=float(encryption["bound"] or profile.bound)).max_clients
    except EncryptionError as error:
        raise UsageError(f"encryption: {error}") from None
    if not 1 <= encryption["num_clients"] <= limit:
        raise UsageError(f"encryption: num_clients={encryption['num_clients']} lies outside 1 .. {limit}, where a sum cannot overflow")
    return encryption


def parse_rounds(given: Any) -> dict[str, Any]:
    """`count` and `server_learning_rate`, defaults filled in and checked; None is one round.

    Raises:
      UsageError: naming the key, the value and the remedy.
    """
    rounds = _only(given or {}, "rounds", {"count": 1, "server_learning_rate": 0.1})
    if rounds["count"] < 1:
        raise UsageError(f"rounds: count={rounds['count']} must be at least 1")
    if not 0 <= rounds["server_learning_rate"] < math.inf:
        raise UsageError(f"rounds: server_learning_rate={rounds['server_learning_rate']} must be a number from 0 on")
    return {**rounds, "server_learning_rate": float(rounds["server_learning_rate"])}


def parse(content: Mapping[str, Any]) -> SweepConfig:
    """A validated configuration.

    Raises:
      UsageError: naming the key, the value and the remedy.
    """
    _only(content, "the configuration", dict.fromkeys(_DEFAULTS))
    merged = {**_DEFAULTS, **content}
    for key in ("dataset", "model", "metric", "attack", "ratio"):
        if merged[key] is None:
            raise UsageError(f"the configuration needs {key}; `selgrad list` shows what there is")
    ratios = _numbers("ratio", merged["ratio"], float, "give shares of entries to encrypt, such as [0, 0.1, 0.5]")
    for ratio in ratios:
        require_ratio(ratio)
    encryption = parse_encryption(merged["encryption"])
    success = _only(merged["success"], "success", {"measure": None, "threshold": None}, numbers=("threshold",))
    known = ("mse", "psnr", "ssim", "rouge1", "rouge2", "rougeL", "token_accuracy", "exact_match")
    if success["measure"] not in (None, *known):
        raise UsageError(f"success: measure={success['measure']!r}; {did_you_mean(str(success['measure']), known)}")
    if success["measure"] is not None and success["threshold"] is None:
        raise UsageError(f"success: measure={success['measure']!r} needs a threshold")
    wandb = _only(merged["wandb"], "wandb", {"project": "selgrad", "entity": None, "group": None, "tags": [], "runs": "sweep"})
    if wandb["runs"] not in ("sweep", "attack"):
        raise UsageError(f"wandb: runs={wandb['runs']!r} is neither 'sweep' nor 'attack'")
    for key, kind in (("name", str), ("known_labels", bool), ("known_padding", bool), ("certificates", bool), ("gallery", int), ("block_size", int)):
        if not _fits(merged[key], kind):
            raise UsageError(f"{key}={merged[key]!r} is not {describe(kind)}")
    for key in ("gallery", "block_size"):
        if merged[key] < 0:
            raise UsageError(f"{key}={merged[key]} must be 0 or more")
    rounds = parse_rounds(merged["rounds"])
    specs: dict[str, Any] = {kind: tuple(expand(kind, merged[kind])) for kind in REGISTRIES}
    for registry_name, found in specs.items():
        twice = [s.label for s in found if found.count(s) > 1]
        if twice:
            raise UsageError(f"{registry_name}: {twice[0]} is listed twice with the same arguments; name each once")
    public = [] if merged["public"] is None else expand("dataset", merged["public"])
    if len(public) > 1:
        raise UsageError(f"public: {', '.join(s.label for s in public)} are {len(public)} data sets; name one")
    return SweepConfig(
        name=merged["name"],
        public=public[0] if public else None,
        **specs,
        ratio=ratios,
        seeds=_numbers("seeds", merged["seeds"], int, "give integers such as [0, 1]"),
        encryption=encryption,
        known_labels=merged["known_labels"],
        known_padding=merged["known_padding"],
        rounds=rounds,
        certificates=merged["certificates"],
        success=success,
        gallery=merged["gallery"],
        block_size=merged["block_size"],
        wandb=wandb,
    )


def read_yaml(text: str, what: str) -> Any:
    """A value as configurations hold it, 1e-4 being a number.

    Raises:
      UsageError: if the text is no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{what} is no YAML: {' '.join(str(error).split())}; put text with special characters in quotes") from None


def read_file(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
      UsageError: if it is missing, or no YAML.
    """
    file = Path(path)
    try:
        return read_yaml(file.read_text(), f"configuration {str(file)!r}")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"configuration {str(file)!r} cannot be read ({reason}); give the path of a YAML file") from None


def load(path: str | Path) -> SweepConfig:
    """Reads and validates a YAML file.

    Raises:
      UsageError: if it is missing, no YAML, or not valid.
    """
    file = Path(path)
    content = read_file(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"configuration {str(file)!r} holds no mapping of keys; see the example in README.md")
    return parse(content)


def settings(config: SweepConfig) -> Iterator[tuple[Spec, Spec, Spec, Spec]]:
    """Every data set, model, update and protection."""
    return itertools.product(config.dataset, config.model, config.update, config.protection)
