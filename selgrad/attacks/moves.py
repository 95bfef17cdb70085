"""LAMP's discrete moves: permutations of a sentence's tokens, scored by gradient distance and by how likely the text is.

Balunovic et al., "LAMP: Extracting Text from Gradients with Language Model Priors", NeurIPS 2022 (balunovic2022lamp), section 4.3. All
candidates of a phase are scored in the compiled program, and shared work is done once (ours): moves of a short sentence repeat, and a language model would
otherwise read the same prefixes many times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from selgrad.attacks.kernel import Search, Value
from selgrad.attacks.spaces import embeddings, known_tokens, nearest_tokens
from selgrad.base import Key, LanguageModel, Observation, Params


def random_move(key: Key, first: Array, count: Array, length: int) -> Int[Array, " t"]:
    """Draws an order of `length` positions that differs from 0, 1, 2, ... by one of LAMP's moves inside first .. first + count - 1.

    Two tokens are swapped, or a token, a run of tokens, or the prefix before some token is moved. The last three moves exchange two neighbouring
    runs.
    """
    kind_key, cuts_key, ends_key = jax.random.split(key, 3)
    kind = jax.random.randint(kind_key, (), 0, 4)
    i, j = jax.random.randint(ends_key, (2,), 0, jnp.maximum(count, 1))
    low, middle, high = jnp.sort(jax.random.randint(cuts_key, (3,), 0, count + 1))
    # 1: one token goes from i to j; 2: a run; 3: the prefix goes to the end.
    token = (jnp.minimum(i, j), jnp.where(i < j, i + 1, jnp.maximum(i, j)), jnp.maximum(i, j) + 1)
    low, middle, high = (
        jnp.where(kind == 1, t, jnp.where(kind == 3, p, c)) for t, p, c in zip(token, (0, middle, count), (low, middle, high), strict=True)
    )  # fmt: skip
    offset = jnp.arange(length) - first
    turned = low + jnp.mod(offset - low + (middle - low), jnp.maximum(high - low, 1))
    swapped = jnp.where(offset == i, j, jnp.where(offset == j, i, offset))
    moved = jnp.where(kind == 0, swapped, jnp.where((offset >= low) & (offset < high), turned, offset))
    return (jnp.where((offset >= 0) & (offset < count), moved, offset) + first).astype(jnp.int32)


def first_alike(rows: Int[Array, "n t"]) -> Int[Array, "n t"]:
    """Returns, for each prefix of each row, the index of the first row with the same prefix."""

    def longer(alike: Array, column: Array) -> tuple[Array, Array]:
        alike = alike & (column[:, None] == column)
        return alike, jnp.argmax(alike, axis=1)

    return jax.lax.scan(longer, jnp.ones((len(rows), len(rows)), bool), rows.T)[1].T


def once(function: Callable[[Any], Array], items: Any, first: Int[Array, " n"], needed: Bool[Array, " n"], at_once: int) -> Float[Array, "n ..."]:
    """Evaluates `function(items)` where needed, in batches of `at_once`; equal items are computed once.

    Args:
      function: maps items with a leading axis to one result for each.
      items: arrays with the leading axis n.
      first: for each item the index of the first equal one, which is needed if the item is.
      needed: which items are needed; the results of the others are arbitrary.
      at_once: items per batch. The distinct items determine the number of batches; under `vmap` those of the lane with the most.
    """
    chosen = needed & (first == jnp.arange(len(first)))
    count = chosen.sum()
    index = jnp.nonzero(chosen, size=-(-len(first) // at_once) * at_once, fill_value=0)[0]

    def batch(state: tuple[Array, Array]) -> tuple[Array, Array]:
        done, results = state
        indices = jax.lax.dynamic_slice_in_dim(index, done, at_once)
        return done + at_once, results.at[indices].set(function(jax.tree.map(lambda leaf: leaf[indices], items)))

    shape = jax.eval_shape(function, items)
    start = jnp.int32(0), jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.while_loop(lambda state: state[0] < count, batch, start)[1][first]


def _free(observation: Observation) -> tuple[Array, Array]:
    """Returns the first unknown position of each sentence, and the number of unknown positions."""
    _, known = known_tokens(observation)
    return jnp.argmin(known, axis=1), (~known).sum(axis=1)


def permutations(
    *,
    num_starts: int,
    num_start_permutations: int,
    num_moves: int,
    language_model: LanguageModel | None,
    perplexity_weight: float,
    first_round: int,
    candidates_at_once: int,
) -> Search:
    """Returns a search that compares random starts and permutations of the best one before the first step, and tries moves after each step.

    Args:
      num_starts: random starts, of which the objective picks the best.
      num_start_permutations: random orders of the positions of that start.
      num_moves: candidates of a phase.
      language_model: the attacker's, with its parameters in `Observation.auxiliary`; None scores by the objective alone.
      perplexity_weight: of the log-perplexity of the candidates' nearest tokens.
      first_round: phases before this one change nothing.
      candidates_at_once: candidates scored in one batch, which bounds the memory.
    """

    def start(key: Key, observation: Observation, value: Value) -> Array:
        space = embeddings()(observation)
        first, count = _free(observation)
        length = space.shape[1]

        def candidate(key: Key, chosen: Array, shuffle: Array) -> Array:
            positions = jnp.arange(length)
            free = (positions >= first[:, None]) & (positions < (first + count)[:, None])
            # Known positions keep their place in the sort.
            rank = jnp.where(free, first[:, None] + jax.random.uniform(key, free.shape) * count[:, None], positions)
            return jnp.where(shuffle, jnp.take_along_axis(chosen, jnp.argsort(rank, axis=1)[..., None], axis=1), space.fix(space.draw(key)))

        def stage(best: tuple[Array, Array], item: tuple[Key, Array]) -> tuple[tuple[Array, Array], None]:
            key, shuffle = item
            candidates = jax.vmap(candidate, (0, None, None))(jax.random.split(key, max(num_starts, num_start_permutations, 1)), best[0], shuffle)
            used = jnp.arange(len(candidates)) < jnp.where(shuffle, num_start_permutations, max(num_starts, 1))
            values = once(jax.vmap(value), candidates, jnp.arange(len(candidates)), used, candidates_at_once)
            scores = jnp.where(used, jnp.nan_to_num(values, nan=jnp.inf), jnp.inf)
            index = jnp.argmin(scores)
            better = scores[index] < best[1]
            return (jnp.where(better, candidates[index], best[0]), jnp.minimum(scores[index], best[1])), None

        # One stage of random starts and one of shuffled orders, as a loop so that the objective is compiled once.
        stages = (jax.random.split(key), jnp.asarray([False, True]))
        (chosen, _), _ = jax.lax.scan(stage, (space.fix(space.draw(key)), jnp.float32(jnp.inf)), stages)
        return chosen

    def refine(key: Key, observation: Observation, value: Value, inputs: Array, step: Array) -> tuple[Array, Array]:
        size, length = inputs.shape[:2]
        first, count = _free(observation)
        tokens, valid = nearest_tokens(observation, inputs), observation.valid
        real = jnp.ones((size, length), bool) if valid is None else valid

        def moved_order(key: Key) -> Array:
            which, move = jax.random.split(key)
            sentence = jax.random.randint(which, (), 0, size)
            order = random_move(move, first[sentence], count[sentence], length)
            return jnp.where(jnp.arange(size)[:, None] == sentence, order, jnp.arange(length))

        orders = jnp.concatenate([jnp.broadcast_to(jnp.arange(length), (1, size, length)), jax.vmap(moved_order)(jax.random.split(key, num_moves))])
        # Before the first round only the unchanged order counts.
        needed = (step >= first_round) | (jnp.arange(len(orders)) == 0)
        moved = lambda order: value(jnp.take_along_axis(inputs, order[..., None], axis=1))
        distances = once(jax.vmap(moved), orders, first_alike(orders.reshape(len(orders), -1))[:, -1], needed, candidates_at_once)
        scores = distances
        if language_model is not None:
            candidates = jnp.take_along_axis(jnp.broadcast_to(tokens, orders.shape), orders, axis=2)
            judge = partial(log_perplexities, language_model, observation.auxiliary, needed=needed, at_once=candidates_at_once)
            scores = distances + perplexity_weight * jax.vmap(judge, (1, 0), 1)(candidates, real).mean(axis=1)
        index = jnp.where(step >= first_round, jnp.argmin(jnp.nan_to_num(scores, nan=jnp.inf)), 0)
        return jnp.take_along_axis(inputs, orders[index][..., None], axis=1), distances[index]

    return Search(start, refine, 2 * max(num_starts, num_start_permutations, 1), num_moves + 1)


def log_perplexities(
    language_model: LanguageModel, params: Params, candidates: Int[Array, "n t"], real: Bool[Array, " t"], *, needed: Bool[Array, " n"], at_once: int
) -> Float[Array, " n"]:
    """Returns the mean negative log-likelihood per token after the first, for candidates of one sentence; each prefix is scored once.

    Args:
      language_model: of the attacker.
      params: its parameters.
      candidates: of one sentence.
      real: which positions are not padding.
      needed: which candidates are needed; the results of the others are arbitrary.
      at_once: candidates that are read in one batch; tokens are scored in batches of that many times their length.
    """
    first, (count, steps) = first_alike(candidates), candidates[:, 1:].shape
    read = lambda rows: language_model.next_states(params, rows, jnp.broadcast_to(real, rows.shape))
    states = once(read, candidates, first[:, -1], needed, at_once)[:, :-1]
    # A token's likelihood depends on the prefix that ends with it.
    alike = first[:, 1:] * steps + jnp.arange(steps)
    judge = lambda pairs: language_model.log_likelihood(params, *pairs)
    pairs = states.reshape(count * steps, -1), candidates[:, 1:].reshape(-1)
    log_likelihoods = once(judge, pairs, alike.reshape(-1), (needed[:, None] & real[1:]).reshape(-1), at_once * steps).reshape(count, steps)
    return -jnp.where(real[1:], log_likelihoods, 0).sum(axis=1) / jnp.maximum(real[1:].sum(), 1)
