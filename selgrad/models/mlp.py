"""FedAvg's multilayer perceptron ("2NN"): two hidden layers of 200 units.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (mcmahan2017fedavg).
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
from jax import Array

from selgrad.base import InputSpec
from selgrad.models.classifier import ImageClassifier


class _MLP(nn.Module):
    num_classes: int
    activation: str
    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}[self.activation]
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = activation(nn.Dense(self.width, name=f"fc_{i}")(x))
        return nn.Dense(self.num_classes, name=f"fc_{self.depth}")(x)


def mlp(input_spec: InputSpec, *, activation: Literal["relu", "sigmoid"] = "relu", width: int = 200, depth: int = 2) -> ImageClassifier:
    """Builds a dense network; 199,210 parameters for 28x28x1 inputs and 10 classes, as published.

    Args:
      input_spec: of the data set.
      activation: relu as published, or sigmoid.
      width: units of each hidden layer.
      depth: number of hidden layers.
    """
    return ImageClassifier(_MLP(input_spec.num_classes, activation, width, depth), input_spec, head=f"fc_{depth}")
