"""LAMP's discrete moves: permutations of a sentence's tokens, scored by gradient distance and by how likely the text is.

Balunovic et al., "LAMP: Extracting Text from Gradients with Language Model Priors", NeurIPS 2022 (balunovic2022lamp), section 4.3. All
candidates of a phase are scored as one batch in the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from selgrad.attacks.kernel import Search, Value
from selgrad.attacks.spaces import embeddings, known_tokens, nearest_tokens
from selgrad.base import Key, LanguageModel, Observation


def random_move(key: Key, first: Array, count: Array, length: int) -> Int[Array, " t"]:
    """An order of `length` positions that differs from 0, 1, 2, ... by one of LAMP's moves inside first .. first + count - 1.

    Two tokens change places; or a token, a run of tokens, or all that lies before some token goes elsewhere. The last three exchange two
    neighbouring runs.
    """
    kinds, cuts, places = jax.random.split(key, 3)
    kind = jax.random.randint(kinds, (), 0, 4)
    i, j = jax.random.randint(places, (2,), 0, jnp.maximum(count, 1))
    low, middle, high = jnp.sort(jax.random.randint(cuts, (3,), 0, count + 1))
    # 1: one token goes from i to j; 2: a run; 3: the prefix goes to the end.
    token = (jnp.minimum(i, j), jnp.where(i < j, i + 1, jnp.maximum(i, j)), jnp.maximum(i, j) + 1)
    low, middle, high = (
        jnp.where(kind == 1, t, jnp.where(kind == 3, p, c)) for t, p, c in zip(token, (0, middle, count), (low, middle, high), strict=True)
    )  # fmt: skip
    at = jnp.arange(length) - first
    turned = low + jnp.mod(at - low + (middle - low), jnp.maximum(high - low, 1))
    swapped = jnp.where(at == i, j, jnp.where(at == j, i, at))
    moved = jnp.where(kind == 0, swapped, jnp.where((at >= low) & (at < high), turned, at))
    return (jnp.where((at >= 0) & (at < count), moved, at) + first).astype(jnp.int32)


def in_batches(function: Callable[[Array], Array], items: Array, at_once: int) -> Array:
    """`vmap(function)(items)` in batches of `at_once`, the last one padded; `jax.lax.map` would compile the rest a second time."""
    batches = -(-len(items) // at_once)
    whole = jnp.concatenate([items, jnp.broadcast_to(items[:1], (batches * at_once - len(items), *items.shape[1:]))])
    found = jax.lax.map(jax.vmap(function), whole.reshape(batches, at_once, *items.shape[1:]))
    return found.reshape(-1, *found.shape[2:])[: len(items)]


def _free(observation: Observation) -> tuple[Array, Array]:
    """The first position of each sentence that is not known, and how many there are."""
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
    """Random starts and permutations of the best one before the first step, and moves after each.

    Args:
      num_starts: random starts, the best by the objective.
      num_start_permutations: random orders of that one's positions.
      num_moves: candidates of a phase.
      language_model: of the attacker, its parameters in `Observation.auxiliary`; None scores by the objective alone.
      perplexity_weight: of the log-perplexity of the candidates' nearest tokens.
      first_round: phases before this one change nothing.
      candidates_at_once: scored in one batch, which bounds the memory.
    """

    def start(key: Key, observation: Observation, value: Value) -> Array:
        space = embeddings()(observation)
        first, count = _free(observation)
        length = space.shape[1]

        def candidate(key: Key, chosen: Array, shuffle: Array) -> Array:
            at = jnp.arange(length)
            free = (at >= first[:, None]) & (at < (first + count)[:, None])
            # Positions that are known sort to where they are.
            rank = jnp.where(free, first[:, None] + jax.random.uniform(key, free.shape) * count[:, None], at)
            return jnp.where(shuffle, jnp.take_along_axis(chosen, jnp.argsort(rank, axis=1)[..., None], axis=1), space.fix(space.draw(key)))

        def stage(best: tuple[Array, Array], item: tuple[Key, Array]) -> tuple[tuple[Array, Array], None]:
            key, shuffle = item
            candidates = jax.vmap(candidate, (0, None, None))(jax.random.split(key, max(num_starts, num_start_permutations, 1)), best[0], shuffle)
            used = jnp.arange(len(candidates)) < jnp.where(shuffle, num_start_permutations, max(num_starts, 1))
            scores = jnp.where(used, jnp.nan_to_num(in_batches(value, candidates, candidates_at_once), nan=jnp.inf), jnp.inf)
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

        def one(key: Key) -> Array:
            which, move = jax.random.split(key)
            sentence = jax.random.randint(which, (), 0, size)
            order = random_move(move, first[sentence], count[sentence], length)
            return jnp.where(jnp.arange(size)[:, None] == sentence, order, jnp.arange(length))

        orders = jnp.concatenate([jnp.broadcast_to(jnp.arange(length), (1, size, length)), jax.vmap(one)(jax.random.split(key, num_moves))])
        distances = in_batches(lambda order: value(jnp.take_along_axis(inputs, order[..., None], axis=1)), orders, candidates_at_once)
        scores = distances
        if language_model is not None:
            likely = _perplexities(language_model, observation, tokens, real, candidates_at_once)
            scores = distances + perplexity_weight * likely(orders)
        index = jnp.where(step >= first_round, jnp.argmin(jnp.nan_to_num(scores, nan=jnp.inf)), 0)
        return jnp.take_along_axis(inputs, orders[index][..., None], axis=1), distances[index]

    return Search(start, refine, 2 * max(num_starts, num_start_permutations, 1), num_moves + 1)


def _perplexities(language_model: LanguageModel, observation: Observation, tokens: Array, real: Array, at_once: int) -> Callable[[Array], Array]:
    def likely(orders: Int[Array, "n b t"]) -> Float[Array, " n"]:
        def one(order: Array) -> Array:
            return language_model.log_perplexity(observation.auxiliary, jnp.take_along_axis(tokens, order, axis=1), real).mean()

        return in_batches(one, orders, at_once)

    return likely
