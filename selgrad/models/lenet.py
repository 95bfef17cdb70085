"""LeNet as the DLG attack uses it: three 5x5 convolutions of 12 channels and one dense layer.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019 (zhu2019dlg), whose released code gives strides 2, 2, 1 and U(-0.5, 0.5) weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import Array

from selgrad.base import InputSpec
from selgrad.errors import UsageError
from selgrad.models.classifier import ImageClassifier
from selgrad.models.layers import Conv, Dense, uniform_half


class _LeNet(nn.Module):
    num_classes: int
    activation: str
    weights: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}[self.activation]
        inits: dict[str, Any] = {"kernel_init": uniform_half, "bias_init": uniform_half} if self.weights == "uniform" else {}
        for i, stride in enumerate((2, 2, 1)):
            x = activation(Conv(12, 5, stride=stride, padding=2, name=f"conv_{i}", **inits)(x))
        return Dense(self.num_classes, name="fc", **inits)(x.reshape(x.shape[0], -1))


def lenet(
    input_spec: InputSpec,
    *,
    activation: Literal["sigmoid", "relu"] = "sigmoid",
    weights: Literal["uniform", "standard"] = "uniform",
    num_classes: int | None = None,
) -> ImageClassifier:
    """Builds DLG's LeNet; 85,036 parameters for 32x32x3 inputs and 100 classes.

    Args:
      input_spec: of the data set.
      activation: sigmoid as published (the attack needs a twice differentiable network), or relu.
      weights: "uniform" draws weights and biases from U(-0.5, 0.5) as DLG does; "standard" is LeCun normal with zero biases.
      num_classes: size of the last layer where it should be larger than the data set's number of classes (DLG always has 100).

    Raises:
      UsageError: if `num_classes` is smaller than the data set's number of classes.
    """
    if num_classes is not None and num_classes < input_spec.num_classes:
        raise UsageError(f"num_classes={num_classes} of the model is less than the data set's {input_spec.num_classes} classes")
    input_spec = dataclasses.replace(input_spec, num_classes=num_classes or input_spec.num_classes)
    return ImageClassifier(_LeNet(input_spec.num_classes, activation, weights), input_spec, head="fc")
