"""The types that the packages of selgrad share: what a model is, what a defender knows, and what an attacker sees.

A package imports this module and `trees`, never another package, so these types are the whole interface between them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import numpy as np
import numpy.typing as npt
from jax import Array
from jaxtyping import PyTree

from selgrad.errors import UsageError

Key: TypeAlias = Array
"""A typed PRNG key, `jax.random.key(seed)`, shape ()."""
Params: TypeAlias = PyTree
"""Model parameters: nested dicts of float arrays; leaves are named by path, `conv_0/kernel`."""
Grads: TypeAlias = PyTree
"""A client update: the tree, shapes and dtypes of the parameters."""
Scores: TypeAlias = PyTree
"""One float score per gradient entry, the tree and shapes of the gradient; a larger score is encrypted first."""
Ranks: TypeAlias = PyTree
"""One int32 per gradient entry, a permutation of 0 .. n-1 over the whole tree; rank 0 is encrypted first."""
Mask: TypeAlias = PyTree
"""One bool per gradient entry; True means encrypted, everywhere."""
Numbers = TypeVar("Numbers", Array, npt.NDArray[Any])
"""An array of JAX or NumPy; the output has the type of the input."""


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Public facts about a model's input, which an attacker also knows.

    Attributes:
      shape: of one input, channels last, e.g. (32, 32, 3).
      num_classes: of the labels.
      mean, std: per channel; the model reads (pixel - mean) / std with pixels in [0, 1].
    """

    shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of an image's label, which is a scalar."""
        return ()

    @property
    def low(self) -> tuple[float, ...]:
        """The smallest value of each channel as the model reads it (pixel 0)."""
        return tuple((0.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """The largest value of each channel as the model reads it (pixel 1)."""
        return tuple((1.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    def normalise(self, pixels: Numbers) -> Numbers:
        """Normalises pixels in [0, 1], shape (..., *shape), to the model's inputs; NumPy arrays stay NumPy arrays."""
        return (pixels - np.asarray(self.mean, pixels.dtype)) / np.asarray(self.std, pixels.dtype)

    def pixels(self, inputs: Numbers) -> Numbers:
        """Inverts `normalise`; nothing is clipped."""
        return inputs * np.asarray(self.std, inputs.dtype) + np.asarray(self.mean, inputs.dtype)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Public facts about a language model's input, which an attacker also knows.

    Attributes:
      shape: (length,), the length to which every sequence is padded.
      num_classes: of the labels; the vocabulary where the labels are tokens.
      vocabulary_size: number of token ids.
      pad_id: of the padding.
      start_id, end_id: of the tokens that open and close every sequence (BERT's [CLS] and [SEP]); None where there are none.
      special_ids: tokens that no sentence holds: these and others such as [MASK] and [UNK].
      label_shape: () for one label per sequence, (length,) where each position has one.
    """

    shape: tuple[int, ...]
    num_classes: int
    vocabulary_size: int
    pad_id: int = 0
    start_id: int | None = None
    end_id: int | None = None
    special_ids: tuple[int, ...] = ()
    label_shape: tuple[int, ...] = ()


@partial(jax.tree_util.register_dataclass, data_fields=["inputs", "labels", "valid"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Batch:
    """The data that a client trains on.

    Attributes:
      inputs: (B, *shape), as the model reads them: float pixels, or int32 token ids.
      labels: (B, *label_shape) int32; -1 where a position has none.
      valid: (B, length) bool, False on padding; None for images.
    """

    inputs: Array
    labels: Array
    valid: Array | None = None


@runtime_checkable
class Model(Protocol):
    """A model: a frozen dataclass of hyperparameters that hashes by value, so jit may take it as static."""

    @property
    def input_spec(self) -> InputSpec | TextSpec:
        """Public facts about the input."""
        ...

    @property
    def head(self) -> str:
        """Path of the last dense layer, whose `kernel` is (features, classes); label rules read its gradient."""
        ...

    @property
    def bypassed(self) -> frozenset[str]:
        """Paths of the leaves that `embed` reads: matching through embeddings cannot reach them."""
        ...

    @property
    def always_encrypted(self) -> frozenset[str]:
        """Paths of the leaves that are encrypted regardless of the metric."""
        ...

    def init(self, key: Key) -> Params:
        """Returns fresh parameters, float32."""
        ...

    def split(self, params: Params) -> tuple[Params, Params]:
        """Splits all parameters into those that a client trains and sends and those that are frozen."""
        ...

    def merge(self, sent: Params, frozen: Params) -> Params:
        """Inverts `split`."""
        ...

    def targets(self, batch: Batch) -> Array:
        """Returns the targets of the loss, (B, *label_shape) int32: the labels, or for a language model the tokens themselves."""
        ...

    def embed(self, params: Params, inputs: Array) -> Array:
        """Returns the inputs in the form that an attack optimises: pixels for images, embeddings for text."""
        ...

    def logits(self, params: Params, embedded: Array, valid: Array | None = None) -> Array:
        """Returns class scores (B, *label_shape, num_classes)."""
        ...

    def loss(self, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Array:
        """Returns the mean soft-label cross-entropy; `labels` (B, *label_shape, num_classes) are probabilities, one-hot for a client."""
        ...


@runtime_checkable
class TextModel(Model, Protocol):
    """A transformer, with the properties that attacks on text read besides its loss."""

    @property
    def embedding(self) -> str:
        """Path of the word-embedding matrix (vocabulary, width) in the parameters."""
        ...

    @property
    def attention_kernels(self) -> tuple[tuple[str, ...], ...]:
        """For each layer, the paths of the dense kernels (width, ...) that read its attention input: query, key and value."""
        ...

    @property
    def num_heads(self) -> int:
        """Number of attention heads of each layer."""
        ...

    @property
    def exposure(self) -> str:
        """How the word-embedding matrix is treated: "frozen", "sent" or "always_encrypted"."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a position reads only itself and the positions before it."""
        ...

    def attention_inputs(self, params: Params, embedded: Array, valid: Array | None, num_layers: int) -> tuple[Array, ...]:
        """Returns the inputs of the attention kernels, (B, length, width), for each of the first layers."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """An attacker's own model of language; a frozen dataclass that hashes by value."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        ...

    def next_states(self, params: Params, tokens: Array, valid: Array) -> Array:
        """Returns each position's state for predicting the next token of sequences (B, length), (B, length, width); it depends on no later position."""
        ...

    def log_likelihood(self, params: Params, states: Array, tokens: Array) -> Array:
        """Returns the log-probability of tokens (...) after states (..., width), shape (...), in nats."""
        ...


@runtime_checkable
class Update(Protocol):
    """How a client turns a batch into the update that it sends; a frozen dataclass that hashes by value.

    The attacker simulates the same update on its dummy data, so it is differentiable in `embedded` and `labels`.
    """

    @property
    def batch_size(self) -> int:
        """Number of samples that the client holds."""
        ...

    @property
    def num_steps(self) -> int:
        """Number of local steps, which is how often a layer can have read the batch."""
        ...

    def __call__(self, model: Model, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Grads:
        """Returns the update for embedded inputs and soft labels (B, *label_shape, num_classes), which an attacker can simulate.

        Leaves that only `embed` reads get no gradient here.
        """
        ...

    def client(self, model: Model, params: Params, batch: Batch, labels: Array, offset: Array | None = None) -> Grads:
        """Returns the update of real inputs, through `embed`; `offset` is added to the embedded inputs, to differentiate by it."""
        ...

    def new_params(self, params: Params, grads: Grads) -> Params:
        """Returns the client's weights after the update, given the update that it sends."""
        ...


class Sent(NamedTuple):
    """An update as a protection sends it.

    Attributes:
      grads: the values; entries that are not sent are 0.
      withheld: True for entries that are not sent, which is public; None where every entry is sent.
    """

    grads: Grads
    withheld: Mask | None = None


@runtime_checkable
class Protection(Protocol):
    """A change that a client makes to its update besides or instead of encrypting it; a frozen dataclass that hashes by value, public like the update."""

    @property
    def changes(self) -> bool:
        """Whether it changes updates at all."""
        ...

    @property
    def deterministic_part(self) -> Callable[[Grads], Grads] | None:
        """The first part, which an attacker also simulates: clipping but no noise, differentiable and hashed by value; None where there is none."""
        ...

    def __call__(self, grads: Grads, key: Key) -> Sent:
        """Returns the sent form of an update that went through `deterministic_part`; traceable."""
        ...

    def noise(self, grads: Grads) -> Grads:
        """Returns the standard deviation of the noise added to each entry, by leaf: scalars in the tree of the update; zeros where there is none."""
        ...

    @property
    def gaussian(self) -> bool:
        """Whether the added noise is Gaussian or absent: bounds on every attacker only hold for such noise."""
        ...

    def num_bytes(self, num_visible: int, num_total: int) -> int:
        """Returns the bytes on the wire for `num_visible` entries in the clear, of an update of `num_total`."""
        ...


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "batch", "grads", "key", "public"],
    meta_fields=["model", "update"],
)
@dataclasses.dataclass(frozen=True)
class GradientContext:
    """The defender's knowledge when it scores its own update; a significance metric gets this and nothing else.

    Attributes:
      model, params, update: public.
      batch, grads: the client's own.
      key: of the metric's draws.
      public: public batches, stacked along a leading axis; None where the experiment names none.
    """

    model: Model
    params: Params
    batch: Batch
    update: Update
    grads: Grads
    key: Key
    public: Batch | None = None

    @property
    def labels(self) -> Array:
        """The batch's labels as probabilities, one-hot, (B, *label_shape, num_classes) float."""
        return jax.nn.one_hot(self.model.targets(self.batch), self.model.input_spec.num_classes)


def loss_gradient(model: Model, params: Params, embed: Callable[[Params], Array], labels: Array, valid: Array | None = None) -> Grads:
    """Returns d loss / d w over the parameters that a client sends, with `embed` inside the derivative."""
    sent, frozen = model.split(params)

    def loss(sent: Params) -> Array:
        whole = model.merge(sent, frozen)
        return model.loss(whole, embed(whole), labels, valid)

    return with_statistics(model, jax.grad(loss)(sent), params, embed)


@runtime_checkable
class KeepsStatistics(Protocol):
    """A model whose clients may send more than a gradient: the decrease of their running statistics on a batch."""

    def statistics_update(self, params: Params, embedded: Array) -> Params:
        """Returns old - new statistics, a part of the tree that is sent; empty where they are not sent."""
        ...


@runtime_checkable
class Normalises(Protocol):
    """A model with running statistics of its layers' inputs, which are public and can be compared with images."""

    def statistics_loss(self, params: Params, embedded: Array) -> Params:
        """Returns old - new statistics, as training on a batch would change them; empty where there are none."""
        ...


@runtime_checkable
class Discloses(Protocol):
    """A model about which an attacker may know more than clients send, such as statistics of the batch."""

    @property
    def attacked(self) -> Model | None:
        """The same model with the attacker's additional knowledge as part of the update; None where it only knows the sent entries."""
        ...


def with_statistics(model: Model, grads: Grads, params: Params, embed: Callable[[Params], Array]) -> Grads:
    """Replaces the derivative of running statistics in a gradient by their change, where a model's clients send it."""
    if not isinstance(model, KeepsStatistics):
        return grads
    change = model.statistics_update(params, embed(params))
    return {**grads, **change} if change else grads


def embedding_of(model: Model, batch: Batch, offset: Array | None = None) -> Callable[[Params], Array]:
    """Returns a function from parameters to the batch's embedded inputs, plus an offset."""

    def embed(params: Params) -> Array:
        embedded = model.embed(params, batch.inputs)
        return embedded if offset is None else embedded + offset

    return embed


class Evidence(NamedTuple):
    """How the client chose which entries to encrypt, which is public; an attacker can interpret the mask with it.

    Attributes:
      metric: the client's own.
      per_leaf: whether the largest scores of each leaf were chosen, or the largest of all.
    """

    metric: Callable[[GradientContext], Scores]
    per_leaf: bool = False


class Round(NamedTuple):
    """A client's update in one round.

    Attributes:
      params: the global weights that the client started from.
      visible: its update with every encrypted entry set to 0; only entries with `mask` False carry information.
      mask: True where encrypted; the attacker sees which entries are ciphertext.
    """

    params: Params
    visible: Grads
    mask: Mask


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["sent", "labels", "valid", "auxiliary", "public", "estimate", "noise", "completed"],
    meta_fields=["model", "update", "evidence"],
)
@dataclasses.dataclass(frozen=True)
class Observation:
    """Everything that an attacker holds.

    Attributes:
      model, update: the architecture and the client's procedure, both public in federated learning.
      sent: the client's updates of the same data, one entry per round; there is at least one.
      labels: (B, *label_shape) int32 where the threat model gives them away, else None.
      valid: (B, length) bool, where there is padding and the threat model gives it away, else None.
      auxiliary: the attacker's own data, such as the parameters of its language model.
      public: public batches, stacked along a leading axis.
      evidence: the client's metric, where the attacker reads the mask as evidence.
      estimate: (B, ...) embedded inputs that a learned decoder read off the visible entries, where the attacker has one.
      noise: the standard deviation of the noise that a public protection added to each leaf's entries, scalars in the tree of the update; None for no noise.
      completed: for each round, which of the visible entries were not sent in the clear but completed by the attacker. None where it completed nothing.
    """

    model: Model
    sent: tuple[Round, ...]
    update: Update
    labels: Array | None
    valid: Array | None = None
    auxiliary: Any = None
    public: Batch | None = None
    evidence: Evidence | None = None
    estimate: Array | None = None
    noise: Grads | None = None
    completed: tuple[Mask, ...] | None = None

    @property
    def params(self) -> Params:
        """The global weights of the first round."""
        return self.sent[0].params

    @property
    def visible(self) -> Grads:
        """The visible part of the first round's update."""
        return self.sent[0].visible

    @property
    def mask(self) -> Mask:
        """The mask of the first round's update."""
        return self.sent[0].mask

    @property
    def rounds(self) -> list[Observation]:
        """One observation per round, each without the other rounds."""
        filled: list[tuple[Mask, ...] | None] = [None] * len(self.sent) if self.completed is None else [(mask,) for mask in self.completed]
        return [dataclasses.replace(self, sent=(sent,), completed=mask) for sent, mask in zip(self.sent, filled, strict=True)]

    def with_first(self, *, visible: Grads, mask: Mask | None = None) -> Observation:
        """Returns a copy with other visible entries in the first round, and with another mask where one is given."""
        first = self.sent[0]._replace(visible=visible, mask=self.mask if mask is None else mask)
        return dataclasses.replace(self, sent=(first, *self.sent[1:]))


class Reconstruction(NamedTuple):
    """The result of an attack.

    Attributes:
      inputs: (B, *shape), in the units that the model reads: float pixels, or int32 token ids.
      labels: (B, *label_shape) int32: the labels that belong to `inputs`, optimised or inferred; never the initial ones.
      objective: () float, the attacker's own objective at `inputs`; inf where it diverged.
      diverged: () bool; True where every restart became non-finite or ran away (beyond 1e4) without finding anything before; `inputs` is then the start.
      restart: () int32, which restart was chosen (by `objective`).
      all_inputs, all_objectives, all_labels: the same for every restart, leading axis (num_restarts,).
      num_evaluations: () int32, evaluations of the objective's gradient spent per restart, the largest over restarts.
      report: the report of an attack on the host, as JSON: which leaves it could use, and why it could not use the others.
      moved: () bool, whether `inputs` differ from the start and from a draw of prior knowledge.
      all_misfits: (num_restarts,) float, of each restart what `Attack.misfit` gives, inf where there is nothing to compare; None where it is the objective.
    """

    inputs: Array
    labels: Array
    objective: Array
    diverged: Array
    restart: Array
    all_inputs: Array
    all_labels: Array
    all_objectives: Array
    num_evaluations: Array
    report: str | None = None
    moved: Array | bool = True
    all_misfits: Array | None = None

    @classmethod
    def single(
        cls, inputs: Array, labels: Array, objective: Array, num_evaluations: int = 0, report: str | None = None, moved: Array | bool = True
    ) -> Reconstruction:
        """Makes the result of an attack without restarts, which cannot diverge."""
        return cls(
            inputs=inputs, labels=labels, objective=objective, diverged=jax.numpy.zeros((), bool), restart=jax.numpy.int32(0), all_inputs=inputs[None],
            all_labels=labels[None], all_objectives=objective[None], num_evaluations=jax.numpy.int32(num_evaluations), report=report, moved=moved,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Metric:
    """A significance metric, and the facts that are needed to run it.

    Attributes:
      score: scores every entry of a client update at once; pure, jit-able, vmap-able.
      num_probes: (input coordinates of a batch, batch size) -> number of Gaussian probes that estimate norms; 0, or no function, where it is exact.
      precision: the precision in which it must be computed.
      draws: whether the scores depend on `GradientContext.key`.
    """

    score: Callable[[GradientContext], Scores]
    num_probes: Callable[[int, int], int] | None = None
    precision: Literal["float32", "float64"] = "float32"
    draws: bool = False

    def __call__(self, context: GradientContext) -> Scores:
        """Returns the scores, with the tree and shapes of the gradient."""
        return self.score(context)

    def standard_error(self, num_inputs: int, batch_size: int) -> float:
        """Returns the relative standard error of a squared norm: sqrt(2 / probes), and 0 where the metric is exact; that of a norm is about half.

        For v ~ N(0, I), (J v)_i^2 / |J_i|^2 is chi-squared with one degree of freedom, so the error of a mean of them is known (hutchinson1990).
        """
        probes = 0 if self.num_probes is None else self.num_probes(num_inputs, batch_size)
        return math.sqrt(2 / probes) if probes else 0.0


@dataclasses.dataclass(frozen=True)
class Selector:
    """Orders all entries; the mask at k encrypted entries is `rank < k`, so masks are nested and a ratio axis costs scalars.

    Attributes:
      order: scores -> ranks, traceable.
      top_of: "all" where the first k are the k largest scores of all leaves, "leaf" where they are the largest of each leaf; an attacker can read such a
        mask as evidence. None where other things matter too.
      of_cohort: one order for many clients, from scores with a leading axis (clients,) on each leaf; None where each client has its own.
    """

    order: Callable[[Scores], Ranks]
    top_of: Literal["all", "leaf"] | None = None
    of_cohort: Callable[[Scores], Ranks] | None = None

    def __call__(self, scores: Scores) -> Ranks:
        """Returns the ranks of one client's entries."""
        return self.order(scores)


Cache: TypeAlias = Callable[[str, Callable[[], Any], Callable[[], Any]], Any]
"""(identity, maker, shapes) -> a pytree of arrays, computed once and kept under its identity, such as a decoder that an attacker trains for a mask."""


def no_cache(identity: str, make: Callable[[], Any], shapes: Callable[[], Any]) -> Any:
    """Computes the value, as a `Cache` that keeps nothing."""
    return make()


def stride() -> int:
    """Returns the steps of an attack between two checks whether all restarts are done, since each makes the host wait for the device: 1 on a CPU, else 8.

    `SELGRAD_STRIDE` overrides it and is read when a program is traced.

    Raises:
      UsageError: if it is not a whole number from 1 on.
    """
    requested = os.environ.get("SELGRAD_STRIDE")
    if not requested:
        return 1 if jax.default_backend() == "cpu" else 8
    if not requested.isdecimal() or int(requested) < 1:
        raise UsageError(f"SELGRAD_STRIDE={requested!r} must be a whole number from 1 on")
    return int(requested)


@dataclasses.dataclass(frozen=True)
class Attack:
    """A gradient inversion attack in three traceable phases, so that a long one can be timed, checkpointed and resumed, with the facts needed to run it.

    Attributes:
      start: (key, observation) -> state, with restarts as the leading axis of each leaf.
      advance: (observation, state, num_steps) -> state; `num_steps` may be traced; finished restarts stay unchanged.
      finish: (observation, state) -> Reconstruction, the restart with the smallest own objective.
      num_steps: steps of a whole attack.
      num_restarts: independent starts.
      traceable: whether JAX may trace the phases; other attacks run on the host, one observation after the other.
      prepare: the preparation on the host, (observation, cache) -> (observation, a JSON report): hidden entries that structure gives away are
        filled in, or a decoder is trained for the mask.
      rung: how it treats encrypted entries, the rung of the attacker ladder; "" where the question does not arise.
      evidence: whether it reads the mask as evidence and so needs `Observation.evidence`, the client's own metric.
      estimate: whether `prepare` sets `Observation.estimate`.
      language_model: name of the language model that it uses, such as a folder; None where it uses none, or has it already.
      bind: language model -> the attack that uses it; its parameters are `Observation.auxiliary`.
      completes: whether `prepare` sets `Observation.completed`.
      objective: (observation, embedded inputs (B, ...), labels (B, *label_shape)) -> the attack's own objective there, in the unit of
        `Reconstruction.objective`; None for an attack that has none.
      misfit: the same without regularisers: how badly inputs explain what is visible. With the true inputs it shows whether a search has ended. A smooth image
        has a small total variation and explains nothing by that. None where it is the objective.
    """

    start: Callable[[Key, Observation], Any]
    advance: Callable[[Observation, Any, Any], Any]
    finish: Callable[[Observation, Any], Reconstruction]
    num_steps: int
    num_restarts: int
    traceable: bool = True
    prepare: Callable[[Observation, Cache], tuple[Observation, str]] | None = None
    rung: str = ""
    evidence: bool = False
    estimate: bool = False
    language_model: str | None = None
    bind: Callable[[LanguageModel], Attack] | None = None
    objective: Callable[[Observation, Array, Array], Array] | None = None
    misfit: Callable[[Observation, Array, Array], Array] | None = None
    completes: bool = False

    def reconstruct(self, key: Key, observation: Observation, cache: Cache = no_cache) -> Reconstruction:
        """Runs the whole attack; jit and vmap can wrap this where there is nothing to `prepare`."""
        if self.prepare is not None:
            observation, report = self.prepare(observation, cache)
            return dataclasses.replace(self, prepare=None).reconstruct(key, observation)._replace(report=report)
        state = self.start(key, observation)
        return self.finish(observation, self.advance(observation, state, self.num_steps))
