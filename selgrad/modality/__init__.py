"""Images and text: the only place where they are told apart. Everything else asks the modality of its data set.

A modality knows how to measure, decode and keep what an attack found, what success means by default, and what an attacker knows about the inputs beforehand.
"""

from __future__ import annotations

import dataclasses

import jax

from selgrad.base import InputSpec, Model, TextSpec
from selgrad.config import FeaturesConfig
from selgrad.data.dataset import KNOWN
from selgrad.errors import UsageError
from selgrad.evaluation.features import HiddenLayer
from selgrad.modality.images import Images
from selgrad.modality.protocol import LaneResult, Modality, Outcome
from selgrad.modality.text import Text

__all__ = ["LaneResult", "Modality", "Outcome", "hidden_layer", "modality_of", "require_same_inputs"]


def modality_of(spec: InputSpec | TextSpec, features: HiddenLayer | None = None) -> Modality:
    """Returns the modality of a data set or a model with this spec.

    Args:
      spec: spec of the inputs.
      features: features of a trained network, in which images are compared in addition to their pixels.
    """
    return Text(spec) if isinstance(spec, TextSpec) else Images(spec, features)


def hidden_layer(config: FeaturesConfig, inputs: InputSpec | TextSpec) -> HiddenLayer:
    """Builds the features that a trained network computes from a data set's images.

    Raises:
      UsageError: if the data set holds text, or the network was made for other inputs or channels.
    """
    if not isinstance(inputs, InputSpec):
        raise UsageError("features: a network of images, and the data set holds text, whose words are compared; leave the key out")
    if config.normalisation != "data":
        channels, taken = inputs.shape[-1], config.normalisation
        mean, std = KNOWN.get(taken, ((0.0,) * channels, (1.0,) * channels))
        if len(mean) != channels:
            raise UsageError(f"features: normalisation={taken!r} is of {len(mean)} channels and these pictures have {channels}; take 'none' or 'data'")
        inputs = dataclasses.replace(inputs, mean=mean, std=std)
    network: Model = config.spec.build(inputs)
    require_same_inputs(network.input_spec, inputs)
    return HiddenLayer(network, network.init(jax.random.key(0)))


def require_same_inputs(read: InputSpec | TextSpec, provided: InputSpec | TextSpec) -> None:
    """Refuses a model that was made for other inputs than the data set's; only classes and labels may differ."""
    if type(read) is not type(provided):
        raise UsageError(f"model: it reads {modality_of(read).name}, and the data set holds {modality_of(provided).name}")
    for field in dataclasses.fields(provided):
        mine, theirs = getattr(read, field.name), getattr(provided, field.name)
        if field.name not in ("num_classes", "label_shape") and mine != theirs:
            raise UsageError(
                f"model: it was made for inputs of {field.name}={mine}, and the data set has {field.name}={theirs}; make it with the data set's spec"
            )
