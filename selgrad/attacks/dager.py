"""DAGER: exact recovery of text, by testing which tokens' embeddings lie in the row space of the first attention layers' gradients.

Petrov, Dimitrov, Baader, Müller, Vechev, "DAGER: Exact Gradient Inversion for Large Language Models", NeurIPS 2024 (petrov2024dager).
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad import trees
from selgrad.attacks import row_space
from selgrad.attacks.hidden import Hidden, fill
from selgrad.attacks.kernel import on_host
from selgrad.attacks.labels import plausible
from selgrad.attacks.spaces import known_tokens, names_tokens, possible_tokens, text_parts
from selgrad.base import Attack, Key, Observation, Reconstruction
from selgrad.errors import UsageError

Tokens = npt.NDArray[np.int32]


KEPT_BYTES = 2**31
"""Largest number of bytes of one vocabulary's inputs that an attack keeps: BERT-base's at 16 tokens are 1.5 GB."""


class _Candidates(NamedTuple):
    """The token ids that pass the first test at each position and their distances, nearest first."""

    tokens: list[npt.NDArray[np.int64]]
    distances: list[npt.NDArray[np.float64]]


@lru_cache(maxsize=8)
def _reader(model: Any, num_layers: int) -> Callable[..., Any]:
    """Returns (params, tokens, valid) -> the input of attention layer `num_layers`, compiled once per model and shape."""

    def read(params: Any, tokens: Any, valid: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return model.attention_inputs(params, model.embed(params, tokens), valid, num_layers)[-1]

    return jax.jit(read)


def _batches(tokens: Tokens, valid: npt.NDArray[np.bool_], at_once: int) -> Iterator[tuple[Tokens, npt.NDArray[np.bool_], int]]:
    """Yields sequences in batches of one size, the last one padded, with the number of real sequences in each."""
    for start in range(0, len(tokens), at_once):
        part, real = tokens[start : start + at_once], valid[start : start + at_once]
        missing = ((0, at_once - len(part)), (0, 0))
        yield np.pad(part, missing, mode="edge"), np.pad(real, missing, mode="edge"), len(part)


class _Inputs(NamedTuple):
    """Inputs of a layer (n, T, width), the number of the n that are not padding, and their squared norms (n, T) where these are known."""

    values: Array
    num_real: int
    squares: Array | None = None


@jax.jit
def _squares(inputs: Array, covered: Any) -> Array:
    return (inputs**2 * covered).sum(axis=-1)


@jax.jit
def _judge(inputs: Array, squares: Array, basis: Any) -> Array:
    """Returns how far inputs (n, T, width) lie from a row space, (n, T), in float32; compiled once per shape and rank."""
    with jax.default_matmul_precision("highest"):
        inside = inputs @ basis
    whole = jnp.maximum(squares, 1e-30)
    return jnp.sqrt(jnp.maximum(whole - (inside**2).sum(axis=-1), 0) / whole)


def _width(observation: Observation) -> int:
    model: Any = text_parts(observation)[0]
    return int(trees.subtree(observation.params, model.attention_kernels[0][0]).shape[0])


def _distances(parts: Iterable[_Inputs], space: row_space.RowSpace, width: int) -> npt.NDArray[np.float64]:
    """Computes `RowSpace.distances` of batches of inputs: in float32 on the device, and again in float64 for inputs that lie close.

    Args:
      parts: batches of one shape.
      space: the row space that they may lie in.
      width: of an input.
    """
    # Ranks of similar size share a program.
    basis = np.zeros((width, -(-space.basis.shape[1] // 16) * 16), np.float32)
    basis[space.rows, : space.basis.shape[1]] = space.basis
    covered = np.zeros(width, np.float32)
    covered[space.rows] = 1
    distances_by_part: list[npt.NDArray[np.float64]] = []
    pending: deque[tuple[Array, _Inputs]] = deque()

    def refine_oldest() -> None:
        distances, part = pending.popleft()
        near = np.asarray(distances)[: part.num_real].astype(np.float64)
        close = near < row_space.CLOSE
        if close.any():
            near[close] = space.exactly(np.asarray(part.values)[: part.num_real][close])
        distances_by_part.append(near)

    for part in parts:
        # Reading memory dominates the cost, so known norms are not computed again.
        squares = part.squares if part.squares is not None and covered.all() else _squares(part.values, covered)
        # The device computes the next parts while the host refines the oldest one.
        pending.append((_judge(part.values, squares, basis), part))
        if len(pending) > 4:
            refine_oldest()
    while pending:
        refine_oldest()
    return np.concatenate(distances_by_part)


def _read(observation: Observation, tokens: Tokens, valid: npt.NDArray[np.bool_], num_layers: int, at_once: int) -> Iterator[_Inputs]:
    """Yields the input of attention layer `num_layers` (from 1) in batches of one size, so that one program serves all."""
    model: Any = text_parts(observation)[0]
    read = _reader(model, num_layers)
    for part, real, count in _batches(tokens, valid, at_once):
        yield _Inputs(read(observation.params, part, real), count)


class _Vocabulary:
    """The first layer's inputs for every word at every position, kept for the weights used last, since all cells of a seed test the same weights."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Any, list[_Inputs]]] = {}
        self._lock = threading.Lock()

    def inputs(self, observation: Observation, allowed: npt.NDArray[Any], at_once: int) -> Iterable[_Inputs]:
        """Returns the inputs in batches of (at_once, T, width).

        Args:
          observation: of one round, whose weights are used.
          allowed: (n,) the words.
          at_once: words in a batch.
        """
        model, spec = text_parts(observation)
        leaves = jax.tree.leaves(observation.params)
        width = _width(observation)

        def read() -> Iterator[_Inputs]:
            words = np.broadcast_to(allowed[:, None], (len(allowed), spec.shape[0])).astype(np.int32)
            return _read(observation, words, np.ones(words.shape, bool), 1, at_once)

        if (size := 4 * len(allowed) * spec.shape[0] * width) > KEPT_BYTES:
            return read()
        key = (model, allowed.tobytes(), at_once, *map(id, leaves))
        with self._lock:
            # The weights are kept alive with their inputs, so that no other array can take over their ids.
            _, parts = self._kept.pop(key, None) or (leaves, [part._replace(squares=_squares(part.values, np.ones(width, np.float32))) for part in read()])
            while len(self._kept) >= KEPT_BYTES // size:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = leaves, parts
        return parts


def _layer_inputs(observation: Observation, tokens: Tokens, valid: npt.NDArray[np.bool_], num_layers: int, at_once: int) -> npt.NDArray[Any]:
    """Returns the input of attention layer `num_layers` (from 1), (n, T, width)."""
    return np.concatenate([np.asarray(part.values)[: part.num_real] for part in _read(observation, tokens, valid, num_layers, at_once)])


class _Part(NamedTuple):
    """What one round's leaves say about the inputs of a layer.

    Attributes:
      seen: the observation of the round.
      space: the row space that the inputs, or their products with `through`, lie in.
      through: (width, rank) an adapter's first factor, where the space is that of the inputs of its second factor; None for the layer's inputs themselves.
    """

    seen: Observation
    space: row_space.RowSpace
    through: Any = None

    def distances(self, inputs: Iterable[_Inputs]) -> npt.NDArray[np.float64]:
        """Returns how far inputs lie from the space."""
        if self.through is None:
            return _distances(inputs, self.space, _width(self.seen))
        return _distances((_Inputs(_times(part.values, self.through), part.num_real) for part in inputs), self.space, self.through.shape[1])


@jax.jit
def _times(inputs: Array, matrix: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return inputs @ matrix


def _spaces(observation: Observation, layer: int, hidden: Hidden, max_rank: int, tolerance: float) -> list[_Part]:
    """Returns the row space of the kernels that read the inputs and, where these say nothing, one space for each adapter's second factor.

    The first factor of a fresh adapter has no gradient, since the second one is 0. The gradient of the second is (X A)' D: its columns lie in the span of
    the rows of X A, which is less than the whole space while fewer tokens occur than the adapter's rank.
    """
    model, _ = text_parts(observation)
    sent = set(trees.paths(observation.visible))
    leaf = lambda path: (path, np.asarray(trees.subtree(observation.visible, path)), np.asarray(trees.subtree(observation.mask, path)))
    find = partial(row_space.find, hidden=hidden, max_rank=max_rank, rank_tolerance=tolerance)
    paths = [path for path in model.attention_kernels[layer] if path in sent]
    parts = [_Part(observation, find([leaf(path) for path in paths]))]
    if not parts[0].space.basis.shape[1]:
        factors = [(path, path.removesuffix("lora_a") + "lora_b") for path in paths if path.endswith("lora_a")]
        parts += [_Part(observation, find([leaf(second)]), trees.subtree(observation.params, first)) for first, second in factors if second in sent]
    return parts


class _Layer(NamedTuple):
    """What all rounds say about the inputs of one attention layer.

    Attributes:
      number: of the layer, from 1.
      parts: the parts of every round whose spaces say anything.
      leaves, unused: as in `RowSpace`, of every round.
    """

    number: int
    parts: tuple[_Part, ...]
    leaves: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def distances(self, tokens: Tokens, valid: npt.NDArray[np.bool_], at_once: int) -> npt.NDArray[np.float64]:
        """Returns how far each token's input (n, T) is from the row spaces, the geometric mean over them; 1 where nothing can be said."""
        return self._over_rounds(tokens.shape, lambda view: _read(view, tokens, valid, self.number, at_once))

    def distances_of_words(self, vocabulary: _Vocabulary, allowed: npt.NDArray[Any], length: int, at_once: int) -> npt.NDArray[np.float64]:
        """Returns the same distances for every word (n,) at every position, (n, length); for the first layer."""
        return self._over_rounds((len(allowed), length), lambda view: vocabulary.inputs(view, allowed, at_once))

    def _over_rounds(self, shape: tuple[int, ...], inputs: Callable[[Observation], Iterable[_Inputs]]) -> npt.NDArray[np.float64]:
        if not self.parts:
            return np.ones(shape)
        distances_by_part = [part.distances(inputs(part.seen)) for part in self.parts]
        return distances_by_part[0] if len(distances_by_part) == 1 else np.exp(np.mean([np.log(np.maximum(part, 1e-12)) for part in distances_by_part], axis=0))


def _layer(observation: Observation, number: int, hidden: Hidden, max_rank: int, tolerance: float) -> _Layer:
    rounds = [_spaces(view, number - 1, hidden, max_rank, tolerance) for view in observation.rounds]
    name = lambda leaf, t: leaf if len(rounds) == 1 else f"round {t + 1}: {leaf}"
    return _Layer(
        number,
        tuple(part for parts in rounds for part in parts if part.space.basis.shape[1]),
        tuple(name(leaf, t) for t, parts in enumerate(rounds) for part in parts for leaf in part.space.leaves),
        tuple(name(leaf, t) for t, parts in enumerate(rounds) for part in parts for leaf in part.space.unused),
    )


def _first_test(
    observation: Observation,
    layer: _Layer,
    vocabulary: _Vocabulary,
    threshold: float,
    max_candidates: int,
    at_once: int,
    real: npt.NDArray[np.bool_],
) -> _Candidates:
    """Tests every token at every position against the first layer's row space; known tokens are taken as known."""
    spec = text_parts(observation)[1]
    length = spec.shape[0]
    allowed, known_ids, known = _words(observation)
    all_distances = layer.distances_of_words(vocabulary, allowed, length, at_once).T
    tokens, distances = [], []
    for position in range(length):
        passing = np.flatnonzero(all_distances[position] < threshold)
        passing = passing if len(passing) else np.asarray([all_distances[position].argmin()])
        order = passing[np.argsort(all_distances[position][passing], kind="stable")][:max_candidates]
        ids, values = allowed[order], all_distances[position][order]
        fixed = np.unique(known_ids[:, position][known[:, position] & real[:, position]])
        if known[:, position].all():
            ids, values = fixed, np.zeros(len(fixed))
        elif len(fixed):
            ids, values = np.concatenate([ids, fixed]), np.concatenate([values, np.zeros(len(fixed))])
        tokens.append(ids.astype(np.int64))
        distances.append(values)
    return _Candidates(tokens, distances)


def _pick(scored: list[tuple[float, Tokens]], lengths: npt.NDArray[np.int64], spare: Callable[[int], Tokens]) -> list[Tokens]:
    """Picks one sequence per length, the nearest first and none a prefix of another; `spare` provides one where none is left.

    Prefixes of true sequences pass every test, so the longest sequences are chosen first.
    """
    result: dict[int, Tokens] = {}
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        for _, tokens in sorted((item for item in scored if len(item[1]) == length), key=lambda item: item[0]):
            if not any(np.array_equal(tokens, other[:length]) for other in result.values()):
                result[int(index)] = tokens
                break
        else:
            result[int(index)] = spare(length)
    return [result[i] for i in range(len(lengths))]


def _grow(
    observation: Observation, layer: _Layer, candidates: _Candidates, lengths: npt.NDArray[np.int64], threshold: float, beam: int, at_once: int
) -> list[Tokens]:
    """Grows sequences token by token, for decoders: a prefix's second-layer inputs depend on nothing after it."""
    _, spec = text_parts(observation)
    width = spec.shape[0]
    alive: list[tuple[float, Tokens]] = [(0.0, np.zeros(0, np.int32))]
    finished: list[tuple[float, Tokens]] = []
    for position in range(int(lengths.max())):
        grown = [(score, np.append(prefix, token).astype(np.int32)) for score, prefix in alive for token in candidates.tokens[position]]
        first = {int(t): d for t, d in zip(candidates.tokens[position], candidates.distances[position], strict=True)}
        padded = np.stack([np.pad(tokens, (0, width - len(tokens)), mode="edge") for _, tokens in grown])
        real = np.broadcast_to(np.arange(width) <= position, padded.shape)
        if layer.parts:
            second = layer.distances(padded, real, at_once)[:, position]
        else:
            second = np.asarray([first[int(tokens[-1])] for _, tokens in grown])
        scored = sorted(((max(score, float(d)), tokens) for (score, tokens), d in zip(grown, second, strict=True)), key=lambda item: item[0])
        passing = [item for item in scored if item[0] < threshold]
        alive = (passing or scored)[:beam]
        # A sequence that ends here must not keep others from growing, so it is set aside and also grows on.
        finished += [item for item in alive if (lengths == position + 1).any()]
    return _pick(finished, lengths, lambda length: alive[0][1][:length])


def _affinities(observation: Observation, occurring: list[tuple[int, int]]) -> npt.NDArray[np.float64] | None:
    """Returns how strongly the occurring (position, token) pairs attend to each other, (n, n) in [0, 1]; None where it cannot be computed.

    With the layer's inputs X known, D = pinv(X') dL/dW is the gradient that flowed back to each query and key. For a head with attention scores S,
    D_Q = (dL/dS) K and D_K = (dL/dS)' Q, so dL/dS follows, and it is 0 between tokens of different sentences. This grouping is ours; it is exact
    while the head's width holds as many tokens as occur, and a least-norm estimate beyond.
    """
    model, spec = text_parts(observation)
    paths = [path for path in model.attention_kernels[0] if path.endswith(("query/kernel", "key/kernel"))]
    sent = set(trees.paths(observation.visible))
    if len(paths) != 2 or any(path not in sent or bool(trees.subtree(observation.mask, path).any()) for path in paths):
        return None
    positions, ids = (np.asarray(x) for x in zip(*occurring, strict=True))
    tokens = np.broadcast_to(ids[:, None], (len(ids), spec.shape[0])).astype(np.int32)
    inputs = _layer_inputs(observation, tokens, np.ones(tokens.shape, bool), 1, 256)[np.arange(len(ids)), positions].astype(np.float64)
    if np.linalg.matrix_rank(inputs, tol=1e-4 * np.linalg.norm(inputs, 2)) < len(inputs):
        # A word at two positions lets others' shifted twins pass the first test too; which token each gradient flowed back to is then not determined.
        return None
    inverse = np.linalg.pinv(inputs.T, rcond=1e-6)
    heads = []
    for path in paths:
        weight, bias = (np.asarray(trees.subtree(observation.params, name), np.float64) for name in (path, path.removesuffix("kernel") + "bias"))
        flow = inverse @ np.asarray(trees.subtree(observation.visible, path), np.float64)
        heads.append([part.reshape(len(ids), model.num_heads, -1).swapaxes(0, 1) for part in (inputs @ weight + bias, flow)])
    (queries, query_flows), (keys, key_flows) = heads
    result = np.zeros((len(ids), len(ids)))
    for query, query_flow, key, key_flow in zip(queries, query_flows, keys, key_flows, strict=True):
        # A softmax does not change when all of its scores shift alike: each row of dL/dS sums to 0.
        columns = np.concatenate([key, np.full((len(ids), 1), np.abs(key).mean())], axis=1)
        wanted = np.concatenate([query_flow, np.zeros((len(ids), 1))], axis=1)
        left, right = np.linalg.pinv(columns, rcond=1e-7), np.linalg.pinv(query.T, rcond=1e-7)
        slopes = np.zeros_like(result)
        for _ in range(20):
            slopes = slopes + (wanted - slopes @ columns) @ left
            slopes = slopes + right @ (key_flow.T - query.T @ slopes)
        size = np.abs(slopes)
        size = size / np.maximum(size.max(axis=1, keepdims=True), 1e-30)
        result = np.maximum(result, np.maximum(size, size.T))
    return result


def _assemble(
    observation: Observation,
    layer: _Layer,
    candidates: _Candidates,
    lengths: npt.NDArray[np.int64],
    threshold: float,
    beam: int,
    at_once: int,
    *,
    num_attempts: int,
) -> list[Tokens]:
    """Improves whole sequences position by position from many starts, for encoders, where every position reads all others.

    Sequences are first scored by which tokens attend to each other, which needs no forward pass, and then against the second layer's row space.
    """
    _, spec = text_parts(observation)
    width, generator = spec.shape[0], np.random.default_rng(0)
    known_ids, known = (np.asarray(x) for x in known_tokens(observation))
    occurring = [(p, int(t)) for p in range(int(lengths.max())) for t in candidates.tokens[p]]
    pair_index = {pair: i for i, pair in enumerate(occurring)}
    affinity = _affinities(observation, occurring) if len(lengths) > 1 else None
    bonds = None if affinity is None else np.log(affinity + 1e-6)
    scored: list[tuple[float, Tokens]] = []

    def by_layer(sequences: Tokens) -> npt.NDArray[np.float64]:
        length = sequences.shape[1]
        if not layer.parts:
            return np.ones(len(sequences))
        padded = np.pad(sequences, ((0, 0), (0, width - length)))
        real = np.broadcast_to(np.arange(width) < length, padded.shape)
        return layer.distances(padded, real, at_once)[:, :length].mean(axis=1)

    def by_bonds(sequences: Tokens) -> npt.NDArray[np.float64]:
        assert bonds is not None
        indices = np.asarray([[pair_index[p, int(t)] for p, t in enumerate(tokens)] for tokens in sequences])
        return -bonds[indices[:, :, None], indices[:, None, :]].mean(axis=(1, 2))

    for length in np.unique(lengths):
        row = int(np.flatnonzero(lengths == length)[0])
        choices = [np.asarray([known_ids[row, p]], np.int64) if known[row, p] else candidates.tokens[p] for p in range(length)]
        single = np.asarray([[c[0] for c in choices]], np.int32)
        if all(len(c) == 1 for c in choices):
            scored.append((0.0, single[0]))
            continue
        wanted = int((lengths == length).sum())
        for attempt in range(num_attempts if layer.parts else 1):
            # Tokens of sentences that are already recovered are unlikely in another one.
            explained = {(p, int(t)) for value, tokens in scored if value < threshold for p, t in enumerate(tokens)}
            likely = [np.asarray([t for t in c if (p, int(t)) not in explained] or c) for p, c in enumerate(choices)]
            # Bonds cost no forward pass, so many chains can start; they are tried first.
            quick = bonds is not None and not attempt
            chains = np.stack([[generator.choice(c) for c in likely] for _ in range(beam if quick else max(1, beam // 8))])
            chains = np.concatenate([chains, single]).astype(np.int32)
            if quick:
                chains, _ = _improve(chains, choices, by_bonds, generator)
                chains = np.unique(chains, axis=0)
                chains = chains[np.argsort(by_bonds(chains))][: max(4 * len(lengths), 8)]
                values = by_layer(chains)
            else:
                chains, values = _improve(chains, choices, by_layer, generator)
            scored += list(zip(values.tolist(), chains, strict=True))
            if len({tuple(tokens) for value, tokens in scored if value < threshold and len(tokens) == length}) >= wanted:
                break
    return _pick(scored, lengths, lambda length: np.asarray([c[0] for c in candidates.tokens[:length]], np.int32))


def _improve(
    chains: Tokens, choices: list[npt.NDArray[np.int64]], score: Callable[[Tokens], npt.NDArray[np.float64]], generator: np.random.Generator
) -> tuple[Tokens, npt.NDArray[np.float64]]:
    """Takes the choice of the lowest score at each position in turn, by coordinate descent, until nothing changes."""
    values = score(chains)
    for _ in range(6):
        before = chains.copy()
        for position in generator.permutation(len(choices)):
            options = choices[position]
            if len(options) == 1:
                continue
            trial = np.repeat(chains[:, None], len(options), axis=1)
            trial[:, :, position] = options
            trials = score(trial.reshape(-1, len(choices))).reshape(len(chains), -1)
            best = trials.argmin(axis=1)
            chains, values = trial[np.arange(len(chains)), best], trials[np.arange(len(chains)), best]
        if np.array_equal(chains, before):
            break
    return chains, values


@jax.jit
def _every_word(observation: Observation) -> tuple[Array, ...]:
    return possible_tokens(observation), *known_tokens(observation)


def _words(observation: Observation) -> tuple[npt.NDArray[Any], ...]:
    """Returns the possible tokens, the known ones (B, T), and where these are known."""
    possible, ids, known = map(np.asarray, _every_word(observation))
    return np.flatnonzero(possible), ids, known


@partial(jax.jit, static_argnums=2)
def _labels(key: Key, observation: Observation, hidden: Hidden) -> Array:
    """Returns the most plausible labels; compiled, because op-by-op execution would take most of the time of a short sentence."""
    return plausible()(key, observation, fill(observation, hidden)).labels[0]


def dager(
    *,
    hidden: Hidden = "ignore",
    first_threshold: float = 1e-2,
    second_threshold: float = 1e-2,
    rank_tolerance: float = 1e-8,
    max_candidates: int = 128,
    beam: int = 64,
    num_attempts: int = 4,
    tokens_at_once: int = 1024,
) -> Attack:
    """Row-space tests per token and position, then a beam (decoders) or improvement from many starts (encoders) against the second layer.

    It uses the visible gradients of the query, key and value kernels of the first two layers, or of the second factors of their adapters where the first
    factors say nothing, as in fresh adapters (ours), and reports which. Hidden entries are completed at low rank
    (`ignore`, ours; `bounded` and `complete` add nothing to that here) or taken as 0 or the mean (`zero`, `average`). It runs on the host in float64,
    one observation after the other. Each of several rounds has its own row spaces, and a token's distance is the geometric mean over them.

    Args:
      hidden: how encrypted entries are treated.
      first_threshold: relative distance of a token's embedding from the first layer's row space below which it may occur. The published 1e-5
        presumes float64; float32 gradients leave 1e-3 (docs/design.md).
      second_threshold: the same for the second layer.
      rank_tolerance: singular values below this share of the largest are noise; the rank is at most the number of tokens.
      max_candidates: tokens kept at each position; a word at two positions lets others pass there too, so a batch has many.
      beam: prefixes, or whole sequences, kept.
      num_attempts: rounds of starts for the sentences of an encoder that no earlier round recovered.
      tokens_at_once: tokens embedded in one batch; bounds the memory.
    """
    if num_attempts < 1:
        raise UsageError(f"num_attempts={num_attempts} must be at least 1")
    vocabulary = _Vocabulary()

    def reconstruct(key: Key, observation: Observation) -> Reconstruction:
        model, spec = text_parts(observation)
        size, length = observation.update.batch_size, spec.shape[0]
        real = np.ones((size, length), bool) if observation.valid is None else np.asarray(observation.valid)
        lengths = real.sum(axis=1)
        at_once = max(8, tokens_at_once // 8)
        layers = [_layer(observation, number, hidden, int(real.sum()), rank_tolerance) for number in range(1, 1 + min(2, len(model.attention_kernels)))]
        if layers[0].parts:
            second = layers[1] if len(layers) > 1 else _Layer(2, ())
            candidates = _first_test(observation, layers[0], vocabulary, first_threshold, max_candidates, tokens_at_once, real)
            assemble = _grow if model.causal else partial(_assemble, num_attempts=num_attempts)
            rows = assemble(observation, second, candidates, lengths, second_threshold, beam, at_once)
            tokens: Any = np.full((size, length), spec.pad_id, np.int32)
            for i, row in enumerate(rows):
                tokens[i, : lengths[i]] = row[: lengths[i]]
            objective = float(np.mean([d.min() for d in candidates.distances if len(d)]))
        else:
            # Nothing can be tested, so a sample of the prior is returned, as by every attack at ratio 1.
            allowed, known_ids, known = _words(observation)
            drawn = np.asarray(jax.random.choice(key, jnp.asarray(allowed), (size, length)))
            tokens, objective = np.where(known, known_ids, drawn).astype(np.int32), 1.0
        if observation.labels is not None:
            labels = observation.labels
        elif spec.label_shape:
            # A language model's labels are its tokens.
            labels = jnp.where(jnp.asarray(real), jnp.asarray(tokens), -1)
        else:
            labels = _labels(key, observation, hidden)
        report = {"used": [leaf for layer in layers for leaf in layer.leaves], "unused": [leaf for layer in layers for leaf in layer.unused]}
        # Where no layer can be tested, visible rows of the embedding's gradient may still name the words.
        inputs, moved = jnp.asarray(tokens), bool(report["used"]) or bool(names_tokens(observation))
        return Reconstruction.single(inputs, jnp.asarray(labels, jnp.int32), jnp.float32(objective), report=json.dumps(report), moved=moved)

    return on_host(reconstruct, rung=hidden)
