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
from selgrad.attacks.spaces import known_tokens, possible_tokens, text_parts
from selgrad.base import Attack, Key, Observation, Reconstruction
from selgrad.errors import UsageError

Tokens = npt.NDArray[np.int32]


KEPT_BYTES = 2**31
"""What an attack keeps of one vocabulary's inputs, at most: BERT-base's at 16 tokens are 1.5 GB."""


class _Candidates(NamedTuple):
    """Per position the token ids that pass the first test and their distances, nearest first."""

    tokens: list[npt.NDArray[np.int64]]
    distances: list[npt.NDArray[np.float64]]


@lru_cache(maxsize=8)
def _reader(model: Any, num_layers: int) -> Callable[..., Any]:
    """(params, tokens, valid) -> the input of attention layer `num_layers`, compiled once per model and shape."""

    def read(params: Any, tokens: Any, valid: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return model.attention_inputs(params, model.embed(params, tokens), valid, num_layers)[-1]

    return jax.jit(read)


def _batches(tokens: Tokens, valid: npt.NDArray[np.bool_], at_once: int) -> Iterator[tuple[Tokens, npt.NDArray[np.bool_], int]]:
    """Sequences in batches of one size, the last one filled up, and how many of each are there."""
    for start in range(0, len(tokens), at_once):
        part, real = tokens[start : start + at_once], valid[start : start + at_once]
        missing = ((0, at_once - len(part)), (0, 0))
        yield np.pad(part, missing, mode="edge"), np.pad(real, missing, mode="edge"), len(part)


class _Inputs(NamedTuple):
    """Inputs of a layer (n, T, width), how many of the n are not padding, and their squared norms (n, T) where these are known."""

    values: Array
    num_real: int
    squares: Array | None = None


@jax.jit
def _squares(inputs: Array, covered: Any) -> Array:
    return (inputs**2 * covered).sum(axis=-1)


@jax.jit
def _judge(inputs: Array, squares: Array, basis: Any) -> Array:
    """How far inputs (n, T, width) lie from a row space, (n, T), in float32; compiled once per shape and rank."""
    with jax.default_matmul_precision("highest"):
        inside = inputs @ basis
    whole = jnp.maximum(squares, 1e-30)
    return jnp.sqrt(jnp.maximum(whole - (inside**2).sum(axis=-1), 0) / whole)


def _width(observation: Observation) -> int:
    model: Any = text_parts(observation)[0]
    return int(trees.subtree(observation.params, model.attention_kernels[0][0]).shape[0])


def _distances(parts: Iterable[_Inputs], space: row_space.RowSpace, width: int) -> npt.NDArray[np.float64]:
    """`RowSpace.distances` of batches of inputs: of all in float32 on the device, and of those that lie close again in float64.

    Args:
      parts: batches of one shape.
      space: that they may lie in.
      width: of an input.
    """
    # Ranks of neighbouring size share a program.
    basis = np.zeros((width, -(-space.basis.shape[1] // 16) * 16), np.float32)
    basis[space.rows, : space.basis.shape[1]] = space.basis
    covered = np.zeros(width, np.float32)
    covered[space.rows] = 1
    found: list[npt.NDArray[np.float64]] = []
    judged: deque[tuple[Array, _Inputs]] = deque()

    def look() -> None:
        distances, part = judged.popleft()
        near = np.asarray(distances)[: part.num_real].astype(np.float64)
        close = near < row_space.CLOSE
        if close.any():
            near[close] = space.exactly(np.asarray(part.values)[: part.num_real][close])
        found.append(near)

    for part in parts:
        # What is read of memory is what it takes: norms that are known are not made again.
        squares = part.squares if part.squares is not None and covered.all() else _squares(part.values, covered)
        # The device has the next ones while the host looks at the first.
        judged.append((_judge(part.values, squares, basis), part))
        if len(judged) > 4:
            look()
    while judged:
        look()
    return np.concatenate(found)


def _read(observation: Observation, tokens: Tokens, valid: npt.NDArray[np.bool_], num_layers: int, at_once: int) -> Iterator[_Inputs]:
    """The input of attention layer `num_layers` (from 1) in batches of one size, so that one program serves all."""
    model: Any = text_parts(observation)[0]
    read = _reader(model, num_layers)
    for part, real, count in _batches(tokens, valid, at_once):
        yield _Inputs(read(observation.params, part, real), count)


class _Vocabulary:
    """The first layer's inputs for every word at every position, kept for the weights that were used last: all cells of a seed test the same ones."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Any, list[_Inputs]]] = {}
        self._lock = threading.Lock()

    def inputs(self, observation: Observation, allowed: npt.NDArray[Any], at_once: int) -> Iterable[_Inputs]:
        """In batches of (at_once, T, width).

        Args:
          observation: of one round, whose weights are read.
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
            # The weights are held with what was made of them, so that no other array takes their place in memory.
            _, parts = self._kept.pop(key, None) or (leaves, [part._replace(squares=_squares(part.values, np.ones(width, np.float32))) for part in read()])
            while len(self._kept) >= KEPT_BYTES // size:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = leaves, parts
        return parts


def _layer_inputs(observation: Observation, tokens: Tokens, valid: npt.NDArray[np.bool_], num_layers: int, at_once: int) -> npt.NDArray[Any]:
    """The input of attention layer `num_layers` (from 1), (n, T, width)."""
    return np.concatenate([np.asarray(part.values)[: part.num_real] for part in _read(observation, tokens, valid, num_layers, at_once)])


class _Part(NamedTuple):
    """What one round's leaves say of the inputs of a layer.

    Attributes:
      seen: the observation of the round.
      space: that the inputs, or their products with `through`, lie in.
      through: (width, rank) an adapter's first factor, where the space is that of what its second one reads; None for the inputs themselves.
    """

    seen: Observation
    space: row_space.RowSpace
    through: Any = None

    def distances(self, inputs: Iterable[_Inputs]) -> npt.NDArray[np.float64]:
        """How far inputs lie from the space."""
        if self.through is None:
            return _distances(inputs, self.space, _width(self.seen))
        return _distances((_Inputs(_times(part.values, self.through), part.num_real) for part in inputs), self.space, self.through.shape[1])


@jax.jit
def _times(inputs: Array, matrix: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return inputs @ matrix


def _spaces(observation: Observation, layer: int, hidden: Hidden, max_rank: int, tolerance: float) -> list[_Part]:
    """Of the kernels that read the inputs; where these say nothing, of adapters' second factors, one space each.

    The first factor of a fresh adapter has no gradient, since the second one is 0. The gradient of that is (X A)' D: its columns lie in the span of the rows
    of X A, which is less than the whole space while fewer tokens occur than the adapter's rank.
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
    """What all rounds say of the inputs of one attention layer.

    Attributes:
      number: of the layer, from 1.
      parts: whose spaces say anything, of every round.
      leaves, unused: as `RowSpace` has them, of every round.
    """

    number: int
    parts: tuple[_Part, ...]
    leaves: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def distances(self, tokens: Tokens, valid: npt.NDArray[np.bool_], at_once: int) -> npt.NDArray[np.float64]:
        """How far each token's input (n, T) is from the row spaces, the geometric mean over them; 1 where nothing can be said."""
        return self._over_rounds(tokens.shape, lambda seen: _read(seen, tokens, valid, self.number, at_once))

    def distances_of_words(self, vocabulary: _Vocabulary, allowed: npt.NDArray[Any], length: int, at_once: int) -> npt.NDArray[np.float64]:
        """The same of every word (n,) at every position, (n, length); of the first layer."""
        return self._over_rounds((len(allowed), length), lambda seen: vocabulary.inputs(seen, allowed, at_once))

    def _over_rounds(self, shape: tuple[int, ...], inputs: Callable[[Observation], Iterable[_Inputs]]) -> npt.NDArray[np.float64]:
        if not self.parts:
            return np.ones(shape)
        each = [part.distances(inputs(part.seen)) for part in self.parts]
        return each[0] if len(each) == 1 else np.exp(np.mean([np.log(np.maximum(part, 1e-12)) for part in each], axis=0))


def _layer(observation: Observation, number: int, hidden: Hidden, max_rank: int, tolerance: float) -> _Layer:
    rounds = [_spaces(one, number - 1, hidden, max_rank, tolerance) for one in observation.rounds]
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
    found = layer.distances_of_words(vocabulary, allowed, length, at_once).T
    tokens, distances = [], []
    for position in range(length):
        passing = np.flatnonzero(found[position] < threshold)
        passing = passing if len(passing) else np.asarray([found[position].argmin()])
        order = passing[np.argsort(found[position][passing], kind="stable")][:max_candidates]
        ids, values = allowed[order], found[position][order]
        fixed = np.unique(known_ids[:, position][known[:, position] & real[:, position]])
        if known[:, position].all():
            ids, values = fixed, np.zeros(len(fixed))
        elif len(fixed):
            ids, values = np.concatenate([ids, fixed]), np.concatenate([values, np.zeros(len(fixed))])
        tokens.append(ids.astype(np.int64))
        distances.append(values)
    return _Candidates(tokens, distances)


def _pick(found: list[tuple[float, Tokens]], lengths: npt.NDArray[np.int64], spare: Callable[[int], Tokens]) -> list[Tokens]:
    """One sequence per length, the nearest first, none of them the beginning of another; `spare` where none is left.

    Beginnings of true sequences pass every test, so the longest are chosen first.
    """
    result: dict[int, Tokens] = {}
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        for _, tokens in sorted((item for item in found if len(item[1]) == length), key=lambda item: item[0]):
            if not any(np.array_equal(tokens, other[:length]) for other in result.values()):
                result[int(index)] = tokens
                break
        else:
            result[int(index)] = spare(length)
    return [result[i] for i in range(len(lengths))]


def _grow(
    observation: Observation, layer: _Layer, candidates: _Candidates, lengths: npt.NDArray[np.int64], threshold: float, beam: int, at_once: int
) -> list[Tokens]:
    """Decoders: a prefix's second-layer inputs depend on nothing after it, so sequences grow token by token."""
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
        # One that ends here must not keep the others from growing, so it is kept aside and grows on.
        finished += [item for item in alive if (lengths == position + 1).any()]
    return _pick(finished, lengths, lambda length: alive[0][1][:length])


def _affinities(observation: Observation, occurring: list[tuple[int, int]]) -> npt.NDArray[np.float64] | None:
    """How strongly two of the occurring (position, token) pairs attend to each other, (n, n) in [0, 1]; None where it cannot be computed.

    With the layer's inputs X known, D = pinv(X') dL/dW is what flowed back to each query and key. For a head with attention scores S,
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
        # A word seen at two positions makes others' shifted twins pass the first test too; what flowed back to whom is then not determined.
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
        # A softmax's scores move their own sum nowhere: each row of dL/dS sums to 0.
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
    """Encoders: every position reads all, so whole sequences are improved position by position from many starts.

    First by who attends to whom, which needs no forward pass; then those against the second layer's row space.
    """
    _, spec = text_parts(observation)
    width, generator = spec.shape[0], np.random.default_rng(0)
    known_ids, known = (np.asarray(x) for x in known_tokens(observation))
    occurring = [(p, int(t)) for p in range(int(lengths.max())) for t in candidates.tokens[p]]
    place = {pair: i for i, pair in enumerate(occurring)}
    affinity = _affinities(observation, occurring) if len(lengths) > 1 else None
    bonds = None if affinity is None else np.log(affinity + 1e-6)
    found: list[tuple[float, Tokens]] = []

    def by_layer(sequences: Tokens) -> npt.NDArray[np.float64]:
        length = sequences.shape[1]
        if not layer.parts:
            return np.ones(len(sequences))
        padded = np.pad(sequences, ((0, 0), (0, width - length)))
        real = np.broadcast_to(np.arange(width) < length, padded.shape)
        return layer.distances(padded, real, at_once)[:, :length].mean(axis=1)

    def by_bonds(sequences: Tokens) -> npt.NDArray[np.float64]:
        assert bonds is not None
        at = np.asarray([[place[p, int(t)] for p, t in enumerate(tokens)] for tokens in sequences])
        return -bonds[at[:, :, None], at[:, None, :]].mean(axis=(1, 2))

    for length in np.unique(lengths):
        row = int(np.flatnonzero(lengths == length)[0])
        choices = [np.asarray([known_ids[row, p]], np.int64) if known[row, p] else candidates.tokens[p] for p in range(length)]
        single = np.asarray([[c[0] for c in choices]], np.int32)
        if all(len(c) == 1 for c in choices):
            found.append((0.0, single[0]))
            continue
        wanted = int((lengths == length).sum())
        for attempt in range(num_attempts if layer.parts else 1):
            # Tokens of sentences that are found already are an unlikely start for another one.
            explained = {(p, int(t)) for value, tokens in found if value < threshold for p, t in enumerate(tokens)}
            likely = [np.asarray([t for t in c if (p, int(t)) not in explained] or c) for p, c in enumerate(choices)]
            # Bonds cost no forward pass, so many chains may start; they are tried first.
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
            found += list(zip(values.tolist(), chains, strict=True))
            if len({tuple(tokens) for value, tokens in found if value < threshold and len(tokens) == length}) >= wanted:
                break
    return _pick(found, lengths, lambda length: np.asarray([c[0] for c in candidates.tokens[:length]], np.int32))


def _improve(
    chains: Tokens, choices: list[npt.NDArray[np.int64]], score: Callable[[Tokens], npt.NDArray[np.float64]], generator: np.random.Generator
) -> tuple[Tokens, npt.NDArray[np.float64]]:
    """Coordinate descent: at each position in turn the choice of the lowest score, until nothing changes."""
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
    """Possible tokens; known ones (B, T) and where they are known."""
    possible, ids, known = map(np.asarray, _every_word(observation))
    return np.flatnonzero(possible), ids, known


@partial(jax.jit, static_argnums=2)
def _labels(key: Key, observation: Observation, hidden: Hidden) -> Array:
    """Compiled once for a model: done one operation after another, it would take most of the time of a short sentence."""
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

    Uses the visible gradients of query, key and value kernels of the first two layers, or of the second factors of their adapters where the first ones say
    nothing, as those of fresh adapters (ours), and says which. Hidden entries are completed at low rank
    (`ignore`, ours; `bounded` and `complete` add nothing to that here) or taken as 0 or the mean (`zero`, `average`). It runs on the host in float64,
    one observation after the other. Of several rounds each has its own row spaces, and a token's distance is the geometric mean over them.

    Args:
      hidden: what becomes of encrypted entries.
      first_threshold: relative distance of a token's embedding from the first layer's row space below which it may occur. The published 1e-5
        presumes float64; float32 gradients leave 1e-3 (docs/design.md).
      second_threshold: the same for the second layer.
      rank_tolerance: singular values below this share of the largest are noise; the rank is at most the number of tokens.
      max_candidates: tokens kept at each position; a word seen at two positions lets others pass there too, so a batch has many.
      beam: prefixes, or whole sequences, kept.
      num_attempts: rounds of starts for the sentences of an encoder that no earlier round found.
      tokens_at_once: embedded in one batch; bounds the memory.
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
            # Nothing can be tested: a sample of the prior, as every attack returns at ratio 1.
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
        found, moved = jnp.asarray(tokens), bool(report["used"])
        return Reconstruction.single(found, jnp.asarray(labels, jnp.int32), jnp.float32(objective), report=json.dumps(report), moved=moved)

    return on_host(reconstruct, rung=hidden)
