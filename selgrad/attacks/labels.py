"""Label recovery from the visible part of the last dense layer's gradient; where that does not determine a label, the attack tries several.

With one-hot cross-entropy, d loss / d kernel[:, c] = h (p_c - y_c) and d loss / d bias[c] = p_c - y_c: Zhao et al., "iDLG", arXiv 2001.02676 (zhao2020idlg),
equations 4 to 6. Batches by counts after Wainakh et al. 2022 (wainakh2022llg).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selgrad import trees
from selgrad.attacks.distances import cosine
from selgrad.attacks.hidden import Hidden, Target
from selgrad.attacks.priors import of_nature
from selgrad.base import Grads, InputSpec, Key, Observation, loss_gradient
from selgrad.errors import UsageError


class Plausible(NamedTuple):
    """Labels that a batch may have.

    Attributes:
      labels: one row per candidate, the most plausible first.
      certain: whether the visible entries allow only the first candidate; otherwise an attack tries all, and its objective decides.
    """

    labels: Int[Array, "k b"]
    certain: Bool[Array, ""]


LabelRule = Callable[[Key, Observation, Target], Plausible]
_DUMMIES = 4


def _head(tree: Grads, observation: Observation) -> tuple[Array, Array]:
    """Returns the last dense layer's kernel (features, classes) and bias (classes,) of a tree like the update; zeros where it is not sent."""
    name, classes = observation.model.head, observation.model.input_spec.num_classes
    dtype = jax.tree.leaves(tree)[0].dtype
    sent = set(trees.paths(tree))
    part = lambda leaf, shape: trees.subtree(tree, f"{name}/{leaf}") if name and f"{name}/{leaf}" in sent else jnp.zeros(shape, dtype)
    return part("kernel", (1, classes)), part("bias", (classes,))


def most_negative_columns(key: Key, observation: Observation, target: Target) -> Int[Array, " b"]:
    """Returns the batch_size classes with the smallest column sums of the last layer's gradient, smallest first: the published rule of attacks on images.

    It is exact at batch 1 for non-negative features; for a batch it assumes distinct labels (Yin et al. 2021, yin2021gradinversion). Classes
    whose column is wholly hidden sum to 0 and are ordered at random, so that a wholly hidden layer gives a random guess and not class 0.
    """
    sums = _head(target.grads, observation)[0].sum(axis=0)
    order = jnp.lexsort((jax.random.uniform(key, sums.shape), sums))
    classes: Array = order[jnp.arange(observation.update.batch_size) % sums.size].astype(jnp.int32)
    return classes


def published(key: Key, observation: Observation, target: Target) -> Plausible:
    """Applies `most_negative_columns` and takes its result as certain."""
    return Plausible(most_negative_columns(key, observation, target)[None], jnp.ones((), bool))


def _dummies(key: Key, observation: Observation, count: int) -> Float[Array, "n b ..."]:
    """Draws embedded inputs of `count` batches that are unrelated to the client's: noise, or random tokens."""
    spec, size = observation.model.input_spec, observation.update.batch_size
    if isinstance(spec, InputSpec):
        return jax.random.normal(key, (count, size, *spec.shape))
    tokens = jax.random.randint(key, (count, size, *spec.shape), 0, spec.vocabulary_size)
    return jax.vmap(lambda batch: observation.model.embed(observation.params, batch))(tokens)


def plausible(most: int = 10) -> LabelRule:
    """Returns a rule for the labels that the visible part of the last layer allows, at most `most` candidates.

    For one input, a class with a negative bias gradient is the label, and a class with a positive one is not. All columns of the kernel's gradient are
    multiples of the features, and only the label's has the opposite sign: the label's column has negative products with all others, over the entries that are
    visible in both and for any signs of the features, and two columns with a positive product both belong to other classes. Where several classes are left,
    they are ordered by how well the updates of random dummies, labelled with each, agree in direction with the visible entries over all layers.

    For a batch, the rule uses `counts`; the other candidates are the labels that follow if the counts are off by about half an input.

    Args:
      most: number of candidates.

    Returns:
      A rule, which raises UsageError where every position of an input has a label.
    """

    def rule(key: Key, observation: Observation, target: Target) -> Plausible:
        if observation.model.input_spec.label_shape:
            raise UsageError("this attack infers one label per input, and here every position has a label; set known_labels: true")
        return _of_one(key, observation, target, most) if observation.update.batch_size == 1 else _of_batch(key, observation, target, most)

    return rule


def _of_one(key: Key, observation: Observation, target: Target, most: int) -> Plausible:
    model, params = observation.model, observation.params
    num_classes = model.input_spec.num_classes
    dummies_key, ties_key = jax.random.split(key)
    (kernel, bias), (_, bias_counted) = _head(target.grads, observation), _head(target.counted, observation)
    # Each column is divided by its largest entry: probabilities of other classes may be 1e-30.
    kernel = kernel / jnp.maximum(jnp.abs(kernel).max(axis=0), jnp.finfo(kernel.dtype).tiny)
    products = (kernel.T @ kernel) * (1 - jnp.eye(num_classes))
    negative, positive = (products < 0).sum(axis=0), (products > 0).sum(axis=0)
    named = ((bias_counted > 0) & (bias < 0)) | ((negative >= 2) & (positive == 0))
    # If the network is certain, the label's gradient is 0 in float32 while all others are still positive.
    excluded = ~named & (((bias_counted > 0) & (bias > 0)) | (positive > 0))
    # Several local steps and noise cause contradictions, and then nothing is ruled out.
    contradictory = (named.sum() > 1) | excluded.all()
    named, excluded = named & ~contradictory, excluded & ~contradictory
    certain = named.any() | ((~excluded).sum() == 1)
    dummies = _dummies(dummies_key, observation, _DUMMIES)

    def agreement(label: Array) -> Array:
        soft = jax.nn.one_hot(label, num_classes)[None]
        return jax.lax.map(lambda dummy: -cosine(observation.update(model, params, dummy, soft, observation.valid), target), dummies).mean()

    # Nothing is tried where the label is certain.
    scored = lambda label, agreements_so_far: agreements_so_far.at[label].set(agreement(label))
    agreements = jax.lax.fori_loop(0, jnp.where(certain, 0, num_classes), scored, jnp.zeros_like(bias))
    group = jnp.where(named, 0, jnp.where(excluded, 2, 1))
    order = jnp.lexsort((jax.random.uniform(ties_key, bias.shape), -agreements, group))
    # Classes that are ruled out are never tried: the first candidate takes their place.
    ruled_out = excluded[order[:most]]
    return Plausible(jnp.where(ruled_out, order[0], order[:most]).astype(jnp.int32)[:, None], certain)


_ROUNDS = 6
"""Updates simulated to find the labels of a batch, after the two that measure how the update responds to a label."""


def _likely(key: Key, observation: Observation) -> Float[Array, "b ..."]:
    """Returns embedded inputs of a batch as the attacker imagines it: public ones, draws from a prior of photographs, or random tokens."""
    spec, size = observation.model.input_spec, observation.update.batch_size
    if observation.public is not None:
        return observation.model.embed(observation.params, observation.public.inputs[0])
    if not isinstance(spec, InputSpec):
        return _dummies(key, observation, 1)[0]
    prior = of_nature(spec)
    drawn = prior.mean + prior.root(jax.random.normal(key, (size, *spec.shape)))
    return jnp.clip(drawn, jnp.asarray(spec.low, drawn.dtype), jnp.asarray(spec.high, drawn.dtype))


def counts(key: Key, observation: Observation, target: Target) -> tuple[Float[Array, " c"], Bool[Array, ""]]:
    """Estimates how often each class occurs in the batch from the last layer's update, for features of either sign, and says whether the bias is visible.

    The gradient of the bias is mean(p_c) - n_c / B. Imagined inputs stand for the batch: all of them get the same soft label, which is moved until the bias
    of their update equals the client's, so this also covers several local steps and a scaled loss (after RLU, Chen and Vikalo 2024, chen2024recovering). How
    far p of the batch differs from theirs also follows from the update: its kernel is nearly the outer product of the mean features and the bias, so the
    bias determines the features, and these determine p (after iLRG, Ma et al. 2023, ma2023instance).

    Without the whole bias, the kernel's columns are mean(h (p_c - y_c)), and features h' of imagined inputs stand for h: col_c . h' / |h'|^2.
    """
    model, params, size = observation.model, observation.params, observation.update.batch_size
    imagined = _likely(key, observation)
    logits = model.logits(params, imagined, observation.valid)
    probabilities = jax.nn.softmax(logits).mean(axis=0)
    chosen = jax.nn.one_hot(jnp.zeros(size, jnp.int32), logits.shape[-1])
    # One class's column of their own gradient equals their features up to a factor, and its bias is that factor: 1 unless the loss is scaled.
    own = loss_gradient(model, params, lambda _: imagined, chosen, observation.valid)
    factor = jnp.where(jnp.abs(probabilities[0] - 1) > 1e-6, probabilities[0] - 1, -1)
    own_kernel, own_bias = (part[..., 0] / factor for part in _head(own, observation))
    (kernel, bias), (kernel_counted, bias_counted) = _head(target.grads, observation), _head(target.counted, observation)
    whole = (bias_counted > 0).all()
    scale = jnp.maximum(jnp.linalg.norm(own_kernel), 1e-30)
    directions = jnp.where(kernel_counted > 0, (own_kernel / scale)[:, None], 0)
    known = (directions**2).sum(axis=0)
    slopes = (kernel / scale * directions).sum(axis=0) / jnp.where(known > 0, known, 1)

    weights, offsets = _head(params, observation)
    own_features = own_kernel / jnp.where(own_bias > 0, own_bias, 1)
    norms = (kernel_counted * bias**2).sum(axis=1)
    visible_features = norms > 1e-6 * (bias**2).sum()
    features = jnp.where(visible_features, (kernel_counted * kernel * bias).sum(axis=1) / jnp.where(visible_features, norms, 1), own_features)
    others = jax.nn.softmax(features @ weights + offsets) - jax.nn.softmax(own_features @ weights + offsets)

    def simulated(label: Array) -> Array:
        return _head(observation.update(model, params, imagined, jnp.broadcast_to(label, chosen.shape), observation.valid), observation)[1]

    first, second = jnp.eye(bias.size)[:2]
    answers = jax.lax.map(simulated, jnp.stack([first, second]))
    slope = jnp.maximum(jnp.vdot(answers[1] - answers[0], first - second) / 2, 1e-12)

    def nearer(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        label, best, smallest = carry
        gap = simulated(label) - bias + slope * others
        distance = jnp.linalg.norm(gap)
        best, smallest = jnp.where(distance < smallest, label, best), jnp.minimum(distance, smallest)
        return best + jnp.where(distance > smallest, 0.3, 1.0) * gap / slope, best, smallest

    label = jax.lax.fori_loop(0, _ROUNDS, nearer, (probabilities, probabilities, jnp.inf))[1]
    return size * jnp.where(whole, label, probabilities - slopes), whole


def _take(count: Float[Array, " c"], size: int) -> Int[Array, " b"]:
    """Returns the labels of `size` inputs, taking each time the class with the largest remaining count."""

    def take(left: Array, _: Array) -> tuple[Array, Array]:
        best = jnp.argmax(left)
        return left.at[best].add(-1.0), best.astype(jnp.int32)

    labels: Array = jax.lax.scan(take, count, jnp.arange(size))[1]
    return labels


def _of_batch(key: Key, observation: Observation, target: Target, most: int) -> Plausible:
    size = observation.update.batch_size
    dummies_key, noise_key = jax.random.split(key)
    estimate, whole = counts(dummies_key, observation, target)
    estimate = estimate + 1e-6 * jax.random.uniform(noise_key, estimate.shape)
    off = 0.5 * jax.random.normal(noise_key, (most, *estimate.shape)).at[0].set(0)
    near = jnp.abs(estimate - jnp.round(estimate)).max() < 0.25
    return Plausible(jax.vmap(lambda count: _take(count, size))(estimate + off), whole & near)


def rule_for(hidden: Hidden) -> LabelRule:
    """Returns the label rule of an attack on images at a rung of the ladder: the published one where hidden entries are replaced by a value."""
    return published if hidden in ("zero", "average") else plausible()
