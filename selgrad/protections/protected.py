"""An update as an attacker simulates it under a protection: with the deterministic part, such as clipping, but without noise.

Noise, rounding and pruning follow when the update is sent (`Protection.__call__`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jax import Array

from selgrad.base import Batch, Grads, Model, Params, Update


@dataclasses.dataclass(frozen=True)
class Protected:
    """An update followed by `Protection.deterministic_part`."""

    update: Update
    deterministic_part: Callable[[Grads], Grads]

    @property
    def batch_size(self) -> int:
        """Number of samples that the client holds."""
        return self.update.batch_size

    @property
    def num_steps(self) -> int:
        """Number of local steps."""
        return self.update.num_steps

    def __call__(self, model: Model, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Grads:
        """Returns the update for embedded inputs and soft labels."""
        return self.deterministic_part(self.update(model, params, embedded, labels, valid))

    def client(self, model: Model, params: Params, batch: Batch, labels: Array, offset: Array | None = None) -> Grads:
        """Returns the update of real inputs."""
        return self.deterministic_part(self.update.client(model, params, batch, labels, offset))

    def new_params(self, params: Params, grads: Grads) -> Params:
        """Returns the client's weights after the update, given the update that it sends."""
        return self.update.new_params(params, grads)
