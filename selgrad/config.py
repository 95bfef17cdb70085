"""The configuration of a sweep: typed, read from YAML or Python, and validated strictly.

One field is one key: its type, default and description are the whole schema, which `docs/configuration.md` prints. Axes are names, mappings or objects as
`selgrad.registry` reads them; a list is an axis of the grid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic
import yaml

from selgrad import files
from selgrad.errors import EncryptionError, UsageError, did_you_mean, require_ratio
from selgrad.measures import LEVELS
from selgrad.registry import REGISTRIES, Spec, expand, one, wanted

if TYPE_CHECKING:
    from selgrad.encryption.profiles import Profile

_S = TypeVar("_S", bound="Section")


class Section(pydantic.BaseModel):
    """A part of a configuration: it accepts only the keys that it declares, each with its own type."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    @classmethod
    def read(cls: type[_S], given: Any, what: str) -> _S:
        """Reads a section from a mapping.

        Raises:
          UsageError: naming the key, the value and the remedy.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise UsageError(f"{what}: {given!r} is not a mapping; it takes {', '.join(cls.model_fields)}")
        for key in given:
            if not isinstance(key, str):
                raise UsageError(f"{what} takes no key {key!r}, which is not text; it takes {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(dict(given))
        except pydantic.ValidationError as error:
            raise explained(cls, what, error) from None


def explained(section: type[Section], what: str, error: pydantic.ValidationError) -> UsageError:
    """The first of a schema's errors as one line with a remedy."""
    is_top_level = what == "the configuration"
    # An unknown key explains why another one is missing.
    first = min(error.errors(), key=lambda e: {"extra_forbidden": 0, "missing": 2}.get(e["type"], 1))
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return UsageError(f"{what} takes no key {key!r}; {did_you_mean(key, section.model_fields)}")
    if first["type"] == "missing":
        return UsageError(f"{what} needs {key}; `selgrad list` shows what there is")
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, UsageError):
        return inner
    annotation = section.model_fields[key].annotation if key in section.model_fields else Any
    value = first["input"]
    hint = f"; {did_you_mean(value, map(str, annotation.__args__))}" if getattr(annotation, "__origin__", None) is Literal and isinstance(value, str) else ""  # type: ignore[union-attr]
    assignment = f"{key}={value!r}" if is_top_level else f"{what}: {key}={value!r}"
    return UsageError(f"{assignment} is not {wanted(annotation)}{hint}")


class EncryptionConfig(Section):
    """How selections are encrypted and costs measured."""

    profile: str = pydantic.Field("exact", description="Encryption profile; `selgrad profiles` lists them.")
    num_clients: int = pydantic.Field(10, description="Number of clients whose updates are summed.")
    bound: float | None = pydantic.Field(
        None, description="Largest absolute value of an entry; larger values are clipped and counted. None takes the profile's bound."
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> EncryptionConfig:
        from selgrad.encryption.profiles import PROFILES

        if self.profile not in PROFILES:
            raise UsageError(f"unknown encryption profile {self.profile!r}; {did_you_mean(self.profile, PROFILES)}")
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise UsageError(f"encryption: bound={self.bound:g} is not a positive number; give the largest entry to be held, such as 4")
        try:
            limit = self.scheme_profile.max_clients
        except EncryptionError as error:
            raise UsageError(f"encryption: {error}") from None
        if not 1 <= self.num_clients <= limit:
            raise UsageError(f"encryption: num_clients={self.num_clients} lies outside 1 .. {limit}, where a sum cannot overflow")
        return self

    @property
    def scheme_profile(self) -> Profile:
        """The profile with the requested bound."""
        from selgrad.encryption.profiles import PROFILES

        profile = PROFILES[self.profile]
        return dataclasses.replace(profile, bound=float(self.bound or profile.bound))

    @classmethod
    def parse(cls, given: Any) -> EncryptionConfig | None:
        """Reads a mapping; None, False or "none" leaves encryption out.

        Raises:
          UsageError: naming the key, the value and the remedy.
        """
        return None if given in (None, False, "none") else cls.read(given, "encryption")


class RoundsConfig(Section):
    """How many updates of the same data clients send, all of which the attacker has."""

    count: int = pydantic.Field(1, description="Number of updates.")
    server_learning_rate: float = pydantic.Field(0.1, description="Learning rate with which the mean update moves the global weights between two updates.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> RoundsConfig:
        if not 1 <= self.count < 2**31:
            raise UsageError(f"rounds: count={self.count} must be at least 1, and below 2**31")
        if not 0 <= self.server_learning_rate < math.inf:
            raise UsageError(f"rounds: server_learning_rate={self.server_learning_rate} must be a number from 0 on")
        return self

    @classmethod
    def parse(cls, given: Any) -> RoundsConfig:
        """Reads a mapping; None means one round.

        Raises:
          UsageError: naming the key, the value and the remedy.
        """
        return cls.read(given or {}, "rounds")


class FeaturesConfig(Section):
    """A trained network in whose features reconstructed images are compared, in addition to their pixels."""

    model: Any = pydantic.Field(description="The network, named like a model, with its checkpoint.")
    normalisation: Literal["data", "none", "imagenet", "cifar10"] = pydantic.Field(
        "data", description="Normalisation of its training inputs: the data set's, none, or the constants of a published one."
    )

    @pydantic.field_validator("model")
    @classmethod
    def _check(cls, value: Any) -> Any:
        spec = one("model", value)
        if spec.get("checkpoint") is None:
            raise UsageError(
                f"features: {spec.label} has no trained weights, and an untrained network tells nothing of what an image shows; name a file with checkpoint="
            )
        return spec.to_dict()

    @property
    def spec(self) -> Spec:
        """The spec of the network."""
        return one("model", self.model)

    @classmethod
    def parse(cls, given: Any) -> FeaturesConfig | None:
        """Reads a mapping; None compares only pixels.

        Raises:
          UsageError: naming the key, the value and the remedy.
        """
        return None if given is None else cls.read(given, "features")


class SuccessConfig(Section):
    """When an attack counts as successful."""

    level: str | None = pydantic.Field(
        None,
        description="Level that an attack must reach: exact, recognisable or attribute. None takes recognisable or, if the data set has no other inputs "
        "among which to identify the truth, mse < 1e-3 and rougeL > 0.5.",
    )
    measure: str | None = pydantic.Field(None, description="Measure that decides instead of a level.")
    threshold: float | None = pydantic.Field(
        None, description="Value below which an error, or above which a quality, is a success; without a measure it applies to mse or rougeL."
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> SuccessConfig:
        if self.level is not None:
            if self.level not in LEVELS[1:]:
                raise UsageError(f"success: level={self.level!r}; {did_you_mean(self.level, LEVELS[1:])}")
            if self.measure is not None or self.threshold is not None:
                raise UsageError(f"success: level={self.level!r} judges by itself; leave measure and threshold out")
        if self.measure is None:
            return self
        from selgrad import measures

        known = [name for name, measure in measures.every().items() if measure.reads not in ("labels", "verdicts")]
        if self.measure not in known:
            raise UsageError(f"success: measure={self.measure!r}; {did_you_mean(self.measure, known)}")
        if self.threshold is None:
            raise UsageError(f"success: measure={self.measure!r} needs a threshold")
        decides = measures.named(self.measure)
        if not decides.can_decide(self.threshold):
            low, high = decides.limits
            raise UsageError(
                f"success: threshold={self.threshold:g} would accept or refuse every result, because {self.measure} lies between {low:g} and {high:g}"
            )
        return self


class WandbConfig(Section):
    """Where Weights & Biases files a run."""

    project: str = pydantic.Field("selgrad", description="Project.")
    entity: str | None = pydantic.Field(None, description="Team or user; none takes that of the login.")
    group: str | None = pydantic.Field(None, description="Group of the runs; none takes the sweep's name.")
    tags: list[str] = pydantic.Field([], description="Tags of the runs.")
    runs: Literal["cell_group", "attack", "sweep"] = pydantic.Field(
        "cell_group",
        description="Runs besides that of the whole sweep: one per configuration (model, metric, ratio, attack and so on), one per attack, or none.",
    )


def _axis(kind: str, entry: Any) -> tuple[Spec, ...]:
    """All specs of an axis; duplicates are refused."""
    specs = tuple(expand(kind, entry))
    twice = [s.label for s in specs if specs.count(s) > 1]
    if twice:
        raise UsageError(f"{kind}: {twice[0]} is listed twice with the same arguments; name each once")
    return specs


def _public(entry: Any) -> Spec | None:
    if entry is None:
        return None
    specs = expand("dataset", entry)
    if len(specs) > 1:
        raise UsageError(f"public: {len(specs)} data sets are given ({', '.join(s.label for s in specs)}), and only one is allowed; name one")
    return specs[0]


def _numbers(what: str, kind: type, remedy: str, value: Any) -> tuple[Any, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float if kind is float else kind):
            raise UsageError(f"{what}: {v!r} is not {wanted(kind)}; {remedy}")
    if not values:
        raise UsageError(f"{what} is an empty list; {remedy}")
    repeated = sorted({v for v in values if list(values).count(v) > 1})
    if repeated:
        raise UsageError(f"{what}: {repeated[0]} is listed twice; name each value once")
    for v in values:
        if what == "ratio":
            require_ratio(v)
        elif not 0 <= v < 2**31:
            raise UsageError(f"{what}: {v} lies outside 0 .. 2**31 - 1; {remedy}")
    return tuple(kind(v) + 0 for v in values)


def _plain(function: Any) -> Any:
    """Wraps a function as a validator that replaces pydantic's own."""
    return pydantic.PlainValidator(function)


class SweepConfig(Section):
    """A sweep: its cells are the product of its axes, one per field."""

    name: str = pydantic.Field("sweep", description="Name of the sweep, also in W&B.")
    dataset: Annotated[tuple[Spec, ...], _plain(partial(_axis, "dataset"))] = pydantic.Field(description="Data sets.")
    model: Annotated[tuple[Spec, ...], _plain(partial(_axis, "model"))] = pydantic.Field(description="Models.")
    update: Annotated[tuple[Spec, ...], _plain(partial(_axis, "update"))] = pydantic.Field(
        "gradient", validate_default=True, description="The update that a client sends: a gradient, or the result of local training."
    )
    protection: Annotated[tuple[Spec, ...], _plain(partial(_axis, "protection"))] = pydantic.Field(
        "none", validate_default=True, description="Protections that clients apply to their updates besides encryption."
    )
    metric: Annotated[tuple[Spec, ...], _plain(partial(_axis, "metric"))] = pydantic.Field(description="Significance metrics.")
    selector: Annotated[tuple[Spec, ...], _plain(partial(_axis, "selector"))] = pydantic.Field(
        "global_top", validate_default=True, description="Rules that turn scores into masks."
    )
    attack: Annotated[tuple[Spec, ...], _plain(partial(_axis, "attack"))] = pydantic.Field(description="Gradient inversion attacks.")
    ratio: Annotated[tuple[float, ...], _plain(partial(_numbers, "ratio", float, "give shares of entries to encrypt, such as [0, 0.1, 0.5]"))] = pydantic.Field(
        description="Shares of entries to encrypt, in [0, 1]."
    )
    seeds: Annotated[tuple[int, ...], _plain(partial(_numbers, "seeds", int, "give integers such as [0, 1]"))] = pydantic.Field(
        (0,), description="Seeds of model weights, metrics and attacks; metrics and ratios share attack starts, so that differences are not due to luck."
    )
    encryption: Annotated[EncryptionConfig | None, _plain(EncryptionConfig.parse)] = pydantic.Field(
        {}, validate_default=True, description="How the selected entries are encrypted; none leaves encryption out."
    )
    known_labels: bool = pydantic.Field(False, description="Whether the attacker is given the labels.")
    known_padding: bool = pydantic.Field(True, description="Whether the attacker knows which positions of a text are padding, as in LAMP.")
    public: Annotated[Spec | None, _plain(_public)] = pydantic.Field(
        None, description="Public data for amortised metrics and learned attackers; none if there are none."
    )
    features: Annotated[FeaturesConfig | None, _plain(FeaturesConfig.parse)] = pydantic.Field(
        None, description="A trained network in whose features reconstructed images are compared, in addition to their pixels."
    )
    rounds: Annotated[RoundsConfig, _plain(RoundsConfig.parse)] = pydantic.Field(
        {}, validate_default=True, description="How many updates of the same data the attacker has."
    )
    certificates: bool = pydantic.Field(
        False, description="Whether records hold certificates of what each mask leaves identifiable; they need the whole Jacobian in memory."
    )
    success: Annotated[SuccessConfig, _plain(lambda value: SuccessConfig.read(value, "success"))] = pydantic.Field(
        {}, validate_default=True, description="When an attack counts as successful."
    )
    suite: str = pydantic.Field("", description="The suite that the attacks belong to, as `selgrad suite` writes it; empty if attacks were chosen one by one.")
    gallery: int = pydantic.Field(4, description="Number of samples whose reconstructions are kept.")
    block_size: int = pydantic.Field(0, description="Number of attacks (lanes times restarts) in a compiled block; 0 chooses by memory.")
    model_devices: int = pydantic.Field(1, description="Number of devices that share one model's weights and gradients, for a model too large for one device.")
    wandb: Annotated[WandbConfig, _plain(lambda value: WandbConfig.read(value, "wandb"))] = pydantic.Field(
        {}, validate_default=True, description="How the sweep is logged to Weights & Biases."
    )

    @pydantic.model_validator(mode="after")
    def _not_negative(self) -> SweepConfig:
        for key, least in (("gallery", 0), ("block_size", 0), ("model_devices", 1)):
            if not least <= getattr(self, key) < 2**31:
                raise UsageError(f"{key}={getattr(self, key)} must be {least} or more, and below 2**31")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The configuration with every axis written out and every default filled in, as `config.yaml` keeps it."""
        result: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in REGISTRIES:
                # A list inside an entry is an axis, so an argument that is itself a list becomes a list of one value.
                result[name] = [{k: [v] if isinstance(v, list) else v for k, v in spec.to_dict().items()} for spec in value]
            elif isinstance(value, Spec):
                result[name] = value.to_dict()
            elif isinstance(value, Section):
                result[name] = value.model_dump()
            else:
                result[name] = list(value) if isinstance(value, tuple) else value
        return result

    @property
    def identity(self) -> str:
        """A hash of everything that determines the results (not of names, tags, block size and devices)."""
        content = {k: v for k, v in self.to_dict().items() if k not in ("name", "wandb", "block_size", "model_devices")}
        # Keys that were added later and are not used leave the identity of older sweeps unchanged.
        if self.rounds.count == 1:
            del content["rounds"]
        if not self.suite:
            del content["suite"]
        if self.features is None:
            del content["features"]
        # By default a level now decides, which older sweeps did not have; only sweeps that name a measure or threshold keep their old identity.
        if self.success.measure is not None or self.success.threshold is not None:
            content["success"] = {k: v for k, v in content["success"].items() if k != "level"}
        if self.protection == _axis("protection", type(self).model_fields["protection"].default):
            del content["protection"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def parse(content: Mapping[str, Any]) -> SweepConfig:
    """A validated configuration.

    Raises:
      UsageError: naming the key, the value and the remedy.
    """
    needed = [name for name, field in SweepConfig.model_fields.items() if field.is_required()]
    # An empty value for a required key counts as missing.
    return SweepConfig.read({k: v for k, v in content.items() if v is not None or k not in needed}, "the configuration")


class _Loader(yaml.SafeLoader):
    """A YAML 1.1 loader that reads numbers as YAML 1.2 does, and refuses a key that appears twice.

    So 1e-4 is a number, and 010 is neither eight nor 1:30 ninety.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Constructs a mapping whose keys must be distinct."""
        first_lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, Hashable):
                line = key_node.start_mark.line + 1
                if key in first_lines:
                    message = f"key {key!r} stands twice, in line {first_lines[key]} and again in line {line}; keep one"
                    raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
                first_lines[key] = line
        return super().construct_mapping(node, deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)] for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


LONGEST = 1_000_000
"""The largest number of characters in a configuration."""


def read_yaml(text: str, what: str) -> Any:
    """Parses the YAML of a configuration, in which 1e-4 is a number.

    Raises:
      UsageError: if the text is not valid YAML, or a key appears twice.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{what} has {len(text):,} characters, and configurations of more than {LONGEST:,} are not read")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(f"{what}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{what} is not valid YAML: {' '.join(str(error).split())}; put text with special characters in quotes") from None
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply, or refers to itself; write it out") from None
    except (ValueError, OverflowError, KeyError, IndexError, AttributeError, TypeError) as error:
        # Such as a date with month 13, or an explicit tag before a value of another kind.
        raise UsageError(f"{what} holds a value that cannot be read ({error}); put text in quotes") from None
    if _holds_itself(value, (), set()):
        raise UsageError(f"{what} refers to itself; write it out")
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} holds half of a character (an escape \\ud800 to \\udfff), which no file can hold; write the character itself") from None
    except (TypeError, ValueError, RecursionError):
        pass
    return value


def _holds_itself(value: Any, above: tuple[int, ...], visited: set[int]) -> bool:
    """Whether a list or mapping contains itself, which YAML anchors allow."""
    if not isinstance(value, list | dict) or id(value) in visited:
        return False
    if id(value) in above:
        return True
    is_cyclic = any(_holds_itself(child, (*above, id(value)), visited) for child in (value.values() if isinstance(value, dict) else value))
    visited.add(id(value))
    return is_cyclic


def read_file(path: str | Path) -> Any:
    """Reads the content of a YAML file.

    Raises:
      UsageError: if it is missing, or not YAML.
    """
    file = Path(path)
    try:
        return read_yaml(files.read_text(file), f"configuration {str(file)!r}")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"configuration {str(file)!r} cannot be read ({reason}); give the path of a YAML file") from None


def load(path: str | Path) -> SweepConfig:
    """Reads and validates a YAML file.

    Raises:
      UsageError: if it is missing, not YAML, or not valid.
    """
    file = Path(path)
    content = read_file(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"configuration {str(file)!r} holds no mapping of keys; see docs/sweeps.md")
    return parse(content)


def settings(config: SweepConfig) -> Iterator[tuple[Spec, Spec, Spec, Spec]]:
    """Every combination of data set, model, update and protection."""
    return itertools.product(config.dataset, config.model, config.update, config.protection)


def portable(config: SweepConfig) -> str:
    """A configuration as YAML, from which another process builds the same configuration.

    Raises:
      UsageError: if it holds objects of this process, which no other process can make.
    """
    text = yaml.safe_dump(config.to_dict(), sort_keys=False)
    try:
        same = parse(read_yaml(text, "config.yaml")).identity == config.identity
    except UsageError:
        same = False
    if not same:
        raise UsageError(
            "this sweep holds objects of this session, which other processes cannot make; name them by their place, such as my_package.models:build, "
            "or run it with engine local"
        )
    return text
