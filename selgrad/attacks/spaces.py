"""What an attack optimises over: pixels, or word embeddings that are read as the nearest tokens at the end.

A space is made from an observation and says how dummy inputs start, which parts of them are known, and what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from selgrad import trees
from selgrad.attacks.priors import Gaussian, of_nature, of_public
from selgrad.attacks.starts import Start, TextStart, draw
from selgrad.base import InputSpec, Key, Observation, TextModel, TextSpec
from selgrad.errors import UsageError


class Space(NamedTuple):
    """Dummy inputs of one observation.

    Attributes:
      shape: of the dummy inputs, (B, ...).
      draw: key -> a start.
      fix: dummy inputs -> embedded inputs: the same with the known parts filled in, or mapped through a prior.
      read: embedded inputs -> the inputs of a `Reconstruction`.
      place: embedded inputs -> the dummy inputs that `fix` maps to them.
      informed: () bool, whether what is visible narrows what `read` may return, so that even a start says something about the client.
    """

    shape: tuple[int, ...]
    draw: Callable[[Key], Array]
    fix: Callable[[Array], Array]
    read: Callable[[Array], Array]
    place: Callable[[Array], Array] = lambda x: x
    informed: Array | bool = False


SpaceRule = Callable[[Observation], Space]


def image_spec(observation: Observation) -> InputSpec:
    """Returns the spec of the inputs, if they are images.

    Raises:
      UsageError: if they are text.
    """
    spec = observation.model.input_spec
    if not isinstance(spec, InputSpec):
        raise UsageError("this attack optimises pixels and the data are text; choose dlg_text, tag, lamp or dager")
    return spec


def pixels(start: Start) -> SpaceRule:
    """Optimises the images themselves."""

    def make(observation: Observation) -> Space:
        spec, size = image_spec(observation), observation.update.batch_size
        return Space((size, *spec.shape), lambda key: draw(start, key, size, spec), lambda x: x, lambda x: x)

    return make


def image_prior(observation: Observation, shrinkage: float = 0.1) -> Gaussian:
    """Returns the prior of images: of the public ones where the attacker has any, else of photographs."""
    spec = image_spec(observation)
    return of_nature(spec) if observation.public is None else of_public(observation.public, spec, shrinkage)


def whitened(shrinkage: float = 0.1) -> SpaceRule:
    """Optimises white noise that a Gaussian prior maps to images: the prior of public images where the attacker has any, else one of photographs.

    Starts are near the prior's mean, with noise of a tenth of the prior's deviation; without it the inputs of a batch would stay equal.
    """

    def make(observation: Observation) -> Space:
        spec, size = image_spec(observation), observation.update.batch_size
        prior = image_prior(observation, shrinkage)
        shape = (size, *spec.shape)
        return Space(
            shape=shape,
            draw=lambda key: 0.1 * jax.random.normal(key, shape),
            fix=lambda z: prior.mean + prior.root(z),
            read=lambda x: x,
            place=lambda x: prior.inverse(x - prior.mean),
        )

    return make


def text_parts(observation: Observation) -> tuple[TextModel, TextSpec]:
    """Returns the model and its spec, if they are of text.

    Raises:
      UsageError: if they are of images.
    """
    spec = observation.model.input_spec
    if not isinstance(spec, TextSpec):
        raise UsageError("this attack reads text and the data are images; choose dlg, idlg or inverting_gradients")
    return cast(TextModel, observation.model), spec


def known_tokens(observation: Observation) -> tuple[Int[Array, "b t"], Bool[Array, "b t"]]:
    """Returns the tokens that the attacker knows, and where: the opening one and, where the padding is known, the closing one and the padding."""
    _, spec = text_parts(observation)
    shape = (observation.update.batch_size, *spec.shape)
    tokens, known = jnp.full(shape, spec.pad_id, jnp.int32), jnp.zeros(shape, bool)
    if spec.start_id is not None:
        tokens, known = tokens.at[:, 0].set(spec.start_id), known.at[:, 0].set(True)
    if observation.valid is not None:
        known = known | ~observation.valid
        if spec.end_id is not None:
            last = jnp.arange(shape[1]) == observation.valid.sum(axis=1, keepdims=True) - 1
            tokens, known = jnp.where(last, spec.end_id, tokens), known | last
    return tokens, known


def words(observation: Observation) -> Bool[Array, " v"]:
    """Returns which tokens are words: of the vocabulary, and not special."""
    model, spec = text_parts(observation)
    size = trees.subtree(observation.params, model.embedding).shape[0]
    return jnp.ones(size, bool).at[jnp.asarray(spec.special_ids, jnp.int32)].set(False) & (jnp.arange(size) < spec.vocabulary_size)


def names_tokens(observation: Observation) -> Bool[Array, ""]:
    """Returns whether visible rows of the word-embedding gradient rule out any word."""
    return (words(observation) & ~possible_tokens(observation)).any()


def possible_tokens(observation: Observation) -> Bool[Array, " v"]:
    """Returns which tokens a sentence may hold: no special ones and, where rows of the word-embedding gradient are visible, only those that they name.

    A row that is wholly visible and 0 rules its token out: a token that occurs has a gradient there.
    """
    model, _ = text_parts(observation)
    possible = words(observation)
    if model.embedding in trees.paths(observation.visible) and model.embedding in model.bypassed:
        rows, hidden = trees.subtree(observation.visible, model.embedding), trees.subtree(observation.mask, model.embedding)
        named = (rows != 0).any(axis=1) | hidden.any(axis=1)
        # An embedding tied to the output layer has gradients everywhere and names nothing.
        possible = jnp.where((possible & named).any(), possible & named, possible)
    return possible


def nearest_tokens(observation: Observation, embedded: Float[Array, "b t d"]) -> Int[Array, "b t"]:
    """Returns the possible token with the largest cosine similarity at each position, or the known token where there is one."""
    model, _ = text_parts(observation)
    table = trees.subtree(observation.params, model.embedding)
    unit = table / jnp.maximum(jnp.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    scores = jnp.where(possible_tokens(observation), embedded @ unit.T, -jnp.inf)
    tokens, known = known_tokens(observation)
    return jnp.where(known, tokens, jnp.argmax(scores, axis=-1).astype(jnp.int32))


def embeddings(start: TextStart = "vocabulary") -> SpaceRule:
    """Optimises word embeddings that start at random and are read as the nearest tokens by cosine.

    Known tokens are inserted at every step, as LAMP does with [CLS], [SEP] and the padding (balunovic2022lamp).
    """

    def make(observation: Observation) -> Space:
        model, spec = text_parts(observation)
        table = trees.subtree(observation.params, model.embedding)
        shape = (observation.update.batch_size, *spec.shape, table.shape[1])
        tokens, known = known_tokens(observation)

        def begin(key: Key) -> Array:
            noise = jax.random.normal(key, shape)
            if start == "normal":
                return noise
            return noise / jnp.linalg.norm(noise, axis=-1, keepdims=True) * jnp.linalg.norm(table, axis=1).mean()

        def fix(embedded: Array) -> Array:
            return jnp.where(known[..., None], table[tokens], embedded)

        return Space(shape, begin, fix, lambda embedded: nearest_tokens(observation, embedded), informed=names_tokens(observation))

    return make
