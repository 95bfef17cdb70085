"""GPT-2: a causal decoder with a classification or a language-modelling head tied to the word embeddings.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (radford2019gpt2); the forward pass and the weights are those of
Hugging Face checkpoints.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from selgrad.base import InputSpec, TextSpec
from selgrad.errors import UsageError
from selgrad.models._transformer import (
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
from selgrad.models.huggingface import gpt2_config, load_params
from selgrad.models.matmul import matmul_transposed


class _Embeddings(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, embedded: Array) -> tuple[Array, Array]:
        words = Embedding(self.config.vocabulary_size, self.config, name="word")()
        positions = Embedding(self.config.max_positions, self.config, name="position")()
        return embedded + positions[: embedded.shape[1]], words


class _GPT2(nn.Module):
    config: TransformerConfig
    task: str
    num_classes: int

    @nn.compact
    def __call__(self, embedded: Array, valid: Array | None, depth: int | None = None, head: bool = True) -> tuple[Array | None, tuple[Array, ...]]:
        config = self.config
        x, words = _Embeddings(config, name="embeddings")(embedded)
        allowed = allowed_positions(embedded, valid, causal=True)
        inputs = []
        for i in range(config.num_layers if depth is None else depth):
            x, read = Layer(config, i, pre_norm=True, name=f"layer_{i}")(x, allowed)
            inputs.append(read)
        if depth is not None:
            return None, tuple(inputs)
        x = LayerNorm(config.epsilon, name="final_norm")(x)
        if not head:
            return x, tuple(inputs)
        if self.task == "causal_lm":
            return matmul_transposed(x, words), tuple(inputs)
        length = embedded.shape[1]
        last = jnp.full(embedded.shape[:1], length - 1) if valid is None else length - 1 - jnp.argmax(valid[:, ::-1], axis=1)
        pooled = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return Dense(self.num_classes, config, bias=False, name="classifier")(pooled), tuple(inputs)


def gpt2(
    input_spec: InputSpec | TextSpec,
    *,
    size: Literal["tiny", "mini", "small", "base"] | None = None,
    pretrained: str | None = None,
    task: Literal["classification", "causal_lm"] = "classification",
    embedding: Exposure = "frozen",
    activation: str = "gelu_new",
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
) -> Transformer:
    """Builds GPT-2, from scratch or from a Hugging Face checkpoint; classification reads the last token that is not padding.

    Args:
      input_spec: of a text data set.
      size: from scratch: tiny (2 layers of 128), mini (4x256), small (4x512) or base (12x768, GPT-2 itself); tiny where nothing is given.
      pretrained: a folder with config.json and safetensors, or a name on the Hugging Face hub; excludes `size`.
      task: a class for each sequence, or the next token at each position.
      embedding: whether the word-embedding matrix is frozen and not sent, sent, or always sent encrypted. Its gradient names the tokens.
      activation: of the MLP from scratch.
      lora_rank: of adapters of the fused query-key-value kernel; only they are trained and sent. 0 has none.
      lora_alpha: their scale times the rank.

    Raises:
      UsageError: if sizes or tokenizer do not fit together, or a checkpoint needs features that are not implemented.
      DataError: if a checkpoint is missing or damaged.
    """
    if size is not None and pretrained is not None:
        raise UsageError(f"size={size!r} and pretrained={pretrained!r} exclude each other; the checkpoint has its own size")
    adapters: dict[str, Any] = {"lora_rank": lora_rank, "lora_alpha": lora_alpha}
    if pretrained is not None:
        config = gpt2_config(pretrained, **adapters)
    else:
        layers, width, heads = SIZES[size or "tiny"]
        vocabulary = getattr(input_spec, "vocabulary_size", 1)
        config = TransformerConfig(vocabulary, 1024, 0, width, layers, heads, 4 * width, activation, 1e-5, **adapters)
    kind: Task = task
    spec = task_spec(input_spec, kind, config.vocabulary_size)
    check(config, spec)
    head = "classifier" if task == "classification" else "embeddings/word"
    return Transformer(
        _GPT2(config, task, spec.num_classes), spec, config, kind, head, True, embedding, pretrained, stored=load_params if pretrained is not None else None
    )
