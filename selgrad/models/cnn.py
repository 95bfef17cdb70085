"""FedAvg's CNN: two 5x5 convolutions (32 and 64 channels), each with 2x2 max pooling, and a dense layer of 512 units.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (mcmahan2017fedavg).
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
from jax import Array

from selgrad.base import InputSpec
from selgrad.models.classifier import ImageClassifier
from selgrad.models.layers import Conv, max_pool


class _CNN(nn.Module):
    num_classes: int
    activation: str
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}[self.activation]
        x = max_pool(activation(Conv(self.width, 5, padding=2, name="conv_0")(x)))
        x = max_pool(activation(Conv(2 * self.width, 5, padding=2, name="conv_1")(x)))
        x = activation(nn.Dense(16 * self.width, name="fc_0")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, name="fc_1")(x)


def cnn(input_spec: InputSpec, *, activation: Literal["relu", "sigmoid"] = "relu", width: int = 32) -> ImageClassifier:
    """Builds FedAvg's two-convolution network; 1,663,370 parameters for 28x28x1 inputs and 10 classes.

    Args:
      input_spec: of the data set; at least 4x4 pixels.
      activation: relu as published, or sigmoid.
      width: channels of the first convolution; the second has twice as many, and the dense layer has 16 times as many units.
    """
    return ImageClassifier(_CNN(input_spec.num_classes, activation, width), input_spec, head="fc_1")
