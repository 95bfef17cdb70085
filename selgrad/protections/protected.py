"""An update as an attacker simulates it under a protection: what can be foreseen of it, such as clipping, and no noise.

Noise, rounding and pruning come after it, where the update is sent (`Protection.__call__`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jax import Array

from selgrad.base import Batch, Grads, Model, Params, Update


@dataclasses.dataclass(frozen=True)
class Protected:
    """An update followed by what `Protection.deterministic_part` does to it."""

    update: Update
    deterministic_part: Callable[[Grads], Grads]

    @property
    def batch_size(self) -> int:
        """Samples that the client holds."""
        return self.update.batch_size

    @property
    def num_steps(self) -> int:
        """Local steps."""
        return self.update.num_steps

    def __call__(self, model: Model, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Grads:
        """The update for embedded inputs and soft labels."""
        return self.deterministic_part(self.update(model, params, embedded, labels, valid))

    def client(self, model: Model, params: Params, batch: Batch, labels: Array, offset: Array | None = None) -> Grads:
        """The update of real inputs."""
        return self.deterministic_part(self.update.client(model, params, batch, labels, offset))

    def new_params(self, params: Params, grads: Grads) -> Params:
        """The client's weights after the update, given what it sends."""
        return self.update.new_params(params, grads)
