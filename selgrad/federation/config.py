"""The configuration of a federated run; every error names the key, the value and the remedy.

One YAML file describes data, clients, training, mask agreement, protection and encryption; its text is sent to the clients unchanged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pydantic
import yaml

from selgrad.config import Section, WandbConfig, read_file
from selgrad.encryption.agreement import AGREEMENTS
from selgrad.encryption.profiles import PROFILES, Profile
from selgrad.errors import EncryptionError, UsageError, did_you_mean, require_ratio, require_seed
from selgrad.registry import Spec, make_spec, one, registry

FAULTS = ("die", "late", "malformed", "nan", "twice")


class ClientsConfig(Section):
    """The clients and how the data are divided."""

    count: int = pydantic.Field(5, description="Number of clients.")
    alpha: float = pydantic.Field(0.5, description="Parameter of the Dirichlet distribution that divides each class among clients; 0 divides evenly at random.")


class LocalConfig(Section):
    """Each client's gradient descent in a round."""

    num_steps: int = pydantic.Field(10, description="Number of steps of gradient descent.")
    batch_size: int = pydantic.Field(32, description="Samples in a step.")
    learning_rate: float = pydantic.Field(0.1, description="Learning rate of a step.")


class KeysConfig(Section):
    """How updates are encrypted."""

    profile: str = pydantic.Field("exact", description="Encryption profile; `selgrad profiles` lists them.")
    bound: float | None = pydantic.Field(None, description="Largest absolute value of an entry; none takes the profile's bound.")


class FaultConfig(Section):
    """A deliberate fault of a client, to test how the run handles it."""

    client: int = pydantic.Field(0, description="Number of the client.")
    round: int = pydantic.Field(1, description="Round in which the fault happens.")
    kind: str = pydantic.Field("die", description=f"Kind of fault: {', '.join(FAULTS)}.")


class Content(Section):
    """The keys of a run's file."""

    name: str = pydantic.Field("federation", description="Name of the run, also in W&B.")
    dataset: Any = pydantic.Field(None, description="Data set that is divided among clients; digits by default.")
    test: Any = pydantic.Field(None, description="Data set on which accuracy is measured.")
    model: Any = pydantic.Field(None, description="Model; LeNet by default.")
    clients: Any = pydantic.Field({}, description="The clients and how the data are divided.")
    rounds: int = pydantic.Field(5, description="Number of rounds of federated averaging.")
    local: Any = pydantic.Field({}, description="Each client's gradient descent in a round.")
    metric: Any = pydantic.Field(None, description="Significance metric; magnitude by default.")
    ratio: float = pydantic.Field(0.1, description="Share of entries to encrypt, in [0, 1].")
    agreement: str = pydantic.Field("vote", description="How clients agree on one mask.")
    protection: Any = pydantic.Field(
        None,
        description="`selective` by default: encryption of `ratio`; `{name: selective, exposed: PROTECTION}` adds noise or rounding to what is not encrypted.",
    )
    encryption: Any = pydantic.Field({}, description="How updates are encrypted.")
    timeout: float = pydantic.Field(600.0, description="Seconds to wait for replies in each phase; two minutes at least for participants that are starting.")
    min_clients: int | None = pydantic.Field(
        None, description="Smallest number of updates with which a round takes a step; 2 by default if anything is encrypted."
    )
    seed: int = pydantic.Field(0, description="Seed of weights, split, batches and masks.")
    verify: bool = pydantic.Field(True, description="Whether the server compares global weights with plain FedAvg; for experiments, where it has the data.")
    faults: list[Any] | None = pydantic.Field(None, description="Deliberate faults of clients.")
    wandb: Any = pydantic.Field({}, description="How the run is logged to W&B, as for sweeps.")


@dataclasses.dataclass(frozen=True)
class FederationConfig:
    """The validated configuration of a run.

    Attributes:
      name: of the run, also used in W&B.
      dataset, test, model, metric: specs; clients share `dataset`, and accuracy is measured on `test`.
      clients: how many, and `alpha` of the Dirichlet distribution by which each class is divided among them (0 divides evenly at random).
      rounds: of federated averaging.
      local: `num_steps`, `batch_size` and `learning_rate` of each client's gradient descent in a round.
      ratio: share of entries to encrypt, in [0, 1].
      agreement: how clients agree on one mask, a name in `AGREEMENTS`.
      protection: `selective` (encryption of `ratio`), `full` (encryption of everything), or the name of another protection, which encrypts nothing.
      baseline: the protection that clients apply to the entries that they send in the clear; under `selective` what `exposed` names, and `none` by default.
      encryption: `profile` and `bound`.
      timeout: seconds to wait for replies in each phase; at least two minutes for participants that are starting.
      min_clients: with fewer updates a round changes nothing, and no sum over fewer is decrypted; by default 2 where anything is encrypted.
      seed: of weights, split, batches and masks.
      verify: whether the server recomputes every client's update and compares global weights with plain FedAvg; for experiments, where it has the data.
      faults: deliberate faults of clients, each with `client`, `round` and a `kind` in `FAULTS`, to test how the run handles them.
      wandb: as for sweeps.
      text: the validated configuration as YAML.
    """

    name: str
    dataset: Spec
    test: Spec | None
    model: Spec
    clients: ClientsConfig
    rounds: int
    local: LocalConfig
    metric: Spec
    ratio: float
    agreement: str
    protection: str
    baseline: Spec
    encryption: KeysConfig
    timeout: float
    min_clients: int
    seed: int
    verify: bool
    faults: tuple[FaultConfig, ...]
    wandb: WandbConfig
    text: str

    @property
    def profile(self) -> Profile:
        """The encryption profile with the bound of this run."""
        profile = PROFILES[self.encryption.profile]
        return dataclasses.replace(profile, bound=profile.bound if self.encryption.bound is None else float(self.encryption.bound))

    @property
    def encrypts(self) -> bool:
        """Whether anything is encrypted."""
        return _encrypts(self.protection, self.ratio)

    def to_dict(self) -> dict[str, Any]:
        """The configuration with every default filled in; a registry entry appears as its name, with its arguments under dotted keys."""
        content = yaml.safe_load(self.text)
        specs = {"dataset": self.dataset, "test": self.test, "model": self.model, "metric": self.metric}
        for name, spec in specs.items():
            content[name] = None if spec is None else spec.name
            content |= {} if spec is None else {f"{name}.{key}": value for key, value in spec.arguments}
        arguments = {} if self.baseline.name in ("none", self.protection) else {"protection.exposed": self.baseline.name}
        arguments |= {f"protection.{key}": value for key, value in self.baseline.arguments}
        content |= {"protection": self.protection, "min_clients": self.min_clients} | arguments
        return cast(dict[str, Any], content)

    @property
    def identity(self) -> str:
        """A hash of everything that a run computes; time limits and tracking are not part of it."""
        return self.fingerprint[:16]

    @property
    def fingerprint(self) -> str:
        """The full hash, by which participants recognise the configuration that they agreed to."""
        content = yaml.safe_load(self.text)
        return hashlib.sha256(json.dumps({k: v for k, v in content.items() if k not in ("timeout", "wandb", "name")}, sort_keys=True).encode()).hexdigest()


def _encrypts(protection: str, ratio: float) -> bool:
    return protection == "full" or (protection == "selective" and ratio > 0)


def _protection(entry: Any, has_ratio: bool) -> tuple[str, Spec]:
    """The name of the protection, and the spec of what clients do besides encrypting."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if isinstance(name, str):
        _choice("protection", name, ("selective", "full", *registry("protection")))
    if name in ("selective", "full"):
        if entry in (name, {"name": name}):
            return str(name), make_spec("protection", "none")
        if name == "selective" and set(entry) == {"name", "exposed"}:
            return str(name), _exposed(entry["exposed"])
        takes = "only the argument exposed" if name == "selective" else "no arguments"
        raise UsageError(f"protection {name!r} takes {takes}; ratio, agreement and encryption are keys of their own")
    if name == "pruning" and has_ratio and not (isinstance(entry, Mapping) and "ratio" in entry):
        raise UsageError("protection 'pruning' does not read the key ratio, which is the share to encrypt; write {name: pruning, ratio: 0.9, order: smallest}")
    baseline = one("protection", entry)
    baseline.build()
    return baseline.name, baseline


def _exposed(entry: Any) -> Spec:
    """The spec of what clients do to the entries that they do not encrypt."""
    spec = one("protection", entry)
    spec.build()
    if spec.name == "pruning":
        raise UsageError("protection 'selective': exposed='pruning' would leave out entries that the mask counts as sent; give dp_gaussian or quantised")
    return spec


def _positive(section: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{section}: {key}={value} must be positive")


def _choice(label: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{label} {value!r} is unknown; {did_you_mean(str(value), known)}")


def parse(content: Any) -> FederationConfig:
    """A validated configuration.

    Raises:
      UsageError: naming the key, the value and the remedy.
    """
    merged = Content.read(content, "the configuration").model_dump()
    for key, value in (("dataset", "digits"), ("model", "lenet"), ("metric", "magnitude"), ("protection", "selective"), ("faults", [])):
        merged[key] = value if merged[key] is None else merged[key]
    clients = ClientsConfig.read(merged["clients"], "clients")
    local = LocalConfig.read(merged["local"], "local")
    protection, baseline = _protection(merged["protection"], "ratio" in content)
    encryption = KeysConfig.read(merged["encryption"], "encryption")
    _choice("agreement", merged["agreement"], AGREEMENTS)
    _choice("encryption profile", encryption.profile, tuple(PROFILES))
    _positive("clients", {"count": clients.count})
    _positive("local", local.model_dump())
    encrypts = _encrypts(protection, merged["ratio"])
    if merged["min_clients"] is None:
        merged["min_clients"] = 2 if encrypts and clients.count > 1 else 1
    if encrypts and merged["min_clients"] < min(2, clients.count):
        raise UsageError(f"min_clients={merged['min_clients']} would decrypt one client's update alone; give 2 or more")
    require_seed(merged["seed"])
    _positive("the configuration", {k: merged[k] for k in ("rounds", "timeout", "min_clients")})
    require_ratio(merged["ratio"])
    if not 0 <= clients.alpha < math.inf:
        raise UsageError(f"clients: alpha={clients.alpha} must be 0 (even) or more")
    if merged["min_clients"] > clients.count:
        raise UsageError(f"min_clients={merged['min_clients']} is more than the {clients.count} clients; lower it")
    faults = []
    for entry in merged["faults"]:
        fault = FaultConfig.read(entry, "faults")
        _choice("fault", fault.kind, FAULTS)
        if not 0 <= fault.client < clients.count:
            raise UsageError(f"faults: client={fault.client} lies outside 0 .. {clients.count - 1}")
        faults.append(fault)
    for key in ("dataset", "test"):
        # Clients run in folders of their own.
        if isinstance(merged[key], Mapping) and isinstance(merged[key].get("path"), str):
            merged[key] = {**merged[key], "path": str(Path(merged[key]["path"]).expanduser().absolute())}
    wandb = WandbConfig.read(merged["wandb"], "wandb")
    sections = {"clients": clients, "local": local, "encryption": encryption}
    config = FederationConfig(
        name=merged["name"],
        dataset=one("dataset", merged["dataset"]),
        test=None if merged["test"] is None else one("dataset", merged["test"]),
        model=one("model", merged["model"]),
        clients=clients,
        rounds=merged["rounds"],
        local=local,
        metric=one("metric", merged["metric"]),
        ratio=float(merged["ratio"]),
        agreement=merged["agreement"],
        protection=protection,
        baseline=baseline,
        encryption=encryption,
        timeout=float(merged["timeout"]),
        min_clients=merged["min_clients"],
        seed=merged["seed"],
        verify=merged["verify"],
        faults=tuple(faults),
        wandb=wandb,
        text=yaml.safe_dump({**merged, **{name: part.model_dump() for name, part in sections.items()}}, sort_keys=True),
    )
    try:
        profile = config.profile
    except EncryptionError as error:
        raise UsageError(f"encryption: {error}") from None
    if config.encrypts:
        if clients.count > profile.max_clients:
            raise UsageError(f"clients: count={clients.count} is more than profile {profile.name!r} holds ({profile.max_clients}); lower count or bound")
        if profile.decryption == "threshold" and config.agreement == "encrypted_sensitivity" and config.protection == "selective":
            raise UsageError(
                "agreement 'encrypted_sensitivity' needs a key holder to see the sum of maps, and a threshold profile has none; take 'vote' or 'fixed'"
            )
        if profile.decryption == "threshold" and clients.count > profile.num_parties:
            raise UsageError(f"clients: count={clients.count} is more than the {profile.num_parties} parties of profile {profile.name!r}")
    return config


def load(path: str | Path) -> FederationConfig:
    """Reads and validates a YAML file.

    Raises:
      UsageError: if the file is missing, not YAML, or not valid.
    """
    return parse(read_file(path))
