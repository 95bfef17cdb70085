"""The wrapper that makes a network a `Model`: an image classifier with soft-label cross-entropy.

A network only maps inputs (B, *shape) to logits (B, num_classes); everything else is the same for all networks, built-in or user-defined.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from selgrad.base import Batch, InputSpec, Key, Params
from selgrad.errors import UsageError
from selgrad.models.networks import Network, as_network

Mode: TypeAlias = Literal["evaluation", "train"]
Statistics: TypeAlias = Literal["kept", "known", "sent", "encrypted"]


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """A network, the public facts about its input, and the path of its last dense layer.

    Parameters are the network's, with each of its other collections (batch statistics) under its own name next to them.

    Attributes:
      network: a Flax Linen module, or anything that `as_network` takes.
      input_spec: public facts.
      head: path of the last dense layer; "" where there is none, and labels are then found by trial.
      bypassed, always_encrypted: as in `Model`.
      mode: "evaluation" normalises by running statistics, which are public; "train" by those of the batch, which an attacker simulates with those of
        its dummies.
      statistics: in mode "train", whether the client keeps its new running statistics, keeps them although the attacker knows their change ("known"), sends
        their change in the clear with the gradient (an attacker matches what it knows), or sends it encrypted.
      dropout_seed: in mode "train", seed of stochastic layers; the client's draws are public.
      attention_kernels: for a transformer, the paths of the dense kernels of each layer that read the same input.
      tokens_per_input: number of rows that one input contributes to a dense layer's gradient.
    """

    network: Any
    input_spec: InputSpec
    head: str
    bypassed: frozenset[str] = frozenset()
    always_encrypted: frozenset[str] = frozenset()
    mode: Mode = "evaluation"
    statistics: Statistics = "kept"
    dropout_seed: int | None = None
    attention_kernels: tuple[tuple[str, ...], ...] = ()
    tokens_per_input: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.input_spec, InputSpec):
            raise UsageError("this model reads images and the data set holds text; choose bert or gpt2")
        if self.mode == "evaluation" and self.statistics != "kept":
            raise UsageError(f"statistics={self.statistics!r}: in mode 'evaluation' there are no new batch statistics to send or know; choose mode 'train'")
        if self.statistics == "encrypted":
            object.__setattr__(self, "always_encrypted", self.always_encrypted | frozenset(self._network.collections))

    @property
    def _keeps(self) -> bool:
        return self.statistics in ("kept", "known")

    @property
    def attacked(self) -> ImageClassifier | None:
        """The model that an attacker simulates where it knows statistics that are not sent; else None."""
        return dataclasses.replace(self, statistics="sent") if self.statistics == "known" else None

    @property
    def _network(self) -> Network:
        return as_network(self.network, self.input_spec.shape)

    def _parts(self, params: Params) -> tuple[Params, Params]:
        """Returns the network's parameters and its other collections."""
        others = self._network.collections
        if not others:
            return params, {}
        return {k: v for k, v in params.items() if k not in others}, {k: v for k, v in params.items() if k in others}

    def _apply(self, params: Params, embedded: Array) -> tuple[Array, Params]:
        key = None if self.dropout_seed is None else jax.random.key(self.dropout_seed)
        return self._network.apply(*self._parts(params), embedded, self.mode == "train", key)

    def init(self, key: Key) -> Params:
        """Returns fresh float32 parameters."""
        params, others = self._network.init(key)
        return {**params, **others} if others else params

    def split(self, params: Params) -> tuple[Params, Params]:
        """Splits off the batch statistics that the client keeps; everything else is trained and sent."""
        return self._parts(params) if self._keeps else (params, {})

    def merge(self, sent: Params, frozen: Params) -> Params:
        """Merges all parameters."""
        return {**sent, **frozen} if frozen else sent

    def targets(self, batch: Batch) -> Array:
        """Returns the labels."""
        return batch.labels

    def embed(self, params: Params, inputs: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Returns the inputs unchanged: an attack on images optimises the pixels themselves."""
        return inputs

    def logits(self, params: Params, embedded: Float[Array, "b ..."], valid: Array | None = None) -> Float[Array, "b c"]:
        """Returns class scores."""
        return self._apply(params, embedded)[0]

    def loss(self, params: Params, embedded: Float[Array, "b ..."], labels: Float[Array, "b c"], valid: Array | None = None) -> Float[Array, ""]:
        """Returns the batch's mean cross-entropy with the label probabilities; linear in `labels`."""
        return _cross_entropy(self.logits(params, embedded), labels)

    def learn(self, params: Params, embedded: Float[Array, "b ..."], labels: Float[Array, "b c"], key: Key) -> tuple[Float[Array, ""], Params]:
        """Returns the loss of an ordinary training step and the collections after it, with batch statistics and fresh dropout in every mode."""
        logits, others = self._network.apply(*self._parts(params), embedded, True, key)
        return _cross_entropy(logits, labels), others

    def statistics_update(self, params: Params, embedded: Float[Array, "b ..."]) -> Params:
        """Returns the change of running statistics on a batch, old - new, where the client sends it; else nothing."""
        return {} if self._keeps else self._lost(params, self._apply(params, embedded)[1])

    def statistics_loss(self, params: Params, embedded: Float[Array, "b ..."]) -> Params:
        """Returns the change of running statistics by training on a batch, old - new, in every mode and wherever they are kept; empty if there are none."""
        key = jax.random.key(0 if self.dropout_seed is None else self.dropout_seed)
        return self._lost(params, self._network.apply(*self._parts(params), embedded, True, key)[1])

    def _lost(self, params: Params, others: Params) -> Params:
        return jax.tree.map(lambda old, new: old - new, self._parts(params)[1], others)


def _cross_entropy(logits: Float[Array, "b c"], labels: Float[Array, "b c"]) -> Float[Array, ""]:
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))
