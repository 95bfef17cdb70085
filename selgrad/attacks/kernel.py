"""Assembles an attack with restarts from its parts: distance, prior, minimiser, start and label rule.

A `Kernel` is one start of one attack on one observation: `init` and `step` as in blackjax, and `decode` at the end.
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
    """The state of one restart: the minimiser's state, the start, the fixed labels (None if optimised), evaluations spent, steps done and a key's data.

    `informed` is 1 where the restart uses what its rung adds, and 0 where it only ignores hidden entries.
    """

    informed: Array
    inner: Any
    start: Array
    labels: Array | None
    num_evaluations: Array
    num_steps: Array
    key: Array


class Candidate(NamedTuple):
    """The result of one restart."""

    inputs: Array
    labels: Array
    objective: Array
    start: Array
    moved: Array
    misfit: Array


class Kernel(NamedTuple):
    """One restart: `init(key, informed, observation)`, `step(observation, aims, state)`, `decode(observation, aims, state) -> Candidate`.

    `prepare` runs before them. `doubled` says that each start is searched from twice, with what the rung adds and without it. The result that is better by
    everything the rung knows is kept, so a rung that knows more is never worse for it.

    `aim(observation)` returns the targets that the dummy updates of each round are compared with, computed once for all steps. `rung`, `evidence`, `estimate`,
    `objective` and `misfit` have the same meaning as in `Attack`.
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
    misfit: Callable[[Observation, Array, Array], Array] | None = None
    doubled: bool = False


def _anything_visible(observation: Observation) -> Array:
    return ~jnp.stack([m.all() for m in jax.tree.leaves([sent.mask for sent in observation.sent])]).all()


class Mismatch(NamedTuple):
    """What a minimiser receives: the objective, and the residuals behind it for a minimiser that needs them.

    Attributes:
      value: point -> the objective.
      residuals: point -> the residual of every entry of every round, in units of its leaf's norm; 0 where nothing is visible.
      noise: the standard deviation of the noise that a protection added to each of these entries.
      misfit: point -> the objective without its regulariser.
    """

    value: Callable[[Array], Array]
    residuals: Callable[[Array], Array]
    noise: Array | float
    misfit: Callable[[Array], Array]

    def __call__(self, point: Array) -> Array:
        """Returns the objective at a point."""
        return self.value(point)


Prepare = Callable[[Observation, Cache], tuple[Observation, str]]
Value = Callable[[Array], Array]
"""Maps dummy inputs to the attack's objective there."""


class Matching(NamedTuple):
    """The parts of an objective.

    Attributes:
      distance: between the dummy update and the target.
      space: what is optimised, from the observation: pixels or embeddings.
      prior: penalty on the dummy inputs.
      minimiser: for the attacker's bounds, from the observation.
      regulariser: a further penalty, which says nothing of what is visible.
    """

    distance: Callable[[Grads, Target], Array]
    space: SpaceRule
    minimiser: Callable[[Observation], Minimiser]
    prior: Callable[[Observation, Array], Array] | None = None
    regulariser: Callable[[Observation, Array], Array] | None = None


class Trial(NamedTuple):
    """How labels are told apart where the visible entries allow several: each gets a short search, and the one with the smallest objective is taken.

    Attributes:
      num_evaluations: minimiser steps that each plausible label gets.
      matching: the objective of the search; the attack's own where it is None.
    """

    num_evaluations: int = 100
    matching: Matching | None = None


class Search(NamedTuple):
    """Discrete moves that accompany the optimisation.

    Attributes:
      start: (key, observation, value) -> dummy inputs to start from.
      refine: (key, observation, value, dummy inputs, step) -> dummy inputs after a step of the attack, and the objective there.
      evaluations_per_start, evaluations_per_step: evaluations of the objective that each of them spends.
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
    regulariser: Callable[[Observation, Array], Array] | None = None,
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
      hidden: how encrypted entries are treated; `complete` fills in, on the host, the entries that structure gives away and ignores the rest; `learned`
        ignores them and starts from the estimate of a decoder that was trained for this mask.
      space: what is optimised, from the observation: pixels or embeddings.
      prior: penalty on the dummy inputs that is a negative log-probability in units of the distance, so that the sum is that of the posterior.
      regulariser: a penalty that is no probability, such as a weighted total variation: it guides the search, and whether the search has ended is judged
        without it.
      label_rule: recovers labels before the optimisation; None optimises label logits jointly. Labels that the threat model gives are used as given.
      trial: the search for each plausible label, where the rule is not certain; a hundred of the attack's own evaluations by default.
      evaluations_per_step: minimiser steps in one step of the attack.
      search: discrete moves, before the first step and after each; they need a first-order minimiser.
      surrogates: maps one round's observation to weights at which the dummy's gradient stands for the client's update; the nearest one counts. None
        simulates the update.

    Returns:
      A kernel.

    Raises:
      UsageError: if `evaluations_per_step` is not positive.
    """
    if evaluations_per_step < 1:
        raise UsageError(f"evaluations_per_step={evaluations_per_step} must be at least 1")

    doubled = hidden in ("bounded", "complete", "learned")
    own = Matching(distance, space, minimiser, prior, regulariser)
    label_trial = trial or Trial()

    def label_sizes(observation: Observation) -> tuple[int, ...]:
        spec = observation.model.input_spec
        return (observation.update.batch_size, *spec.label_shape, spec.num_classes)

    def unravel(observation: Observation, state_labels: Array | None, point: Array, by: Matching = own) -> tuple[Array, Array]:
        domain, labels_shape = by.space(observation), label_sizes(observation)
        if state_labels is not None:
            return domain.fix(point.reshape(domain.shape)), jax.nn.one_hot(state_labels, labels_shape[-1], dtype=point.dtype)
        num_inputs = math.prod(domain.shape)
        return domain.fix(point[:num_inputs].reshape(domain.shape)), jax.nn.softmax(point[num_inputs:].reshape(labels_shape))

    def dummy_update(view: Observation, inputs: Array, probabilities: Array, weights: Params | None = None) -> Any:
        def function(params: Params, inputs: Array, probabilities: Array, valid: Array | None) -> Grads:
            if weights is None:
                return view.update(view.model, params, inputs, probabilities, valid)
            return loss_gradient(view.model, params, lambda _: inputs, probabilities, valid)

        arguments = view.params if weights is None else weights, inputs, probabilities, view.valid
        # A metric that scores the dummy reads every entry of its update.
        return outer.factored(function, *arguments) if hidden != "bounded" and outer.enabled() else function(*arguments)

    def aim(observation: Observation) -> list[Target]:
        sizes, inputs_shape = label_sizes(observation), space(observation).shape

        def of_round(view: Observation) -> Target:
            target = fill(view, hidden)
            weights = None if surrogates is None else surrogates(view)[0]
            like = jax.eval_shape(lambda: dummy_update(view, jnp.zeros(inputs_shape), jnp.zeros(sizes), weights))
            # Every step multiplies by it where the update is a product of factors.
            as_factor = lambda leaf, c: c.astype(jnp.float32) if outer.is_outer(leaf) else c
            return target._replace(counted=jax.tree.map(as_factor, like, target.counted, is_leaf=outer.is_outer))

        return [of_round(view) for view in observation.rounds]

    def objective(observation: Observation, aims: list[Target], labels: Array | None, informed: Array | float = 1.0, by: Matching = own) -> Mismatch:
        rounds = [(view, restart_target(view, target, informed)) for view, target in zip(observation.rounds, aims, strict=True)]

        def mismatch(view: Observation, target: Target, inputs: Array, probabilities: Array) -> Array:
            if surrogates is not None:
                return jnp.stack([by.distance(dummy_update(view, inputs, probabilities, weights), target) for weights in surrogates(view)]).min()
            candidate = dummy_update(view, inputs, probabilities)
            if hidden == "bounded":
                # The same draws at every step and for every restart: a metric's probes must not be noise in the objective.
                evidence = mask_evidence(jax.random.key(0), view, candidate, inputs, probabilities, target.inverse)
                target = target._replace(penalty=informed * evidence)
            return by.distance(candidate, target)

        def parts(point: Array) -> tuple[Array, Array | float]:
            inputs, probabilities = unravel(observation, labels, point, by)
            matched = [mismatch(view, target, inputs, probabilities) for view, target in rounds]
            total = matched[0] if len(matched) == 1 else jnp.stack(matched).mean()
            misfit = total + (0.0 if by.prior is None else by.prior(observation, inputs))
            return misfit, 0.0 if by.regulariser is None else by.regulariser(observation, inputs)

        def value(point: Array) -> Array:
            misfit, regularised = parts(point)
            return misfit + regularised

        def residuals(point: Array) -> Array:
            inputs, probabilities = unravel(observation, labels, point, by)
            update = lambda view: view.update(view.model, view.params, inputs, probabilities, view.valid)
            return jnp.concatenate([leaf_residuals(update(view), target) for view, target in rounds])

        return Mismatch(value, residuals, noise(observation, aims), lambda point: parts(point)[0])

    def restart_target(view: Observation, target: Target, informed: Array | float) -> Target:
        """Returns the target of a restart, which lacks the completed entries where the restart is not informed."""
        if view.completed is None or isinstance(informed, float):
            return target
        without = lambda c, filled: jnp.where(filled & (informed == 0), jnp.zeros_like(c), c)
        counted = jax.tree.map(without, target.counted, view.completed[0])
        # Entries that do not count are 0 on both sides of an inner product.
        return target._replace(counted=counted, grads=jax.tree.map(lambda g, c: jnp.where(c, g, 0).astype(g.dtype), target.grads, counted))

    def noise(observation: Observation, aims: list[Target]) -> Array | float:
        if observation.noise is None:
            return 0.0
        added = jax.tree.leaves(observation.noise)
        repeated = lambda leaf, std, weight: jnp.full(leaf.size, weight * std)
        parts = [list(map(repeated, jax.tree.leaves(target.grads), added, leaf_weights(target))) for target in aims]
        return jnp.concatenate([part for round_parts in parts for part in round_parts])

    def value_of_inputs(observation: Observation, aims: list[Target], labels: Array | None, point: Array) -> Value:
        function = objective(observation, aims, labels)
        rest = point[math.prod(space(observation).shape) :]
        # A search evaluates it in several places, and each would trace and batch the whole update again if it were not a program of its own.
        return jax.jit(lambda inputs: function(jnp.concatenate([inputs.reshape(-1), rest])))

    def settled(key: Key, observation: Observation, plausible: Plausible, inputs: Array) -> tuple[Array, Array]:
        """Returns the labels whose objective is smallest after a few steps from the same start, and the number of evaluations spent on finding them."""
        candidates, by = plausible.labels, label_trial.matching or own
        if len(candidates) == 1:
            return candidates[0], jnp.zeros((), jnp.int32)
        method, aims = by.minimiser(observation), aim(observation)
        first_inputs = inputs if by is own else by.space(observation).draw(key)
        # Lanes that are certain need no step, and a block of such lanes takes none; a repeated candidate is not tried again. Where only zeros are visible, no
        # label explains them better than another.
        again = jnp.stack([(candidates[:index] == labels).all(axis=-1).any() for index, labels in enumerate(candidates)])
        telling = jnp.stack([(target.norms > 0).any() for target in aims]).any()
        steps = jnp.where(plausible.certain | ~telling | again, 0, label_trial.num_evaluations)

        def value(candidate: tuple[Array, Array]) -> Array:
            labels, steps = candidate
            function = objective(observation, aims, labels, by=by)
            return jax.lax.fori_loop(0, steps, lambda _, state: method.step(function, state), method.init(first_inputs.reshape(-1))).value

        # A candidate without a step has the value inf; if all have it, the first is taken.
        values = jax.lax.map(value, (candidates, steps))
        return candidates[jnp.argmin(values)], steps.sum().astype(jnp.int32)

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
        # Where nothing is visible there is nothing to match: the attack is done and returns its prior sample.
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
        inputs, moved_value = search.refine(key, observation, value, point[:size].reshape(shape), state.num_steps)
        moved = jnp.concatenate([inputs.reshape(-1), point[size:]])
        better = ~inner.done & (moved_value < inner.value) & (jnp.abs(moved) < RUN_AWAY).all()
        return inner._replace(
            point=jnp.where(better, moved, inner.point),
            upcoming=jnp.where(inner.done, inner.upcoming, moved),
            value=jnp.where(better, moved_value, inner.value),
            done=inner.done | ~jnp.isfinite(moved_value),
        )

    def decode(observation: Observation, aims: list[Target], state: State) -> Candidate:
        visible, inner = _anything_visible(observation), state.inner
        inputs, probabilities = unravel(observation, state.labels, jnp.where(visible, inner.point, state.start))
        finite = jnp.isfinite(inner.value) & (jnp.abs(inner.point) < RUN_AWAY).all()
        objective_value = inner.value
        if doubled and hidden != "learned":
            # Restarts that ignored what the rung adds are judged by everything that it knows.
            whole = minimiser(observation).value(objective(observation, aims, state.labels), inner.point)
            objective_value = jnp.where(state.informed > 0, objective_value, jnp.where(jnp.isfinite(whole), whole, jnp.inf))
        value = jnp.where(visible, jnp.where(finite, objective_value, jnp.inf), 0)
        misfit = value
        if own.regulariser is not None:
            misfit = jnp.where(visible, jnp.where(finite, objective(observation, aims, state.labels).misfit(inner.point), jnp.inf), 0)
        # Leaves that the attack leaves out may be all that is visible, and then nothing is explained by matching nothing.
        compared = jnp.stack([jnp.any(leaf != 0) for target in aims for leaf in jax.tree.leaves(target.counted)]).any()
        misfit = jnp.where(visible & ~compared, jnp.inf, misfit)
        labels = jnp.argmax(probabilities, axis=-1).astype(jnp.int32) if state.labels is None else state.labels
        read, size = space(observation).read, inputs.size
        away = jnp.abs(inner.point - state.start)[:size].max()
        moved = visible & ((away > 1e-3 * jnp.sqrt(jnp.mean(state.start[:size] ** 2))) | space(observation).informed)
        return Candidate(read(inputs), labels, value, read(unravel(observation, state.labels, state.start)[0]), moved, misfit)

    def objective_at(observation: Observation, inputs: Array, labels: Array) -> Array:
        function = objective(observation, aim(observation), labels)
        return minimiser(observation).value(function, space(observation).place(inputs).reshape(-1))

    def misfit_at(observation: Observation, inputs: Array, labels: Array) -> Array:
        return objective(observation, aim(observation), labels).misfit(space(observation).place(inputs).reshape(-1))

    prepare: Prepare | None = fill_hidden if hidden == "complete" else estimate if hidden == "learned" else None
    return Kernel(
        init, aim, step, decode, prepare, rung=hidden, evidence=hidden == "bounded", estimate=hidden == "learned", objective=objective_at,
        misfit=None if regulariser is None else misfit_at, doubled=doubled,
    )  # fmt: skip


def iterate(kernel: Kernel, *, num_steps: int, num_restarts: int) -> Attack:
    """Runs restarts side by side and keeps the one whose own objective is smallest; the true inputs play no part.

    Restarts that are done stay unchanged, and the loop ends when all are done. Every matrix product runs in full float32: accelerators'
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
        # Both copies of a restart share one start, and the informed copies come first.
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
            # Changes by a step beyond the last one are dropped, so that no bit depends on the stride.
            kept = lambda _, carry: jax.tree.map(partial(jnp.where, unfinished(carry)), step(carry), carry)
            advanced: tuple[Array, State] = jax.lax.fori_loop(0, between_looks, kept, carry)
            return advanced

        with jax.default_matmul_precision("highest"):
            result: State = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]
        return result

    def finish(observation: Observation, state: State) -> Reconstruction:
        with jax.default_matmul_precision("highest"):
            candidates = mapped(kernel.decode, (None, None, 0))(observation, kernel.aim(observation), state)
        spent = state.num_evaluations
        if copies > 1:
            # The better of the two searches from each start is kept, by everything that the rung knows.
            first, second = (jax.tree.map(lambda leaf, part=part: leaf[part], candidates) for part in (slice(num_restarts), slice(num_restarts, None)))
            better = second.objective < first.objective
            candidates = jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), b, a), first, second)
            spent = spent.reshape(copies, num_restarts).sum(axis=0)
        best = jnp.argmin(candidates.objective)
        diverged = ~jnp.isfinite(candidates.objective[best])
        return Reconstruction(
            inputs=jnp.where(diverged, candidates.start[best], candidates.inputs[best]),
            labels=candidates.labels[best],
            objective=candidates.objective[best],
            diverged=diverged,
            restart=best.astype(jnp.int32),
            all_inputs=candidates.inputs,
            all_labels=candidates.labels,
            all_objectives=candidates.objective,
            num_evaluations=spent.max(),
            moved=candidates.moved[best] & ~diverged,
            all_misfits=candidates.misfit,
        )

    def precise(function: Callable[[Observation, Array, Array], Array] | None) -> Callable[[Observation, Array, Array], Array] | None:
        return None if function is None else jax.default_matmul_precision("highest")(function)

    return Attack(
        start, advance, finish, num_steps, num_restarts, prepare=kernel.prepare, rung=kernel.rung, evidence=kernel.evidence, estimate=kernel.estimate,
        objective=precise(kernel.objective), misfit=precise(kernel.misfit), completes=kernel.rung == "complete",
    )  # fmt: skip


def on_host(reconstruct: Callable[[Key, Observation], Reconstruction], *, rung: str = "") -> Attack:
    """Returns an attack in one step that JAX cannot trace: it runs on the host, one observation after the other.

    Args:
      reconstruct: (key, observation) -> the reconstruction.
      rung: how it treats encrypted entries.
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
