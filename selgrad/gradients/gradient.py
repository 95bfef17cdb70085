"""FedSGD: the client sends the gradient of its loss on one batch.

McMahan et al., AISTATS 2017 (mcmahan2017fedavg), section 2; the setting of DLG, iDLG and Inverting Gradients.
"""

from __future__ import annotations

import dataclasses

from jax import Array

from selgrad.base import Batch, Grads, Model, Params, embedding_of, loss_gradient
from selgrad.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A client that sends one gradient on a batch of `batch_size` samples."""

    batch_size: int

    @property
    def num_steps(self) -> int:
        """The number of local steps, which is one."""
        return 1

    def __call__(self, model: Model, params: Params, embedded: Array, labels: Array, valid: Array | None = None) -> Grads:
        """Returns the gradient of the mean loss, a tree like the parameters that are sent."""
        return loss_gradient(model, params, lambda _: embedded, labels, valid)

    def client(self, model: Model, params: Params, batch: Batch, labels: Array, offset: Array | None = None) -> Grads:
        """Returns the same for real inputs."""
        return loss_gradient(model, params, embedding_of(model, batch, offset), labels, batch.valid)

    def new_params(self, params: Params, grads: Grads) -> Params:
        """Returns the weights unchanged: a client that sends its gradient has not moved."""
        return params


def gradient(*, batch_size: int = 1) -> Gradient:
    """Sends the gradient of the mean loss over one batch.

    Args:
      batch_size: samples in the batch.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} must be at least 1")
    return Gradient(batch_size)
