"""The plain convolutional network of the Inverting Gradients experiments: eight 3x3 convolutions with batch normalisation, two poolings, one dense layer.

Geiping et al., NeurIPS 2020 (geiping2020inverting), whose library calls it ConvNet and trains it with 64 channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from jax import Array

from selgrad.base import InputSpec
from selgrad.models.classifier import ImageClassifier, Mode, Statistics
from selgrad.models.layers import Conv, max_pool, norm
from selgrad.models.resnet import Norm

_CHANNELS = (1, 2, 2, 4, 4, 4, 4, 4)
_POOLED_AFTER = (5, 7)


class _ConvNet(nn.Module):
    num_classes: int
    width: int
    kind: Norm

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for i, factor in enumerate(_CHANNELS):
            x = Conv(factor * self.width, 3, padding=1, name=f"conv{i}")(x)
            x = jax.nn.relu(norm(self.kind, f"bn{i}", train)(x))
            if i in _POOLED_AFTER and min(x.shape[1:3]) >= 3:
                x = max_pool(x, 3)
        return nn.Dense(self.num_classes, name="linear")(x.reshape(x.shape[0], -1))


def convnet(input_spec: InputSpec, *, width: int = 64, norm: Norm = "batch", mode: Mode = "evaluation", statistics: Statistics = "kept") -> ImageClassifier:
    """Builds eight convolutions of width, 2, 2, 4, 4, 4, 4 and 4 times width channels; 3x3 max pooling after the sixth and the eighth.

    Args:
      input_spec: of the data set; feature maps below 3x3 pixels are not pooled further.
      width: channels of the first convolution; 64 as published.
      norm: batch or group normalisation.
      mode: "evaluation" normalises by running statistics, which are public; "train" by the batch's, which an attacker simulates.
      statistics: in mode "train", how the new running statistics are handled: `kept` by the client, kept but `known` to attackers, `sent`, or sent `encrypted`.
    """
    return ImageClassifier(_ConvNet(input_spec.num_classes, width, norm), input_spec, "linear", mode=mode, statistics=statistics)
