"""The parts of BERT and GPT-2: attention, the two orders of a transformer layer, and the `TextModel` around a network.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (vaswani2017attention). There is no dropout: attacks are evaluated in eval mode, as in LAMP.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from selgrad import trees
from selgrad.base import Batch, Key, Params, TextSpec
from selgrad.errors import UsageError
from selgrad.models.matmul import matmul, matmul_transposed
from selgrad.models.residual import kept

Exposure: TypeAlias = Literal["frozen", "sent", "always_encrypted"]
Task: TypeAlias = Literal["classification", "causal_lm", "masked_lm"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Everything that changes the forward pass.

    Attributes:
      vocabulary_size, max_positions, token_types: rows of the embedding matrices; token_types 0 has none.
      width, num_layers, num_heads, mlp_width: sizes.
      activation: of the MLP, a name of `ACTIVATIONS`.
      epsilon: of the layer norms.
      scale_attention: divide scores by the square root of the head's width.
      scale_by_layer: also divide them by the layer's number (from 1).
      initializer_range: standard deviation of fresh weights.
      lora_rank: of the adapters of the query and value kernels; 0 has none.
      lora_alpha: their scale times the rank.
    """

    vocabulary_size: int
    max_positions: int
    token_types: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float
    scale_attention: bool = True
    scale_by_layer: bool = False
    initializer_range: float = 0.02
    lora_rank: int = 0
    lora_alpha: float = 16.0


class Dense(nn.Module):
    """x W + b, with an optional low-rank adapter x A B * alpha / rank (Hu et al. 2022, hu2022lora); B starts at 0."""

    features: int
    config: TransformerConfig
    bias: bool = True
    adapter: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (..., width) to (..., features)."""
        normal = nn.initializers.normal(self.config.initializer_range)
        y = matmul(x, self.param("kernel", normal, (x.shape[-1], self.features)))
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,))
        if self.adapter and self.config.lora_rank:
            rank = self.config.lora_rank
            a = self.param("lora_a", nn.initializers.lecun_normal(), (x.shape[-1], rank))
            b = self.param("lora_b", nn.initializers.zeros_init(), (rank, self.features))
            y = y + matmul(matmul(x, a), b) * (self.config.lora_alpha / rank)
        return y


class LayerNorm(nn.Module):
    """Normalisation over the last axis; the variance is taken of the centred values, which float32 needs."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (..., width) to the same shape."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon) * scale + bias


class Embedding(nn.Module):
    """A matrix of embeddings; the caller chooses which rows to read."""

    rows: int
    config: TransformerConfig

    @nn.compact
    def __call__(self) -> Array:
        """Returns the matrix, (rows, width)."""
        return self.param("embedding", nn.initializers.normal(self.config.initializer_range), (self.rows, self.config.width))


class Attention(nn.Module):
    """Multi-head attention; `fused` has one kernel for query, key and value, as in GPT-2."""

    config: TransformerConfig
    layer: int
    fused: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], allowed: Bool[Array, "b q t"]) -> Float[Array, "b t d"]:
        """Lets each position read the positions allowed to it."""
        config = self.config
        if self.fused:
            q, k, v = jnp.split(Dense(3 * config.width, config, adapter=True, name="qkv")(x), 3, axis=-1)
        else:
            q, k, v = (Dense(config.width, config, adapter=name != "key", name=name)(x) for name in ("query", "key", "value"))
        q, k, v = (y.reshape(*y.shape[:-1], config.num_heads, -1) for y in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if config.scale_attention:
            scores = scores / jnp.sqrt(jnp.asarray(q.shape[-1], scores.dtype))
        if config.scale_by_layer:
            scores = scores / (self.layer + 1)
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return Dense(config.width, config, name="output")(mixed.reshape(x.shape))


class MLP(nn.Module):
    """A multilayer perceptron of two dense layers."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (..., width) to the same shape."""
        hidden = ACTIVATIONS[self.config.activation](Dense(self.config.mlp_width, self.config, name="up")(x))
        return Dense(self.config.width, self.config, name="down")(hidden)


class Layer(nn.Module):
    """One transformer layer; the norms come after each sum (BERT) or before each part (GPT-2, `pre_norm`).

    Besides its output it returns the input of the attention kernels, since exact attacks test that.
    """

    config: TransformerConfig
    index: int
    pre_norm: bool

    @nn.compact
    def __call__(self, x: Array, allowed: Array) -> tuple[Array, Array]:
        """Returns the layer's output (B, T, width) and its attention input (B, T, width)."""
        config = self.config
        attention = Attention(config, self.index, fused=self.pre_norm, name="attention")
        mlp = MLP(config, name="mlp")
        norms = LayerNorm(config.epsilon, name="attention_norm"), LayerNorm(config.epsilon, name="mlp_norm")
        if self.pre_norm:
            read = norms[0](x)
            x = kept(x + attention(read, allowed))
            return kept(x + mlp(norms[1](x))), read
        mixed = kept(norms[0](x + attention(x, allowed)))
        return kept(norms[1](mixed + mlp(mixed))), x


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A network behind the `TextModel` protocol.

    Attributes:
      network: called with (embedded, valid, depth); returns scores and the attention inputs of its layers. Where `depth` is given, only those of the first
        `depth` layers are returned, and scores are None.
      input_spec: public facts.
      config: of the network.
      task: the targets of the loss.
      head: path of the last dense layer.
      causal: whether a position reads only itself and the positions before it.
      exposure: whether the word-embedding matrix is `frozen` (not trained, not sent), `sent` like every other leaf, or sent
        `always_encrypted`.
      pretrained: folder or hub name of the weights that `init` starts from.
      embedding: path of the word-embedding matrix.
      stored: replaces fresh weights by the pretrained ones.
    """

    network: nn.Module
    input_spec: TextSpec
    config: TransformerConfig
    task: Task
    head: str
    causal: bool
    exposure: Exposure
    pretrained: str | None = None
    embedding: str = "embeddings/word/embedding"
    stored: Callable[[Transformer, Params], Params] | None = None

    @property
    def bypassed(self) -> frozenset[str]:
        """The word-embedding matrix, where it is sent at all."""
        return frozenset() if self.exposure == "frozen" or self.config.lora_rank else frozenset({self.embedding})

    @property
    def always_encrypted(self) -> frozenset[str]:
        """The word-embedding matrix, where `exposure` asks for it."""
        return self.bypassed if self.exposure == "always_encrypted" else frozenset()

    @property
    def attention_kernels(self) -> tuple[tuple[str, ...], ...]:
        """Query, key and value kernels of each layer (their adapters' first factors with LoRA), with rows in the order of the layer's input."""
        names = ("qkv",) if self.causal else ("query", "key", "value")
        leaf = "lora_a" if self.config.lora_rank else "kernel"
        kept = [name for name in names if not (self.config.lora_rank and name == "key")]
        return tuple(tuple(f"layer_{i}/attention/{name}/{leaf}" for name in kept) for i in range(self.config.num_layers))

    @property
    def num_heads(self) -> int:
        """Number of attention heads of each layer."""
        return self.config.num_heads

    @functools.cached_property
    def _draw(self) -> Any:
        # Compiled once for all seeds; the compiler removes everything from the forward pass but the draws.
        return jax.jit(lambda key: self.network.init(key, jnp.zeros((1, *self.input_spec.shape, self.config.width)), None)["params"])

    def init(self, key: Key) -> Params:
        """Returns fresh float32 parameters, or the pretrained ones with fresh parts where the checkpoint has none."""
        fresh: Params = self._draw(key)
        return fresh if self.stored is None else self.stored(self, fresh)

    def split(self, params: Params) -> tuple[Params, Params]:
        """Splits off the frozen word embeddings; with LoRA, only the adapters are sent."""
        if self.config.lora_rank:
            return trees.partition(params, lambda path: path.endswith(("lora_a", "lora_b")))
        if self.exposure == "frozen":
            return trees.partition(params, lambda path: path != self.embedding)
        return params, {}

    def merge(self, sent: Params, frozen: Params) -> Params:
        """Merges all parameters."""
        return trees.merge(sent, frozen)

    def targets(self, batch: Batch) -> Int[Array, "b ..."]:
        """Returns class labels, or for the language-modelling tasks the tokens, -1 on padding."""
        if self.task == "classification":
            return batch.labels
        return batch.inputs if batch.valid is None else jnp.where(batch.valid, batch.inputs, -1)

    def embed(self, params: Params, inputs: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns word embeddings; positions, token types and the first norm belong to the network."""
        return trees.subtree(params, self.embedding)[inputs]

    def logits(self, params: Params, embedded: Float[Array, "b t d"], valid: Bool[Array, "b t"] | None = None) -> Float[Array, "b ..."]:
        """Returns class scores (B, classes), or (B, T, vocabulary) for language modelling."""
        result: Array = self.network.apply({"params": params}, embedded, valid)[0]  # type: ignore[index]
        return result

    def loss(self, params: Params, embedded: Float[Array, "b t d"], labels: Float[Array, "b ..."], valid: Bool[Array, "b t"] | None = None) -> Float[Array, ""]:
        """Returns the mean cross-entropy over sequences, or over predicted tokens; linear in `labels`."""
        scores = jax.nn.log_softmax(self.logits(params, embedded, valid))
        if self.task == "classification":
            return -jnp.mean(jnp.sum(labels * scores, axis=-1))
        weights = jnp.ones(embedded.shape[:2], scores.dtype) if valid is None else valid.astype(scores.dtype)
        if self.task == "causal_lm":
            # Position t predicts token t + 1.
            scores, labels, weights = scores[:, :-1], labels[:, 1:], weights[:, 1:]
        return -jnp.sum(weights * jnp.sum(labels * scores, axis=-1)) / jnp.maximum(weights.sum(), 1)

    def attention_inputs(
        self, params: Params, embedded: Float[Array, "b t d"], valid: Bool[Array, "b t"] | None, num_layers: int
    ) -> tuple[Float[Array, "b t d"], ...]:
        """Returns the inputs of the attention kernels of the first layers; later layers are not computed."""
        inputs: tuple[Array, ...] = self.network.apply({"params": params}, embedded, valid, num_layers)[1]  # type: ignore[index,assignment]
        return inputs

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self.config.vocabulary_size

    def next_states(self, params: Params, tokens: Int[Array, "b t"], valid: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns each position's state for predicting the next token, for a causal language model."""
        states: Array = self.network.apply({"params": params}, self.embed(params, tokens), valid, head=False)[0]  # type: ignore[index,assignment]
        return states

    def log_likelihood(self, params: Params, states: Float[Array, "*b d"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
        """Returns the log-probability of tokens after states, in nats, for a causal language model with a tied head."""
        words = trees.subtree(params, self.embedding)
        return (states * words[tokens]).sum(axis=-1) - log_sum_exp_products(states, words)

    def log_perplexity(self, params: Params, tokens: Int[Array, "b t"], valid: Bool[Array, "b t"]) -> Float[Array, " b"]:
        """Returns the mean negative log-likelihood per token after the first, in nats."""
        log_likelihoods = self.log_likelihood(params, self.next_states(params, tokens, valid)[:, :-1], tokens[:, 1:])
        weights = valid[:, 1:].astype(log_likelihoods.dtype)
        return -jnp.sum(weights * log_likelihoods, axis=1) / jnp.maximum(weights.sum(axis=1), 1)


_ROWS_AT_ONCE = 2048


def log_sum_exp_products(states: Float[Array, "*b d"], words: Float[Array, "v d"]) -> Float[Array, "*b"]:
    """Returns log(sum over words of exp(state . word)), a few rows at a time: scores over a whole vocabulary would not fit the cache."""
    size, parts = len(words), -(-len(words) // _ROWS_AT_ONCE)
    rows = jnp.pad(words, ((0, parts * _ROWS_AT_ONCE - size), (0, 0))).reshape(parts, _ROWS_AT_ONCE, -1)

    def add(carry: tuple[Array, Array], item: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (largest, total), (part, first) = carry, item
        scores = matmul_transposed(states, part)
        scores = jnp.where(first + jnp.arange(_ROWS_AT_ONCE) < size, scores, -jnp.inf)
        new = jnp.maximum(largest, jax.lax.stop_gradient(scores.max(axis=-1)))
        return (new, total * jnp.exp(largest - new) + jnp.exp(scores - new[..., None]).sum(axis=-1)), None

    shape, dtype = states.shape[:-1], states.dtype
    start = jnp.full(shape, jnp.finfo(dtype).min, dtype), jnp.zeros(shape, dtype)
    (largest, total), _ = jax.lax.scan(add, start, (rows, jnp.arange(parts) * _ROWS_AT_ONCE))
    return largest + jnp.log(total)


def allowed_positions(embedded: Array, valid: Array | None, *, causal: bool) -> Bool[Array, "b t t"]:
    """Returns which positions (last axis) each position (middle axis) may read."""
    batch, length = embedded.shape[:2]
    allowed = jnp.ones((batch, length, length), bool) if valid is None else jnp.broadcast_to(valid[:, None, :], (batch, length, length))
    return allowed & jnp.tril(jnp.ones((length, length), bool)) if causal else allowed


def check(config: TransformerConfig, spec: TextSpec) -> None:
    """Refuses sizes that do not fit together.

    Raises:
      UsageError: naming the value and the remedy.
    """
    if config.activation not in ACTIVATIONS:
        raise UsageError(f"activation {config.activation!r} is not built; known: {', '.join(sorted(ACTIVATIONS))}")
    if config.width % config.num_heads:
        raise UsageError(f"width {config.width} is not a multiple of {config.num_heads} heads")
    if spec.shape[0] > config.max_positions:
        raise UsageError(f"sequences of {spec.shape[0]} tokens are longer than the model's {config.max_positions} positions; lower max_length")
    if spec.vocabulary_size > config.vocabulary_size:
        raise UsageError(f"the tokenizer knows {spec.vocabulary_size} tokens and the model {config.vocabulary_size}; give the data set the model's tokenizer")
    if config.lora_rank < 0:
        raise UsageError(f"lora_rank={config.lora_rank} must be 0 (no adapters) or more")


SIZES: dict[str, tuple[int, int, int]] = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
"""Layers, width and heads of the models from scratch: the sizes of Turc et al. 2019 (turc2019wellread); the MLP is four times as wide."""


def task_spec(spec: Any, task: Task, vocabulary_size: int) -> TextSpec:
    """Returns the input spec with the task's labels.

    Raises:
      UsageError: if the data set holds no text.
    """
    if not isinstance(spec, TextSpec):
        raise UsageError("this model reads text and the data set holds images; choose cola, sst2, sentences, text_file or another text data set")
    if task == "classification":
        return spec
    return dataclasses.replace(spec, num_classes=vocabulary_size, label_shape=spec.shape)
