"""Score, mask, encrypt and attack your own gradient in a few lines, with pure functions over pytrees and no experiment around them.

`selgrad.scores`, `selgrad.mask`, `selgrad.encrypt` and `selgrad.attack` do for one gradient what a sweep does for thousands at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from selgrad import encryption, trees
from selgrad.base import Batch, Evidence, GradientContext, InputSpec, Metric, Model, Reconstruction, Selector, TextSpec, Update
from selgrad.errors import EncryptionError, UsageError, require_seed
from selgrad.experiment import bind
from selgrad.gradients import attacked, observe
from selgrad.models.networks import by_path
from selgrad.registry import Spec


class _Absent:
    """A placeholder for a quantity that a metric reads and the caller did not give."""

    def __init__(self, metric: str, quantity: str) -> None:
        self._message = f"metric {metric!r} reads {quantity}; give selgrad.scores model, params, inputs and labels too"

    def __getattr__(self, name: str) -> Any:
        raise UsageError(self._message)

    def __iter__(self) -> Any:
        raise UsageError(self._message)


def scores(
    grads: Any,
    metric: Any = "magnitude",
    *,
    model: Any = None,
    params: Any = None,
    inputs: Any = None,
    labels: Any = None,
    input_spec: InputSpec | TextSpec | None = None,
    update: Any = None,
    seed: int = 0,
) -> Any:
    """Computes one score for each entry of a gradient; entries with larger scores are encrypted first.

    Args:
      grads: a pytree of float arrays.
      metric: a name, a mapping of `name` and arguments, or a function of the gradient pytree.
      model, params, inputs, labels, input_spec: for metrics that need more than the gradient, such as `sensitivity`; in the forms that `attack` takes, with
        `inputs` (B, *shape) as the model reads them and `labels` (B,) integers.
      update: how the client makes its gradient; "gradient" of the batch by default.
      seed: of the metric's random draws.

    Returns:
      A pytree with the gradient's structure and shapes.

    Raises:
      UsageError: for an unknown metric, or one that reads something that is not given.

    >>> import jax.numpy as jnp
    >>> scores({"w": jnp.asarray([[1.0, -3.0]]), "b": jnp.asarray([2.0])})["w"].tolist()
    [[1.0, 3.0]]
    """
    require_seed(seed)
    spec = Spec.of("metric", metric)
    built: Metric = spec.build()
    _require_floats(grads, "scores")
    key = jax.random.key(seed)
    if model is None:
        absent: dict[str, Any] = {
            name: _Absent(spec.label, quantity) for name, quantity in (("model", "the model"), ("params", "the parameters"), ("batch", "the batch"))
        }
        return built(GradientContext(**absent, update=absent["model"], grads=grads, key=key))
    if params is None or inputs is None or labels is None:
        raise UsageError("selgrad.scores: with a model give params, inputs and labels")
    size = len(inputs)
    adapted, weights = _model(model, params, input_spec)
    client_update: Update = Spec.of("update", {"name": "gradient", "batch_size": size} if update is None else update).build()
    batch = Batch(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32))
    tree = _to_ours(adapted, grads)
    own_scores = built(GradientContext(model=adapted, params=weights, batch=batch, update=client_update, grads=tree, key=key))
    return jax.tree.unflatten(jax.tree.structure(grads), jax.tree.leaves(_to_theirs(adapted, own_scores, grads)))


def mask(scores: Any, ratio: float | int, selector: Any = "global_top") -> Any:
    """The mask of exactly round(ratio * n) entries with the largest scores, True where encrypted.

    Args:
      scores: a pytree as `selgrad.scores` returns it.
      ratio: share of all entries, in [0, 1].
      selector: a name, a mapping of `name` and arguments, or a function from scores to ranks.

    Raises:
      UsageError: for a ratio outside [0, 1] or an unknown selector.

    >>> import jax.numpy as jnp
    >>> mask({"w": jnp.asarray([[1.0, 3.0]]), "b": jnp.asarray([2.0])}, 1 / 3)["w"].tolist()
    [[False, True]]
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise UsageError(f"ratio={ratio!r} is not a number; give a share of entries in [0, 1]")
    chosen: Selector = Spec.of("selector", selector).build()
    return trees.top(chosen(scores), trees.count(ratio, trees.size(scores)))


@dataclasses.dataclass(frozen=True)
class KeyPair:
    """A CKKS context and its keys: its holder can encrypt and decrypt. In a deployment these are two parties (docs/threat_model.md)."""

    scheme: encryption.CKKS
    party_keys: tuple[encryption.Keys, ...]

    @property
    def bound(self) -> float:
        """The largest absolute value that an entry may have."""
        return float(self.scheme.profile.bound)


def keys(profile: str = "exact", *, bound: float | int | None = None, num_values: int | None = None) -> KeyPair:
    """Makes a fresh CKKS key pair.

    Args:
      profile: of the encryption; `selgrad profiles` shows them.
      bound: the largest absolute value that an entry may have; the profile's by default, which is 1. A larger one does not make the grid coarser but leaves
        room for fewer clients.
      num_values: how many values a client will encrypt, which determines the ring; the profile's own ring by default.

    Raises:
      UsageError: for an unknown profile.
      EncryptionError: where OpenFHE does not load.
    """
    from selgrad.config import EncryptionConfig

    chosen = EncryptionConfig.read({"profile": profile, "num_clients": 1, "bound": None if bound is None else float(bound)}, "encryption").scheme_profile
    scheme = encryption.CKKS(chosen if num_values is None else chosen.for_size(num_values))
    return KeyPair(scheme, tuple(encryption.make_keys(scheme, 2)))


@dataclasses.dataclass(frozen=True)
class Sealed:
    """An update, or a sum of updates, whose selected entries are ciphertexts.

    Attributes:
      exposed: the update with 0 in place of every encrypted entry, float64.
      mask: True where encrypted.
      ciphertexts: of the encrypted entries; None if the mask selects none.
      profile: of the encryption.
      num_clients: clients whose updates are summed.
      num_clipped: entries beyond the bound, which were clipped on request.
    """

    exposed: Any
    mask: Any
    ciphertexts: encryption.Ciphertexts | None
    profile: encryption.Profile
    num_clients: int = 1
    num_clipped: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the ciphertexts as they are sent."""
        return 0 if self.ciphertexts is None else self.ciphertexts.num_bytes


def _require_floats(tree: Any, caller: str) -> None:
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise UsageError(f"selgrad.{caller}: the tree has no arrays")
    for path, leaf in zip(trees.paths(tree), leaves, strict=True):
        kind = jnp.result_type(leaf)
        if not jnp.issubdtype(kind, jnp.floating):
            raise UsageError(f"selgrad.{caller}: leaf {path or 'of the tree'!r} is of type {kind}; give floats, and leave counters out of the tree")


def encrypt(tree: Any, mask: Any, keys: KeyPair, *, clip: bool = False) -> Sealed:
    """Encrypts the selected entries of an update with CKKS; the others stay as they are.

    Args:
      tree: a pytree of float arrays of any shape.
      mask: a pytree of bool of the same structure and shapes, True where encrypted.
      keys: as `selgrad.keys` returns them.
      clip: whether entries beyond the bound are clipped and counted; otherwise they are refused.

    Raises:
      UsageError: for leaves that are not floats.
      GradientError: if the mask is of another tree.
      EncryptionError: if an entry is not finite, or lies beyond the bound and `clip` is False.
    """
    _require_floats(tree, "encrypt")
    trees.require_same_tree(mask, tree)
    bits = jax.tree.map(lambda m: np.asarray(m, bool), mask)
    exposed = jax.tree.map(lambda leaf, m: np.where(m, 0.0, np.asarray(leaf, np.float64)), tree, bits)
    values = encryption.select(tree, bits)
    beyond = np.abs(values) > keys.bound
    if beyond.any() and not clip:
        raise EncryptionError(_too_large(tree, bits, keys.bound, int(beyond.sum())))
    sealed = None
    if values.size:
        keys.scheme.profile.require_clients(1)
        sealed = keys.scheme.encrypt(keys.party_keys[-1], values, encryption.mask_hash(bits), clip=True)
    return Sealed(exposed, bits, sealed, keys.scheme.profile, num_clipped=int(beyond.sum()))


def _too_large(tree: Any, bits: Any, bound: float, count: int) -> str:
    pairs = zip(trees.paths(tree), jax.tree.leaves(tree), jax.tree.leaves(bits), strict=True)
    largest, path = max((float(np.abs(np.where(m, np.asarray(leaf, np.float64), 0)).max(initial=0)), path) for path, leaf, m in pairs)
    return (
        f"{count} selected entries lie beyond the public bound {bound:g} (the largest is {largest:g} in leaf {path or 'of the tree'!r}); "
        "make keys with a larger bound, scale the update, or pass clip=True to have them clipped and counted"
    )


def add(updates: Sequence[Sealed]) -> Sealed:
    """Adds sealed updates under one mask and one key without decrypting any, as a server does.

    Raises:
      UsageError: if there are none.
      EncryptionError: if they have different masks or keys.
    """
    if not updates:
        raise UsageError("selgrad.add: there is nothing to add")
    first = updates[0]
    for update in updates[1:]:
        if encryption.mask_hash(update.mask) != encryption.mask_hash(first.mask):
            raise EncryptionError("the updates are of different masks; encrypt all with one")
    parts = [update.ciphertexts for update in updates if update.ciphertexts is not None]
    total = None
    if parts:
        total = encryption.CKKS(first.profile).add(parts)
    exposed = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *(update.exposed for update in updates))
    return Sealed(exposed, first.mask, total, first.profile, sum(update.num_clients for update in updates), sum(update.num_clipped for update in updates))


def decrypt(sealed: Sealed, keys: KeyPair) -> Any:
    """Decrypts an update, or a sum of updates, to floats: exposed entries are unchanged, encrypted ones exact on the profile's grid.

    Returns:
      A pytree of float64 arrays.

    Raises:
      EncryptionError: if the ciphertexts are under another key, or damaged.
    """
    if sealed.ciphertexts is None:
        return sealed.exposed
    integers = encryption.decrypt(keys.scheme, keys.party_keys, sealed.ciphertexts, encryption.mask_hash(sealed.mask))
    values: npt.NDArray[np.float64] = integers / 2.0**keys.scheme.profile.grid_bits
    return encryption.scatter(values, sealed.mask, sealed.exposed)


def _model(model: Any, params: Any, input_spec: InputSpec | TextSpec | None) -> tuple[Model, Any]:
    """Adapts a user's model and parameters to a `Model` and its parameter tree."""
    if isinstance(model, Model) and not isinstance(model, type):
        adapted: Model = model
    else:
        if input_spec is None:
            raise UsageError("give input_spec=selgrad.InputSpec(shape, num_classes), which says what the network reads")
        adapted = Spec.of("model", model).build(input_spec)
    return adapted, _to_ours(adapted, params)


def _to_ours(model: Model, tree: Any) -> Any:
    """Converts a tree of the user's structure to nested dicts with the model's leaf paths."""
    convert = getattr(getattr(model, "network", None), "ours", None)
    if convert is not None:
        return convert(tree)
    if isinstance(tree, dict) and set(tree) >= {"params"} and all(isinstance(part, dict) for part in tree.values()):
        # Flax variables.
        return {**tree["params"], **{name: part for name, part in tree.items() if name != "params"}}
    return tree if isinstance(tree, dict) else by_path(tree)


def _to_theirs(model: Model, tree: Any, like: Any) -> Any:
    """Converts a tree back to the user's structure; the inverse of `_to_ours`."""
    convert = getattr(getattr(model, "network", None), "theirs", None)
    if convert is not None:
        return convert(tree)
    if isinstance(like, dict) and set(like) == {"params"}:
        return {"params": tree}
    return tree


def attack(
    model: Any,
    params: Any,
    grads: Any,
    mask: Any = None,
    *,
    attack: Any = "idlg",
    input_spec: InputSpec | TextSpec | None = None,
    batch_size: int = 1,
    update: Any = None,
    labels: Any = None,
    valid: Any = None,
    public: Any = None,
    metric: Any = None,
    seed: int = 0,
) -> Reconstruction:
    """Attacks a given gradient; the attacker sees only its visible entries.

    Args:
      model: a Flax Linen module, an NNX module, a pair of functions (init, apply), or a `Model`; set options such as the mode with `selgrad.model`.
      params: the weights at which the gradient was taken: a Flax variables dict, an NNX state, or the functions' own pytree.
      grads: the client's update, a pytree with the structure of the parameters.
      mask: a pytree of bool, True where encrypted; None hides nothing.
      attack: a name, a mapping of `name` and arguments, or an `Attack`.
      input_spec: what the network reads: shape, classes, normalisation; not needed for a `Model`, which has its own.
      batch_size: number of inputs behind the gradient.
      update: how the client made the gradient; "gradient" of the batch by default.
      labels: (B,) integers, if the attacker knows them under the threat model.
      valid: (B, length) bool for text, if the attacker knows the padding.
      public: (images, labels), or a data set, that everybody has.
      metric: the client's own, for an attacker that reads the mask as evidence.
      seed: of the attack's starting point.

    Returns:
      A `Reconstruction`; `inputs` (B, *shape) as the model reads them.

    Raises:
      UsageError: for an unknown name, or an object that cannot be used.
      GradientError: if gradient, mask and parameters have different trees, or an entry is not finite.
    """
    adapted, weights = _model(model, params, input_spec)
    adapted = attacked(adapted)
    tree = _to_ours(adapted, grads)
    _require_floats(tree, "attack")
    expected, _ = adapted.split(weights)
    trees.require_same_tree(tree, expected)
    trees.require_finite(tree, "the gradient")
    hidden = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), bool), tree) if mask is None else _to_ours(adapted, mask)
    client_update: Update = Spec.of("update", {"name": "gradient", "batch_size": batch_size} if update is None else update).build()
    spec = Spec.of("attack", attack)
    built, auxiliary = bind(spec, adapted.input_spec)
    public_batches = None
    require_seed(seed)
    if public is not None:
        data = Spec.of("dataset", public).build()
        batches = [data.batch(i, client_update.batch_size) for i in range(len(data) // client_update.batch_size)]
        public_batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    if built.evidence and metric is None:
        raise UsageError(f"{spec.label} reads the mask as evidence; give the client's own metric")
    evidence = Evidence(Spec.of("metric", metric).build()) if built.evidence else None
    known_labels = None if labels is None else jnp.asarray(labels, jnp.int32)
    is_real = None if valid is None else jnp.asarray(valid, bool)
    as_arrays = lambda part: jax.tree.map(jnp.asarray, part)
    observation = observe(
        adapted, client_update, as_arrays(weights), as_arrays(tree), as_arrays(hidden), known_labels, is_real, auxiliary, public_batches, evidence
    )
    key = jax.random.key(seed)
    if not built.traceable:
        return built.reconstruct(key, observation)
    if built.prepare is None:
        return jax.jit(built.reconstruct)(key, observation)
    from selgrad.base import no_cache

    observation, report = built.prepare(observation, no_cache)
    prepared = dataclasses.replace(built, prepare=None)
    return jax.jit(prepared.reconstruct)(key, observation)._replace(report=report)
