"""VGG for CIFAR: 3x3 convolutions with normalisation, pooling after each stage, one dense layer.

Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015 (simonyan2015vgg), configurations A and D, with the single dense layer that CIFAR
implementations have.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
from jax import Array

from selgrad.base import InputSpec
from selgrad.models.classifier import ImageClassifier, Mode, Statistics
from selgrad.models.layers import Conv, he_normal, max_pool, norm
from selgrad.models.resnet import Norm

_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
_FACTORS = (1, 2, 4, 8, 8)


class _VGG(nn.Module):
    num_classes: int
    depth: int
    width: int
    kind: Norm

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for stage, (count, factor) in enumerate(zip(_STAGES[self.depth], _FACTORS, strict=True)):
            for i in range(count):
                x = Conv(factor * self.width, 3, padding=1, kernel_init=he_normal, name=f"conv{stage}_{i}")(x)
                x = jax.nn.relu(norm(self.kind, f"bn{stage}_{i}", train)(x))
            if min(x.shape[1:3]) >= 2:
                x = max_pool(x)
        return nn.Dense(self.num_classes, name="linear")(x.mean(axis=(1, 2)))


def vgg(
    input_spec: InputSpec,
    *,
    depth: Literal[11, 16] = 11,
    width: int = 64,
    norm: Norm = "batch",
    mode: Mode = "evaluation",
    statistics: Statistics = "kept",
) -> ImageClassifier:
    """Builds VGG-11 or VGG-16 with normalisation.

    Args:
      input_spec: of the data set; feature maps of one pixel are not pooled further.
      depth: 11 or 16.
      width: channels of the first stage; 64 as published, the last stages have eight times as many.
      norm: batch or group normalisation.
      mode: "evaluation" normalises by running statistics, which are public; "train" by the batch's, which an attacker simulates.
      statistics: in mode "train", how the new running statistics are handled: `kept` by the client, kept but `known` to attackers, `sent`, or sent `encrypted`.
    """
    return ImageClassifier(_VGG(input_spec.num_classes, depth, width, norm), input_spec, "linear", mode=mode, statistics=statistics)
