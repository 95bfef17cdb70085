"""From the parts of an attack (distance, prior, minimiser, start, label rule) to a whole one with restarts.

A `Kernel` is one start of one attack on one observation: `init` and `step` in the manner of blackjax, `decode` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from selgrad import trees
from selgrad.attacks import outer
from selgrad.attacks.completion import fill_hidden
from selgrad.attacks.distances import leaf_residuals, leaf_weights
from selgrad.attacks.hidden import Hidden, Target, fill, mask_evidence
from selgrad.attacks.labels import LabelRule, Plausible
from selgrad.attacks.learned import estimate
from selgrad.attacks.minimisers import RUN_AWAY, Minimiser
from selgrad.attacks.spaces import SpaceRule
from selgrad.base import Attack, Cache, Grads, Key, Observation, Params, Reconstruction, loss_gradient, stride
from selgrad.errors import UsageError


class State(NamedTuple):
    """One restart: the minimiser's state, the start, the fixed labels (None if optimised), evaluations spent, steps done and a key's data.

    `informed` is 1 where the restart uses what its rung adds, and 0 where it ignores hidden entries and no more.
    """

    informed: Array
    inner: Any
    start: Array
    labels: Array | None
    num_evaluations: Array
    num_steps: Array
    key: Array


class Candidate(NamedTuple):
    """What one restart found."""

    inputs: Array
    labels: Array
    objective: Array
    start: Array
    moved: Array


class Kernel(NamedTuple):
    """One restart: `init(key, informed, observation)`, `step(observation, aims, state)`, `decode(observation, aims, state) -> Candidate`.

    `prepare` comes before. `doubled` says that each start is searched from twice, with what the rung adds and without: what is better by all that the rung
    knows is kept, so a rung that knows more is never worse by it.

    `aim(observation)` is what each round's dummy update is compared with, once for all steps. `rung`, `evidence` and `estimate` are what `Attack` says of
    itself, and so is `objective`.
    """

    init: Callable[[Key, Array, Observation], State]
    aim: Callable[[Observation], list[Target]]
    step: Callable[[Observation, list[Target], State], State]
    decode: Callable[[Observation, list[Target], State], Candidate]
    prepare: Callable[[Observation, Cache], tuple[Observation, str]] | None = None
    rung: str = ""
    evidence: bool = False
    estimate: bool = False
    objective: Callable[[Observation, Array, Array], Array] | None = None
    doubled: bool = False


def _anything_visible(observation: Observation) -> Array:
    return ~jnp.stack([m.all() for m in jax.tree.leaves([one.mask for one in observation.sent])]).all()


class Mismatch(NamedTuple):
    """What a minimiser is given: the objective, and the residuals behind it for one that wants them.

    Attributes:
      value: point -> the objective.
      residuals: point -> what is left of every visible entry of every round, in units of its leaf's norm, 0 where nothing is visible.
      noise: the standard deviation of what a protection added to each of these.
    """

    value: Callable[[Array], Array]
    residuals: Callable[[Array], Array]
    noise: Array | float

    def __call__(self, point: Array) -> Array:
        """The objective."""
        return self.value(point)


Prepare = Callable[[Observation, Cache], tuple[Observation, str]]
Value = Callable[[Array], Array]
"""Dummy inputs -> the attack's objective there."""


class Matching(NamedTuple):
    """What an objective is made of.

    Attributes:
      distance: between the dummy update and the target.
      space: what is optimised, from the observation: pixels or embeddings.
      prior: penalty on the dummy inputs.
      minimiser: for the attacker's bounds, from the observation.
    """

    distance: Callable[[Grads, Target], Array]
    space: SpaceRule
    minimiser: Callable[[Observation], Minimiser]
    prior: Callable[[Observation, Array], Array] | None = None


class Trial(NamedTuple):
    """How labels are told apart where what is visible allows several: each gets a short search, and the one of the smallest objective is taken.

    Attributes:
      num_evaluations: minimiser steps that each plausible label gets.
      matching: of the search; the attack's own where it is None.
    """

    num_evaluations: int = 100
    matching: Matching | None = None


class Search(NamedTuple):
    """Discrete moves beside the optimisation.

    Attributes:
      start: (key, observation, value) -> dummy inputs to start from.
      refine: (key, observation, value, dummy inputs, step) -> dummy inputs after a step of the attack, and the objective there.
      evaluations_per_start, evaluations_per_step: of the objective.
    """

    start: Callable[[Key, Observation, Value], Array]
    refine: Callable[[Key, Observation, Value, Array, Array], tuple[Array, Array]]
    evaluations_per_start: int
    evaluations_per_step: int


def gradient_matching(
    *,
    distance: Callable[[Grads, Target], Array],
    minimiser: Callable[[Observation], Minimiser],
    hidden: Hidden,
    space: SpaceRule,
    prior: Callable[[Observation, Array], Array] | None = None,
    label_rule: LabelRule | None = None,
    trial: Trial | None = None,
    evaluations_per_step: int = 1,
    search: Search | None = None,
    surrogates: Callable[[Observation], Sequence[Params]] | None = None,
) -> Kernel:
    """Optimises dummy inputs, and soft labels where no rule gives them, until their update matches the observed one.

    Args:
      distance: between the dummy update and the target.
      minimiser: for the attacker's bounds, from the observation.
      hidden: what becomes of encrypted entries; `complete` fills in on the host what structure gives away, and ignores the rest; `learned` ignores
        them and starts from what a decoder that was trained for this mask makes of the others.
      space: what is optimised, from the observation: pixels or embeddings.
      prior: penalty on the dummy inputs.
      label_rule: labels before the optimisation; None optimises label logits jointly. Labels that the threat model gives are used as given.
      trial: of each plausible label, where the rule is not certain; a hundred of the attack's own evaluations by default.
      evaluations_per_step: minimiser steps in one step of the attack.
      search: discrete moves, before the first step and after each; it needs a first-order minimiser.
      surrogates: from one round's observation to weights at which the dummy's gradient stands for the client's update; the nearest counts. None simulates
        the update.

    Returns:
      A kernel.

    Raises:
      UsageError: if `evaluations_per_step` is not positive.
    """
    if evaluations_per_step < 1:
        raise UsageError(f"evaluations_per_step={evaluations_per_step} must be at least 1")

    doubled = hidden in ("bounded", "complete", "learned")
    own = Matching(distance, space, minimiser, prior)
    tried = trial or Trial()

    def label_sizes(observation: Observation) -> tuple[int, ...]:
        spec = observation.model.input_spec
        return (observation.update.batch_size, *spec.label_shape, spec.num_classes)

    def unravel(observation: Observation, state_labels: Array | None, point: Array, by: Matching = own) -> tuple[Array, Array]:
        place, labels_shape = by.space(observation), label_sizes(observation)
        if state_labels is not None:
            return place.fix(point.reshape(place.shape)), jax.nn.one_hot(state_labels, labels_shape[-1], dtype=point.dtype)
        num_inputs = math.prod(place.shape)
        return place.fix(point[:num_inputs].reshape(place.shape)), jax.nn.softmax(point[num_inputs:].reshape(labels_shape))

    def updated(seen: Observation, inputs: Array, probabilities: Array, at: Params | None = None) -> Any:
        def function(params: Params, inputs: Array, probabilities: Array, valid: Array | None) -> Grads:
            if at is None:
                return seen.update(seen.model, params, inputs, probabilities, valid)
            return loss_gradient(seen.model, params, lambda _: inputs, probabilities, valid)

        arguments = seen.params if at is None else at, inputs, probabilities, seen.valid
        # A metric that scores the dummy reads every entry of its update.
        return outer.factored(function, *arguments) if hidden != "bounded" and outer.enabled() else function(*arguments)

    def aim(observation: Observation) -> list[Target]:
        sizes, place = label_sizes(observation), space(observation).shape

        def of_round(seen: Observation) -> Target:
            target = fill(seen, hidden)
            at = None if surrogates is None else surrogates(seen)[0]
            like = jax.eval_shape(lambda: updated(seen, jnp.zeros(place), jnp.zeros(sizes), at))
            # Read as a factor of products in every step.
            known = lambda leaf, c: c.astype(jnp.float32) if outer.is_outer(leaf) else c
            return target._replace(counted=jax.tree.map(known, like, target.counted, is_leaf=outer.is_outer))

        return [of_round(seen) for seen in observation.rounds]

    def objective(observation: Observation, aims: list[Target], labels: Array | None, informed: Array | float = 1.0, by: Matching = own) -> Mismatch:
        rounds = [(seen, told(seen, target, informed)) for seen, target in zip(observation.rounds, aims, strict=True)]

        def mismatch(seen: Observation, target: Target, inputs: Array, probabilities: Array) -> Array:
            if surrogates is not None:
                return jnp.stack([by.distance(updated(seen, inputs, probabilities, at), target) for at in surrogates(seen)]).min()
            candidate = updated(seen, inputs, probabilities)
            if hidden == "bounded":
                # The same draws at every step and for every restart: a metric's probes must not be noise in the objective.
                evidence = mask_evidence(jax.random.key(0), seen, candidate, inputs, probabilities, target.inverse)
                target = target._replace(penalty=informed * evidence)
            return by.distance(candidate, target)

        def value(point: Array) -> Array:
            inputs, probabilities = unravel(observation, labels, point, by)
            matched = [mismatch(seen, target, inputs, probabilities) for seen, target in rounds]
            total = matched[0] if len(matched) == 1 else jnp.stack(matched).mean()
            return total + (0.0 if by.prior is None else by.prior(observation, inputs))

        def residuals(point: Array) -> Array:
            inputs, probabilities = unravel(observation, labels, point, by)
            update = lambda seen: seen.update(seen.model, seen.params, inputs, probabilities, seen.valid)
            return jnp.concatenate([leaf_residuals(update(seen), target) for seen, target in rounds])

        return Mismatch(value, residuals, noise(observation, aims))

    def told(seen: Observation, target: Target, informed: Array | float) -> Target:
        """The target of a restart: without what was completed, where it is not informed."""
        if seen.completed is None or isinstance(informed, float):
            return target
        without = lambda c, filled: jnp.where(filled & (informed == 0), jnp.zeros_like(c), c)
        counted = jax.tree.map(without, target.counted, seen.completed[0])
        # What does not count is 0 on either side of an inner product.
        return target._replace(counted=counted, grads=jax.tree.map(lambda g, c: jnp.where(c, g, 0).astype(g.dtype), target.grads, counted))

    def noise(observation: Observation, aims: list[Target]) -> Array | float:
        if observation.noise is None:
            return 0.0
        added = jax.tree.leaves(observation.noise)
        of = lambda leaf, std, weight: jnp.full(leaf.size, weight * std)
        parts = [list(map(of, jax.tree.leaves(target.grads), added, leaf_weights(target))) for target in aims]
        return jnp.concatenate([part for every in parts for part in every])

    def value_of_inputs(observation: Observation, aims: list[Target], labels: Array | None, point: Array) -> Value:
        function = objective(observation, aims, labels)
        rest = point[math.prod(space(observation).shape) :]
        # A search asks for it in several places, and each traces and batches the whole update again unless it is a program of its own.
        return jax.jit(lambda inputs: function(jnp.concatenate([inputs.reshape(-1), rest])))

    def settled(key: Key, observation: Observation, plausible: Plausible, inputs: Array) -> tuple[Array, Array]:
        """The labels whose objective is smallest after a few steps from the same start, and the evaluations spent on finding out."""
        every, by = plausible.labels, tried.matching or own
        if len(every) == 1:
            return every[0], jnp.zeros((), jnp.int32)
        method, aims = by.minimiser(observation), aim(observation)
        begin = inputs if by is own else by.space(observation).draw(key)
        # Lanes that are certain ask for no step, and a block in which all are takes none; what is there already is not tried again. Where nothing but zeros is
        # visible, no label explains it better than another.
        again = jnp.stack([(every[:at] == labels).all(axis=-1).any() for at, labels in enumerate(every)])
        telling = jnp.stack([(target.norms > 0).any() for target in aims]).any()
        steps = jnp.where(plausible.certain | ~telling | again, 0, tried.num_evaluations)

        def value(candidate: tuple[Array, Array]) -> Array:
            labels, steps = candidate
            function = objective(observation, aims, labels, by=by)
            return jax.lax.fori_loop(0, steps, lambda _, state: method.step(function, state), method.init(begin.reshape(-1))).value

        # A candidate that got no step has the value inf, and of these the first is taken.
        found = jax.lax.map(value, (every, steps))
        return every[jnp.argmin(found)], steps.sum().astype(jnp.int32)

    def init(key: Key, informed: Array, observation: Observation) -> State:
        inputs_key, labels_key, key = jax.random.split(key, 3)
        labels_shape = label_sizes(observation)
        inputs = space(observation).draw(inputs_key)
        if hidden == "learned" and observation.estimate is not None:
            inputs = jnp.where(informed > 0, space(observation).place(observation.estimate), inputs)
        labels, spent = observation.labels, jnp.zeros((), jnp.int32)
        if labels is None and label_rule is not None:
            labels, spent = settled(labels_key, observation, label_rule(labels_key, observation, fill(observation, hidden)), inputs)
        if labels is None:
            point = ravel_pytree((inputs, jax.random.normal(labels_key, labels_shape)))[0]
        else:
            point = inputs.reshape(-1)
        if search is not None:
            searched = search.start(inputs_key, observation, value_of_inputs(observation, aim(observation), labels, point))
            inputs = jnp.where(informed > 0, inputs, searched) if hidden == "learned" else searched
            point = jnp.concatenate([inputs.reshape(-1), point[inputs.size :]])
        inner = minimiser(observation).init(point)
        # Where nothing is visible there is nothing to optimise for: the attack is done and returns its prior sample.
        inner = inner._replace(done=~_anything_visible(observation))
        spent = spent + (0 if search is None else search.evaluations_per_start)
        return State(informed, inner, point, labels, spent, jnp.zeros((), jnp.int32), jax.random.key_data(key))

    def step(observation: Observation, aims: list[Target], state: State) -> State:
        function, method = objective(observation, aims, state.labels, state.informed), minimiser(observation)
        body = lambda _, inner: method.step(function, inner)
        if evaluations_per_step == 1:
            inner = body(0, state.inner)
        else:
            inner = jax.lax.fori_loop(0, evaluations_per_step, body, state.inner)
        each = evaluations_per_step * method.evaluations(state.inner.point.size)
        if search is not None:
            inner = refined(observation, aims, state, inner)
            each += search.evaluations_per_step
        spent = jnp.where(state.inner.done, 0, each)
        return state._replace(inner=inner, num_evaluations=state.num_evaluations + spent, num_steps=state.num_steps + 1)

    def refined(observation: Observation, aims: list[Target], state: State, inner: Any) -> Any:
        assert search is not None
        point, shape = inner.upcoming, space(observation).shape
        size = math.prod(shape)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.num_steps)
        value = value_of_inputs(observation, aims, state.labels, point)
        inputs, found = search.refine(key, observation, value, point[:size].reshape(shape), state.num_steps)
        moved = jnp.concatenate([inputs.reshape(-1), point[size:]])
        better = ~inner.done & (found < inner.value) & (jnp.abs(moved) < RUN_AWAY).all()
        return inner._replace(
            point=jnp.where(better, moved, inner.point),
            upcoming=jnp.where(inner.done, inner.upcoming, moved),
            value=jnp.where(better, found, inner.value),
            done=inner.done | ~jnp.isfinite(found),
        )

    def decode(observation: Observation, aims: list[Target], state: State) -> Candidate:
        visible, inner = _anything_visible(observation), state.inner
        inputs, probabilities = unravel(observation, state.labels, jnp.where(visible, inner.point, state.start))
        finite = jnp.isfinite(inner.value) & (jnp.abs(inner.point) < RUN_AWAY).all()
        found = inner.value
        if doubled and hidden != "learned":
            # Of those that ignored it, by all that the rung knows.
            whole = minimiser(observation).value(objective(observation, aims, state.labels), inner.point)
            found = jnp.where(state.informed > 0, found, jnp.where(jnp.isfinite(whole), whole, jnp.inf))
        value = jnp.where(visible, jnp.where(finite, found, jnp.inf), 0)
        labels = jnp.argmax(probabilities, axis=-1).astype(jnp.int32) if state.labels is None else state.labels
        read, size = space(observation).read, inputs.size
        away = jnp.abs(inner.point - state.start)[:size].max()
        moved = visible & (away > 1e-3 * jnp.sqrt(jnp.mean(state.start[:size] ** 2)))
        return Candidate(read(inputs), labels, value, read(unravel(observation, state.labels, state.start)[0]), moved)

    def elsewhere(observation: Observation, inputs: Array, labels: Array) -> Array:
        function = objective(observation, aim(observation), labels)
        return minimiser(observation).value(function, space(observation).place(inputs).reshape(-1))

    prepare: Prepare | None = fill_hidden if hidden == "complete" else estimate if hidden == "learned" else None
    return Kernel(
        init, aim, step, decode, prepare, rung=hidden, evidence=hidden == "bounded", estimate=hidden == "learned", objective=elsewhere, doubled=doubled
    )


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

    copies = 2 if kernel.doubled else 1
    mapped = partial(trees.mapped, size=copies * num_restarts)

    def start(key: Key, observation: Observation) -> State:
        # Both copies of a restart have one start, and the informed ones come first.
        keys, informed = jnp.tile(jax.random.split(key, num_restarts), copies), jnp.repeat(1.0 - jnp.arange(copies), num_restarts)
        with jax.default_matmul_precision("highest"):
            return mapped(kernel.init, (0, 0, None))(keys, informed, observation)

    def advance(observation: Observation, state: State, steps: Any) -> State:
        aims, between_looks = kernel.aim(observation), stride()

        def unfinished(carry: tuple[Array, State]) -> Array:
            return (carry[0] < steps) & ~carry[1].inner.done.all()

        def step(carry: tuple[Array, State]) -> tuple[Array, State]:
            return carry[0] + 1, mapped(kernel.step, (None, None, 0))(observation, aims, carry[1])

        def body(carry: tuple[Array, State]) -> tuple[Array, State]:
            if between_looks == 1:
                return step(carry)
            # What a step beyond the last one changes is dropped, so that no bit depends on the stride.
            kept = lambda _, carry: jax.tree.map(partial(jnp.where, unfinished(carry)), step(carry), carry)
            found: tuple[Array, State] = jax.lax.fori_loop(0, between_looks, kept, carry)
            return found

        with jax.default_matmul_precision("highest"):
            result: State = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]
        return result

    def finish(observation: Observation, state: State) -> Reconstruction:
        with jax.default_matmul_precision("highest"):
            every = mapped(kernel.decode, (None, None, 0))(observation, kernel.aim(observation), state)
        spent = state.num_evaluations
        if copies > 1:
            # Of each start the better of the two searches, by all that the rung knows.
            first, second = (jax.tree.map(lambda leaf, part=part: leaf[part], every) for part in (slice(num_restarts), slice(num_restarts, None)))
            better = second.objective < first.objective
            every = jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), b, a), first, second)
            spent = spent.reshape(copies, num_restarts).sum(axis=0)
        best = jnp.argmin(every.objective)
        diverged = ~jnp.isfinite(every.objective[best])
        return Reconstruction(
            inputs=jnp.where(diverged, every.start[best], every.inputs[best]),
            labels=every.labels[best],
            objective=every.objective[best],
            diverged=diverged,
            restart=best.astype(jnp.int32),
            all_inputs=every.inputs,
            all_labels=every.labels,
            all_objectives=every.objective,
            num_evaluations=spent.max(),
            moved=every.moved[best] & ~diverged,
        )

    def objective(observation: Observation, inputs: Array, labels: Array) -> Array:
        assert kernel.objective is not None
        with jax.default_matmul_precision("highest"):
            return kernel.objective(observation, inputs, labels)

    return Attack(
        start, advance, finish, num_steps, num_restarts, prepare=kernel.prepare, rung=kernel.rung, evidence=kernel.evidence, estimate=kernel.estimate,
        objective=None if kernel.objective is None else objective, completes=kernel.rung == "complete",
    )  # fmt: skip


def on_host(reconstruct: Callable[[Key, Observation], Reconstruction], *, rung: str = "") -> Attack:
    """An attack in one step that JAX cannot trace: it runs on the host, one observation after the other.

    Args:
      reconstruct: the attack.
      rung: what it makes of encrypted entries.
    """
    return Attack(
        start=lambda key, _: key,
        advance=lambda _, key, __: key,
        finish=lambda observation, key: reconstruct(key, observation),
        num_steps=1,
        num_restarts=1,
        traceable=False,
        rung=rung,
    )
