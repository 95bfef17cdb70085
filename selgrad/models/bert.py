"""BERT: a bidirectional encoder with a classification or a masked-language-modelling head.

Devlin et al., "BERT", NAACL 2019 (devlin2019bert); the forward pass and the weights are those of Hugging Face checkpoints.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from selgrad.base import InputSpec, TextSpec
from selgrad.errors import UsageError
from selgrad.models._transformer import (
    ACTIVATIONS,
    SIZES,
    Dense,
    Embedding,
    Exposure,
    Layer,
    LayerNorm,
    Task,
    Transformer,
    TransformerConfig,
    allowed_positions,
    check,
    task_spec,
)
from selgrad.models.huggingface import bert_config, load_params
from selgrad.models.matmul import matmul_transposed


class _Embeddings(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, embedded: Array) -> tuple[Array, Array]:
        config = self.config
        words = Embedding(config.vocabulary_size, config, name="word")()
        positions = Embedding(config.max_positions, config, name="position")()
        types = Embedding(config.token_types, config, name="token_type")()
        x = embedded + positions[: embedded.shape[1]] + types[0]
        return LayerNorm(config.epsilon, name="norm")(x), words


class _MaskedHead(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array, words: Array) -> Array:
        config = self.config
        x = ACTIVATIONS[config.activation](Dense(config.width, config, name="dense")(x))
        x = LayerNorm(config.epsilon, name="norm")(x)
        return matmul_transposed(x, words) + self.param("bias", nn.initializers.zeros_init(), (config.vocabulary_size,))


class _Bert(nn.Module):
    config: TransformerConfig
    task: str
    num_classes: int

    @nn.compact
    def __call__(self, embedded: Array, valid: Array | None, depth: int | None = None) -> tuple[Array | None, tuple[Array, ...]]:
        config = self.config
        x, words = _Embeddings(config, name="embeddings")(embedded)
        allowed = allowed_positions(embedded, valid, causal=False)
        inputs = []
        for i in range(config.num_layers if depth is None else depth):
            after, read = Layer(config, i, pre_norm=False, name=f"layer_{i}")(x, allowed)
            inputs.append(read)
            x = after
        if depth is not None:
            return None, tuple(inputs)
        if self.task == "masked_lm":
            return _MaskedHead(config, name="masked_head")(x, words), tuple(inputs)
        pooled = jnp.tanh(Dense(config.width, config, name="pooler")(x[:, 0]))
        return Dense(self.num_classes, config, name="classifier")(pooled), tuple(inputs)


def bert(
    input_spec: InputSpec | TextSpec,
    *,
    size: Literal["tiny", "mini", "small", "base"] | None = None,
    pretrained: str | None = None,
    task: Literal["classification", "masked_lm"] = "classification",
    embedding: Exposure = "frozen",
    activation: str = "gelu",
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
) -> Transformer:
    """Builds BERT, from scratch or from a Hugging Face checkpoint.

    Args:
      input_spec: of a text data set.
      size: from scratch: tiny (2 layers of 128), mini (4x256), small (4x512) or base (12x768); tiny where nothing is given.
      pretrained: a folder with config.json and safetensors, or a name on the Hugging Face hub; excludes `size`.
      task: a class for each sequence, or the token at each position; clients do not replace inputs by [MASK], and their loss counts every token.
      embedding: whether the word-embedding matrix is frozen and not sent, sent, or always sent encrypted. Its gradient names the tokens.
      activation: of the MLP from scratch.
      lora_rank: of adapters of the query and value kernels; only they are trained and sent. 0 has none.
      lora_alpha: their scale times the rank.

    Raises:
      UsageError: if sizes or tokenizer do not fit together, or a checkpoint needs features that are not implemented.
      DataError: if a checkpoint is missing or damaged.
    """
    if size is not None and pretrained is not None:
        raise UsageError(f"size={size!r} and pretrained={pretrained!r} exclude each other; the checkpoint has its own size")
    adapters: dict[str, Any] = {"lora_rank": lora_rank, "lora_alpha": lora_alpha}
    if pretrained is not None:
        config = bert_config(pretrained, **adapters)
    else:
        layers, width, heads = SIZES[size or "tiny"]
        vocabulary = getattr(input_spec, "vocabulary_size", 1)
        config = TransformerConfig(vocabulary, 512, 2, width, layers, heads, 4 * width, activation, 1e-12, **adapters)
    kind: Task = task
    spec = task_spec(input_spec, kind, config.vocabulary_size)
    check(config, spec)
    head = "classifier" if task == "classification" else "masked_head"
    return Transformer(
        _Bert(config, task, spec.num_classes), spec, config, kind, head, False, embedding, pretrained, stored=load_params if pretrained is not None else None
    )
