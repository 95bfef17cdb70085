"""FedAvg: the client takes local gradient steps and sends w_old - w_new.

McMahan et al., AISTATS 2017 (mcmahan2017fedavg), algorithm 1, ClientUpdate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jax import Array

from selgrad.base import Batch, Grads, Model, Params, with_statistics
from selgrad.errors import UsageError, require_positive


@dataclasses.dataclass(frozen=True)
class FedAvg:
    """`num_steps` local steps of size `learning_rate` over the client's samples, in slices of `local_batch_size`."""

    batch_size: int
    num_steps: int
    learning_rate: float
    local_batch_size: int

    def __call__(self, model: Model, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Grads:
        """Returns w_old - w_new, a tree like the parameters that are sent."""
        return self._run(model, params, lambda _, part: part(embedded), labels, valid)

    def client(self, model: Model, params: Params, batch: Batch, labels: Array, offset: Array | None = None) -> Grads:
        """Returns the same for real inputs, embedded again with the weights of each step."""

        def embed(current: Params, part: Callable[[Array], Array]) -> Array:
            embedded = model.embed(current, part(batch.inputs))
            return embedded if offset is None else embedded + part(offset)

        return self._run(model, params, embed, labels, batch.valid)

    def _run(self, model: Model, params: Params, embed: Callable[[Params, Callable[[Array], Array]], Array], labels: Array, valid: Array | None) -> Grads:
        slices = self.batch_size // self.local_batch_size
        sent, frozen = model.split(params)

        def step(current: Params, index: Array) -> tuple[Params, None]:
            start = (index % slices) * self.local_batch_size

            def part(whole: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(whole, start, self.local_batch_size)

            def loss(trained: Params) -> Array:
                weights = model.merge(trained, frozen)
                return model.loss(weights, embed(weights, part), part(labels), None if valid is None else part(valid))

            moved = jax.tree.map(lambda w, g: w - self.learning_rate * g, current, jax.grad(loss)(current))
            # Running statistics move with the data that they saw, whatever the learning rate.
            change = with_statistics(model, {}, model.merge(current, frozen), lambda weights: embed(weights, part))
            return {**moved, **{name: jax.tree.map(jax.numpy.subtract, current[name], lost) for name, lost in change.items()}} if change else moved, None

        new, _ = jax.lax.scan(step, sent, jax.numpy.arange(self.num_steps))
        return jax.tree.map(lambda old, w: old - w, sent, new)

    def new_params(self, params: Params, grads: Grads) -> Params:
        """Returns the client's weights after its local steps."""
        return jax.tree.map(lambda w, u: w - u, params, grads)


def fedavg(*, batch_size: int = 1, num_steps: int = 5, learning_rate: float = 0.1, local_batch_size: int | None = None) -> FedAvg:
    """Takes local gradient steps and sends the difference of weights.

    Args:
      batch_size: number of samples that the client holds.
      num_steps: local steps; step i reads slice i mod (batch_size / local_batch_size).
      learning_rate: of the local steps.
      local_batch_size: samples per step; default all of them.

    Raises:
      UsageError: if `local_batch_size` does not divide `batch_size`, or a number is not positive.
    """
    local = batch_size if local_batch_size is None else local_batch_size
    require_positive(batch_size=batch_size, num_steps=num_steps, learning_rate=learning_rate, local_batch_size=local)
    if batch_size % local:
        raise UsageError(f"local_batch_size={local} does not divide batch_size={batch_size}")
    return FedAvg(batch_size, num_steps, learning_rate, local)
