"""How an attacker treats the entries that it cannot see: the attacker ladder.

`zero` is the rung of LAMP's mask option and MaskCrypt's evaluation; the others know the mask (docs/threat_model.md, docs/theory.md section 6). `bounded` takes
the mask itself as evidence, after the Bayesian framework of Balunovic et al. 2022 (balunovic2022bayesian).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from selgrad import trees
from selgrad.base import Batch, GradientContext, Grads, InputSpec, KeepsStatistics, Key, Model, Observation, Params, TextSpec
from selgrad.errors import UsageError

Hidden: TypeAlias = Literal["zero", "average", "ignore", "bounded", "complete", "learned"]


class Target(NamedTuple):
    """The values that a dummy update is compared with.

    Attributes:
      grads: values, 0 where they do not count.
      counted: which of them count, a tree of bool, or of 1 and 0 where a distance multiplies by it.
      norms: of each leaf of `grads`, in flattening order; computed once, so that no step of an attack computes them again.
      inverse: 1 over the norm of all of `grads`, the unit of distances, so that they depend neither on the scale of the loss nor on how much of the gradient
        is hidden; 1 where that norm is 0.
      penalty: of the mask as evidence, relative to the squared norm of `grads`, as every distance is.
    """

    grads: Grads
    counted: Grads
    norms: Float[Array, " leaves"]
    inverse: Float[Array, ""]
    penalty: Array | float = 0.0

    @classmethod
    def of(cls, grads: Grads, counted: Grads) -> Target:
        """Computes the norms of the given values relative to their largest entry: squares of entries below 1e-19 are 0 in float32."""
        leaves = jax.tree.leaves(grads)
        largest = jnp.stack([jnp.abs(leaf).max() for leaf in leaves]).max()
        unit = jnp.where(largest > 0, largest, 1)
        norms = unit * trees.safe_sqrt(trees.by_leaf(lambda leaf: trees.total(lambda g: (g / unit) ** 2, leaf), leaves))
        whole = unit * jnp.linalg.norm(norms / unit)
        return cls(grads, counted, norms, jnp.where(largest > 0, 1 / jnp.where(largest > 0, whole, 1), 1))


def fill(observation: Observation, hidden: Hidden) -> Target:
    """Returns the target of gradient matching under a mask.

    Args:
      observation: the attacker's.
      hidden: "zero" matches every entry, hidden ones against 0; "average" against the mean of the leaf's visible entries (0 where none is
        visible); "ignore" and the rungs above it match visible entries only.
    """
    visible, mask, bypassed = observation.visible, observation.mask, observation.model.bypassed
    # A dummy that replaces the embeddings gives no gradient to the leaves that `embed` reads. This is known before anything is traced: a large target must
    # not be copied in each step of an attack.
    reached = jax.tree_util.tree_map_with_path(lambda path, _: trees.path_name(path) not in bypassed, mask)

    def value(leaf: Array, m: Array, r: bool) -> Array:
        if not r:
            return jnp.zeros_like(leaf)
        return jnp.where(m, leaf.sum() / jnp.maximum((~m).sum(), 1), leaf) if hidden == "average" else leaf

    def counted(m: Array, r: bool) -> Array:
        return ~m if r and hidden not in ("zero", "average") else jnp.full(m.shape, r)

    return Target.of(jax.tree.map(value, visible, mask, reached), jax.tree.map(counted, mask, reached))


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """A model whose inputs are embedded already, so that a metric can score a dummy; it delegates everything else.

    Every member is written out because a run-time check of a protocol does not call `__getattr__` (Python 3.12).
    """

    model: Model

    @property
    def input_spec(self) -> InputSpec | TextSpec:
        """Delegates to the model."""
        return self.model.input_spec

    @property
    def head(self) -> str:
        """Delegates to the model."""
        return self.model.head

    @property
    def bypassed(self) -> frozenset[str]:
        """Delegates to the model."""
        return self.model.bypassed

    @property
    def always_encrypted(self) -> frozenset[str]:
        """Delegates to the model."""
        return self.model.always_encrypted

    def init(self, key: Key) -> Params:
        """Delegates to the model."""
        return self.model.init(key)

    def split(self, params: Params) -> tuple[Params, Params]:
        """Delegates to the model."""
        return self.model.split(params)

    def merge(self, sent: Params, frozen: Params) -> Params:
        """Delegates to the model."""
        return self.model.merge(sent, frozen)

    def targets(self, batch: Batch) -> Array:
        """Returns the labels, which are targets already."""
        return batch.labels

    def embed(self, params: Params, inputs: Array) -> Array:
        """Returns the inputs, which are embedded already."""
        return inputs

    def logits(self, params: Params, embedded: Array, valid: Array | None = None) -> Array:
        """Delegates to the model."""
        return self.model.logits(params, embedded, valid)

    def loss(self, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Array:
        """Delegates to the model."""
        return self.model.loss(params, embedded, labels, valid)

    def statistics_update(self, params: Params, embedded: Array) -> Params:
        """Delegates to the model; empty for a model that keeps no running statistics."""
        return self.model.statistics_update(params, embedded) if isinstance(self.model, KeepsStatistics) else {}


def mask_evidence(key: Key, observation: Observation, candidate: Grads, inputs: Array, probabilities: Array, inverse: Array) -> Array:
    """Returns a relaxed -log p(mask | dummy): the sum over hidden entries of relu(1 - s_i / tau)^2, weighted so that magnitude gives relu(tau - |g_i|)^2.

    The client hid the entries of the largest scores, so every hidden score is at least tau, the largest visible one. s is the client's own metric,
    evaluated at the dummy for hidden entries and at the observed values elsewhere. 0 where the metric does not depend on the data, or where nothing is
    hidden.

    Args:
      key: for metrics that draw probes.
      observation: with `evidence`, the client's metric.
      candidate: the dummy's update.
      inputs, probabilities: the dummy, embedded, and its soft labels.
      inverse: 1 over the norm of the visible entries.

    Returns:
      () float, relative to the squared norm of the visible entries.

    Raises:
      UsageError: if the observation does not say which metric the client used.
    """
    evidence = observation.evidence
    if evidence is None:
        raise UsageError("hidden='bounded' reads the mask as evidence and needs to know the client's metric; give it as Observation.evidence")
    known = jax.tree.map(jnp.where, observation.mask, candidate, observation.visible)
    labels = jnp.argmax(jax.lax.stop_gradient(probabilities), axis=-1).astype(jnp.int32)
    batch = Batch(inputs, labels, observation.valid)
    context = GradientContext(
        model=_Embedded(observation.model),
        params=observation.params,
        batch=batch,
        update=observation.update,
        grads=known,
        key=key,
        public=observation.public,
    )
    scores = evidence.metric(context)

    def largest(leaf: Array, m: Array) -> Array:
        return jnp.where(m, -jnp.inf, leaf).max()

    tops = jax.tree.map(largest, scores, observation.mask)
    if not evidence.per_leaf:
        overall = jnp.stack(jax.tree.leaves(tops)).max()
        tops = jax.tree.map(lambda _: overall, tops)

    def penalty(s: Array, m: Array, v: Array, top: Array) -> Array:
        tau = jax.lax.stop_gradient(top)
        usable = jnp.isfinite(tau) & (tau > 0)
        hinge = jax.nn.relu(1 - s / jnp.where(usable, tau, 1)) ** 2
        return jnp.where(usable, jnp.where(m, hinge, 0).sum(), 0) * (inverse * jnp.abs(v).max()) ** 2

    biggest = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(observation.visible)]).max()
    values = observation.visible if evidence.per_leaf else jax.tree.map(lambda _: biggest, observation.visible)
    terms = jax.tree.map(penalty, scores, observation.mask, values, tops)
    total: Array = jnp.stack(jax.tree.leaves(terms)).sum()
    return total
