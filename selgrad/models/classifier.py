"""The one way from a Flax Linen network to a `Model`: an image classifier with soft-label cross-entropy.

A network only maps inputs (B, *shape) to logits (B, num_classes); everything else is the same for all of them.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from selgrad.base import Batch, InputSpec, Key, Params
from selgrad.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """A network, what is public about its input, and the path of its last dense layer."""

    network: nn.Module
    input_spec: InputSpec
    head: str
    bypassed: frozenset[str] = frozenset()
    always_encrypted: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.input_spec, InputSpec):
            raise UsageError("this model reads images and the data set holds text; choose bert or gpt2")

    def init(self, key: Key) -> Params:
        """Fresh float32 parameters."""
        return self.network.init(key, jnp.zeros((1, *self.input_spec.shape)))["params"]

    def split(self, params: Params) -> tuple[Params, Params]:
        """Everything is trained and sent."""
        return params, {}

    def merge(self, sent: Params, frozen: Params) -> Params:
        """All parameters."""
        return sent

    def targets(self, batch: Batch) -> Array:
        """The labels."""
        return batch.labels

    def embed(self, params: Params, inputs: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """The identity: an attack on images optimises over the pixels themselves."""
        return inputs

    def logits(self, params: Params, embedded: Float[Array, "b ..."], valid: None = None) -> Float[Array, "b c"]:
        """Class scores."""
        result: Array = self.network.apply({"params": params}, embedded)  # type: ignore[assignment]
        return result

    def loss(self, params: Params, embedded: Float[Array, "b ..."], labels: Float[Array, "b c"], valid: None = None) -> Float[Array, ""]:
        """Mean over the batch of the cross-entropy with the label probabilities; linear in `labels`."""
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(self.logits(params, embedded)), axis=-1))
