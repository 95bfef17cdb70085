"""ResNet for CIFAR: three stages of basic blocks with 16, 32 and 64 channels, global average pooling and one dense layer.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (he2016resnet), section 4.2; layers are named as in PyTorch's checkpoints.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from selgrad.base import InputSpec
from selgrad.errors import UsageError
from selgrad.models.classifier import ImageClassifier, Mode, Statistics
from selgrad.models.layers import Conv, he_normal, norm

Norm: TypeAlias = Literal["batch", "group"]


class _Block(nn.Module):
    channels: int
    stride: int
    kind: Norm
    shortcut: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = Conv(self.channels, 3, stride=self.stride, padding=1, use_bias=False, kernel_init=he_normal, name="conv1")(x)
        y = jax.nn.relu(norm(self.kind, "bn1", train)(y))
        y = Conv(self.channels, 3, padding=1, use_bias=False, kernel_init=he_normal, name="conv2")(y)
        y = norm(self.kind, "bn2", train)(y)
        if x.shape != y.shape:
            if self.shortcut == "A":
                more = self.channels - x.shape[-1]
                x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
            else:
                x = Conv(self.channels, 1, stride=self.stride, use_bias=False, kernel_init=he_normal, name="shortcut_conv")(x)
                x = norm(self.kind, "shortcut_bn", train)(x)
        return jax.nn.relu(x + y)


class _ResNet(nn.Module):
    num_classes: int
    depth: int
    width: int
    kind: Norm
    shortcut: str

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = Conv(self.width, 3, padding=1, use_bias=False, kernel_init=he_normal, name="conv1")(x)
        x = jax.nn.relu(norm(self.kind, "bn1", train)(x))
        for stage in range(3):
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage and not block else 1
                x = _Block(self.width * 2**stage, stride, self.kind, self.shortcut, name=f"layer{stage + 1}_{block}")(x, train)
        return nn.Dense(self.num_classes, name="linear")(x.mean(axis=(1, 2)))


def resnet(
    input_spec: InputSpec,
    *,
    depth: int = 20,
    norm: Norm = "batch",
    shortcut: Literal["A", "B"] = "A",
    width: int = 16,
    mode: Mode = "evaluation",
    statistics: Statistics = "kept",
) -> ImageClassifier:
    """Builds CIFAR's ResNet; 269,722 parameters at depth 20 for 32x32x3 inputs and 10 classes.

    Args:
      input_spec: of the data set; at least 4x4 pixels.
      depth: 6 n + 2 layers: 20, 32, 44 or 56 as published, or 8.
      norm: batch normalisation as published, or group normalisation with groups of at most 16 channels, which needs no batch.
      shortcut: where a block changes the shape, A pads with zeros and B has a 1x1 convolution.
      width: channels of the first stage.
      mode: "evaluation" normalises by running statistics, which are public; "train" by the batch's, which an attacker simulates.
      statistics: in mode "train", how the new running statistics are handled: `kept` by the client, kept but `known` to attackers, `sent`, or sent `encrypted`.

    Raises:
      UsageError: for a depth that is not 6 n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UsageError(f"depth={depth} is not 6 n + 2; take 20, 32, 44 or 56")
    return ImageClassifier(_ResNet(input_spec.num_classes, depth, width, norm, shortcut), input_spec, "linear", mode=mode, statistics=statistics)
