"""From the parts of an attack (distance, prior, minimiser, start, label rule) to a whole one with restarts.

A `Kernel` is one start of one attack on one observation: `init` and `step` in the manner of blackjax, `decode` at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from selgrad.attacks.hidden import Hidden, Target, fill
from selgrad.attacks.minimisers import Minimiser, Objective
from selgrad.attacks.starts import Start, draw
from selgrad.base import Attack, Grads, Key, Observation, Reconstruction
from selgrad.errors import UsageError


class State(NamedTuple):
    """One restart: the minimiser's state, the start, the fixed labels (None if optimised), and evaluations spent."""

    inner: Any
    start: Array
    labels: Array | None
    num_evaluations: Array


class Candidate(NamedTuple):
    """What one restart found."""

    inputs: Array
    labels: Array
    objective: Array


class Kernel(NamedTuple):
    """One restart: `init(key, observation)`, `step(observation, state)`, `decode(observation, state) -> Candidate`."""

    init: Callable[[Key, Observation], State]
    step: Callable[[Observation, State], State]
    decode: Callable[[Observation, State], Candidate]


_RUN_AWAY = 1e4


def _anything_visible(observation: Observation) -> Array:
    return ~jnp.stack([m.all() for m in jax.tree.leaves(observation.mask)]).all()


LabelRule = Callable[[Key, Observation, Target], Array]


def gradient_matching(
    *,
    distance: Callable[[Grads, Target], Array],
    minimiser: Callable[[Observation], Minimiser],
    hidden: Hidden,
    prior: Callable[[Array], Array] | None = None,
    label_rule: LabelRule | None = None,
    start: Start = "normal",
    evaluations_per_step: int = 1,
) -> Kernel:
    """Optimises dummy inputs, and soft labels where no rule gives them, until their update matches the observed one.

    Args:
      distance: between the dummy update and the target.
      minimiser: for the attacker's bounds, from the observation.
      hidden: what becomes of encrypted entries.
      prior: penalty on the dummy inputs.
      label_rule: labels before the optimisation; None optimises label logits jointly. Labels that the threat model gives are used as given.
      start: where dummy inputs start; label logits start from N(0, 1), as DLG's do.
      evaluations_per_step: minimiser steps in one step of the attack.

    Returns:
      A kernel.

    Raises:
      UsageError: if `evaluations_per_step` is not positive.
    """
    if evaluations_per_step < 1:
        raise UsageError(f"evaluations_per_step={evaluations_per_step} must be at least 1")

    def sizes(observation: Observation) -> tuple[tuple[int, ...], tuple[int, int]]:
        spec, batch_size = observation.model.input_spec, observation.update.batch_size
        return (batch_size, *spec.shape), (batch_size, spec.num_classes)

    def unravel(observation: Observation, state_labels: Array | None, point: Array) -> tuple[Array, Array]:
        inputs_shape, labels_shape = sizes(observation)
        if state_labels is not None:
            return point.reshape(inputs_shape), jax.nn.one_hot(state_labels, labels_shape[1], dtype=point.dtype)
        num_inputs = point.size - labels_shape[0] * labels_shape[1]
        return point[:num_inputs].reshape(inputs_shape), jax.nn.softmax(point[num_inputs:].reshape(labels_shape))

    def objective(observation: Observation, labels: Array | None) -> Objective:
        target = fill(observation, hidden)

        def value(point: Array) -> Array:
            inputs, probabilities = unravel(observation, labels, point)
            candidate = observation.update(observation.model, observation.params, inputs, probabilities)
            return distance(candidate, target) + (0.0 if prior is None else prior(inputs))

        return value

    def init(key: Key, observation: Observation) -> State:
        inputs_key, labels_key = jax.random.split(key)
        labels_shape = sizes(observation)[1]
        inputs = draw(start, inputs_key, observation.update.batch_size, observation.model.input_spec)
        labels = observation.labels
        if labels is None and label_rule is not None:
            labels = label_rule(labels_key, observation, fill(observation, hidden))
        if labels is None:
            point = ravel_pytree((inputs, jax.random.normal(labels_key, labels_shape)))[0]
        else:
            point = inputs.reshape(-1)
        inner = minimiser(observation).init(point)
        # Where nothing is visible there is nothing to optimise for: the attack is done and returns its prior sample.
        inner = inner._replace(done=~_anything_visible(observation))
        return State(inner, point, labels, jnp.zeros((), jnp.int32))

    def step(observation: Observation, state: State) -> State:
        function, method = objective(observation, state.labels), minimiser(observation)
        body = lambda _, inner: method.step(function, inner)
        if evaluations_per_step == 1:
            inner = body(0, state.inner)
        else:
            inner = jax.lax.fori_loop(0, evaluations_per_step, body, state.inner)
        spent = jnp.where(state.inner.done, 0, evaluations_per_step)
        return state._replace(inner=inner, num_evaluations=state.num_evaluations + spent)

    def decode(observation: Observation, state: State) -> Candidate:
        visible, inner = _anything_visible(observation), state.inner
        inputs, probabilities = unravel(observation, state.labels, jnp.where(visible, inner.point, state.start))
        # A saturated network gives a finite objective to a point that has run away; starts are N(0, 1) and pixels of order 1.
        finite = jnp.isfinite(inner.value) & (jnp.abs(inner.point) < _RUN_AWAY).all()
        value = jnp.where(visible, jnp.where(finite, inner.value, jnp.inf), 0)
        return Candidate(inputs, jnp.argmax(probabilities, axis=-1).astype(jnp.int32), value)

    return Kernel(init, step, decode)


def iterate(kernel: Kernel, *, num_steps: int, num_restarts: int) -> Attack:
    """Runs restarts side by side and keeps the one with the smallest own objective; the truth plays no part.

    Restarts that are done stay as they are, and the loop ends when all are. Every matrix product runs in full float32: accelerators'
    reduced-precision modes alone make L-BFGS fail.

    Raises:
      UsageError: if `num_steps` or `num_restarts` is not positive.
    """
    for name, value in (("num_steps", num_steps), ("num_restarts", num_restarts)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")

    def start(key: Key, observation: Observation) -> State:
        with jax.default_matmul_precision("highest"):
            return jax.vmap(kernel.init, (0, None))(jax.random.split(key, num_restarts), observation)

    def advance(observation: Observation, state: State, steps: Any) -> State:
        def unfinished(carry: tuple[Array, State]) -> Array:
            return (carry[0] < steps) & ~carry[1].inner.done.all()

        def body(carry: tuple[Array, State]) -> tuple[Array, State]:
            return carry[0] + 1, jax.vmap(kernel.step, (None, 0))(observation, carry[1])

        with jax.default_matmul_precision("highest"):
            result: State = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]
        return result

    def finish(observation: Observation, state: State) -> Reconstruction:
        with jax.default_matmul_precision("highest"):
            every = jax.vmap(kernel.decode, (None, 0))(observation, state)
        best = jnp.argmin(every.objective)
        diverged = ~jnp.isfinite(every.objective[best])
        first = state.start[best, : every.inputs[best].size].reshape(every.inputs[best].shape)
        return Reconstruction(
            inputs=jnp.where(diverged, first, every.inputs[best]),
            labels=every.labels[best],
            objective=every.objective[best],
            diverged=diverged,
            restart=best.astype(jnp.int32),
            all_inputs=every.inputs,
            all_labels=every.labels,
            all_objectives=every.objective,
            num_evaluations=state.num_evaluations.max(),
        )

    return Attack(start, advance, finish, num_steps, num_restarts)
