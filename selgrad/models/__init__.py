"""Models: Flax networks behind the `Model` protocol, one file each, and the entry point for user-defined models.

`MODELS` maps a name to a factory; the factory's keyword arguments are the model's configuration.
"""

from selgrad.models.bert import bert
from selgrad.models.cnn import cnn
from selgrad.models.convnet import convnet
from selgrad.models.gpt2 import gpt2
from selgrad.models.lenet import lenet
from selgrad.models.mlp import mlp
from selgrad.models.own import adapt, configured, own_model
from selgrad.models.resnet import resnet
from selgrad.models.vgg import vgg
from selgrad.models.vit import vit

__all__ = ["MODELS", "adapt", "configured", "own_model"]

MODELS = {
    "lenet": lenet,
    "cnn": cnn,
    "mlp": mlp,
    "convnet": convnet,
    "resnet": resnet,
    "vgg": vgg,
    "vit": vit,
    "bert": bert,
    "gpt2": gpt2,
}
