"""Label recovery from the gradient of the last dense layer, with whatever of it is visible.

With one-hot cross-entropy, d loss / d kernel[:, c] = h (p_c - y_c): for non-negative features h, only the true class has a negative sum.
Zhao et al., "iDLG", arXiv 2001.02676 (zhao2020idlg), equations 4 to 6.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from selgrad import trees
from selgrad.attacks.hidden import Hidden, Target
from selgrad.base import Grads, Key, Observation, loss_gradient

LabelRule = Callable[[Key, Observation, Target], Array]


def _last_kernel(tree: Grads, observation: Observation) -> Array:
    """The last dense layer's kernel of a tree like the update; where a model has no such layer, one row of zeros: nothing visible."""
    model = observation.model
    if not model.head:
        return jnp.zeros((1, model.input_spec.num_classes), jax.tree.leaves(tree)[0].dtype)
    kernel: Array = trees.at(tree, model.head)["kernel"]
    return kernel


def most_negative_columns(key: Key, observation: Observation, target: Target) -> Int[Array, " b"]:
    """The batch_size classes with the smallest column sums of the last layer's gradient, smallest first.

    Exact at batch 1 for non-negative features; for a batch it assumes distinct labels (Yin et al. 2021, yin2021gradinversion). Classes
    whose column is hidden whole sum to 0 and are ordered at random, so that nothing visible gives a guess and not class 0.
    """
    sums = _last_kernel(target.grads, observation).sum(axis=0)
    order = jnp.lexsort((jax.random.uniform(key, sums.shape), sums))
    classes: Array = order[jnp.arange(observation.update.batch_size) % sums.size].astype(jnp.int32)
    return classes


def columns_or_trial(key: Key, observation: Observation, target: Target) -> Int[Array, " b"]:
    """`most_negative_columns` where columns of the last layer are visible; among classes whose column is hidden whole, by trial.

    A visible negative column names its class, and a visible positive one rules it out. For the rest, random dummies are labelled with each class, and the
    class comes first whose updates point most nearly as what is visible of the observed one, over all layers: hidden layers' gradients depend on the
    class through the last layer's weights. For attackers that know the mask.
    """
    model, params, size = observation.model, observation.params, observation.update.batch_size
    num_classes = model.input_spec.num_classes
    inputs_key, ties_key = jax.random.split(key)
    dummies = jax.random.normal(inputs_key, (4, size, *model.input_spec.shape))

    def agreement(label: Array) -> Array:
        soft = jnp.broadcast_to(jax.nn.one_hot(label, num_classes), (size, num_classes))

        def one(dummy: Array) -> Array:
            update = observation.update(model, params, dummy, soft, observation.valid)
            counted = jax.tree.map(lambda leaf, c: jnp.where(c, leaf, 0), update, target.counted)
            return trees.dot(counted, target.grads) / jnp.sqrt(jnp.maximum(trees.dot(counted, counted), 1e-30))

        return jax.lax.map(one, dummies).mean()

    head, counted = _last_kernel(target.grads, observation), _last_kernel(target.counted, observation)
    sums, hidden = head.sum(axis=0), ~counted.any(axis=0)
    trial = jax.lax.map(agreement, jnp.arange(num_classes))
    # In this order: visible and negative, hidden, visible and not negative.
    group = jnp.where(hidden, 1, jnp.where(sums < 0, 0, 2))
    order = jnp.lexsort((jax.random.uniform(ties_key, sums.shape), jnp.where(hidden, -trial, sums), group))
    classes: Array = order[jnp.arange(size) % num_classes].astype(jnp.int32)
    return classes


def rule_for(hidden: Hidden) -> LabelRule:
    """The label rule of an image attack at a rung of the ladder: the published one where hidden entries are taken for something."""
    return most_negative_columns if hidden in ("zero", "average") else columns_or_trial


def last_layer_counts(key: Key, observation: Observation, target: Target) -> Int[Array, " b"]:
    """How often each class occurs in the batch, from the last layer's gradient, for features of either sign.

    The gradient of the bias is mean(p_c) - n_c / B. Without a visible bias, the kernel's columns are mean(h (p_c - y_c)), and a dummy's
    features h' stand for h: col_c . h' / |h'|^2. With p from the same dummy, n_c follows up to how much p differs between inputs; after Wainakh
    et al. 2022 (wainakh2022llg). Exact at batch 1 where the bias is visible. Classes are returned in falling order of what is left of n_c.
    """
    model, params, size = observation.model, observation.params, observation.update.batch_size
    num_classes = model.input_spec.num_classes
    if not model.head or not any(path.startswith(f"{model.head}/") for path in trees.paths(target.grads)):
        # Adapters alone are sent: nothing tells the labels.
        return jax.random.randint(key, (size,), 0, num_classes, jnp.int32)
    tokens = jax.random.randint(key, (8, *model.input_spec.shape), 0, getattr(model.input_spec, "vocabulary_size", 2))
    dummy = model.embed(params, tokens)
    chosen = jax.nn.one_hot(jnp.zeros(8, jnp.int32), num_classes)
    probabilities = jax.nn.softmax(model.logits(params, dummy)).mean(axis=0)
    head = trees.at(target.grads, model.head)
    counted = trees.at(target.counted, model.head)
    # One class's column of a dummy's own gradient is its feature vector up to a factor.
    own = trees.at(loss_gradient(model, params, lambda _: dummy, chosen), model.head)["kernel"][:, 0]
    features = own / jnp.where(jnp.abs(probabilities[0] - 1) > 1e-6, probabilities[0] - 1, -1)
    features = jnp.where(counted["kernel"], features[:, None], 0)
    slopes = (head["kernel"] * features).sum(axis=0) / jnp.maximum((features**2).sum(axis=0), 1e-12)
    if "bias" in head:
        slopes = jnp.where(counted["bias"].all(), head["bias"], slopes)
    counts = size * (probabilities - slopes)
    counts = counts + 1e-6 * jax.random.uniform(jax.random.fold_in(key, 1), counts.shape)

    def take(left: Array, _: Array) -> tuple[Array, Array]:
        best = jnp.argmax(left)
        return left.at[best].add(-1.0), best.astype(jnp.int32)

    _, labels = jax.lax.scan(take, counts, jnp.arange(size))
    return labels
