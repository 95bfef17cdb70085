"""Vision transformer: patches as tokens, a class token, pre-norm layers, one dense layer on the class token.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (dosovitskiy2021vit), with the sizes that CIFAR implementations use. Layers are those of the
text transformers, so code that handles query, key and value there also handles them here.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from selgrad.base import InputSpec
from selgrad.errors import UsageError
from selgrad.models._transformer import Dense, Layer, LayerNorm, TransformerConfig
from selgrad.models.classifier import ImageClassifier


class _ViT(nn.Module):
    config: TransformerConfig
    num_classes: int
    patch: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        size, config = self.patch, self.config
        x = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3).reshape(batch, -1, size * size * channels)
        x = Dense(config.width, config, name="patches")(x)
        normal = nn.initializers.normal(config.initializer_range)
        first = self.param("class_token", normal, (1, 1, config.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, config.width)), x], axis=1)
        x = x + self.param("positions", normal, (1, x.shape[1], config.width))
        allowed = jnp.ones((batch, x.shape[1], x.shape[1]), bool)
        for i in range(config.num_layers):
            x, _ = Layer(config, i, pre_norm=True, name=f"layer_{i}")(x, allowed)
        return Dense(self.num_classes, config, name="head")(LayerNorm(config.epsilon, name="norm")(x[:, 0]))


def vit(input_spec: InputSpec, *, patch: int = 4, width: int = 192, num_layers: int = 6, num_heads: int = 3, mlp_ratio: int = 4) -> ImageClassifier:
    """Builds a small vision transformer.

    Args:
      input_spec: of the data set; height and width are multiples of the patch.
      patch: pixels along each side of a patch.
      width: of a token.
      num_layers: transformer layers.
      num_heads: attention heads of each layer.
      mlp_ratio: width of a layer's MLP divided by that of a token.

    Raises:
      UsageError: if sizes do not fit together.
    """
    if any(n % patch for n in input_spec.shape[:2]):
        raise UsageError(f"patch={patch} does not divide pictures of {input_spec.shape[0]} x {input_spec.shape[1]} pixels")
    if num_heads < 1 or width % num_heads:
        raise UsageError(f"width={width} is not a multiple of num_heads={num_heads}")
    tokens = (input_spec.shape[0] // patch) * (input_spec.shape[1] // patch) + 1
    config = TransformerConfig(
        vocabulary_size=0, max_positions=tokens, token_types=0, width=width, num_layers=num_layers, num_heads=num_heads, mlp_width=mlp_ratio * width,
        activation="gelu", epsilon=1e-6,
    )  # fmt: skip
    kernels = tuple((f"layer_{i}/attention/qkv/kernel",) for i in range(num_layers))
    return ImageClassifier(_ViT(config, input_spec.num_classes, patch), input_spec, "head", attention_kernels=kernels, tokens_per_input=tokens)
