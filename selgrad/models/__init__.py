"""Models: Flax Linen networks behind the `Model` protocol, one file each.

`MODELS` maps a name to a factory; the factory's keyword arguments are the model's configuration.
"""

from selgrad.models.bert import bert
from selgrad.models.cnn import cnn
from selgrad.models.gpt2 import gpt2
from selgrad.models.lenet import lenet
from selgrad.models.mlp import mlp

MODELS = {"lenet": lenet, "cnn": cnn, "mlp": mlp, "bert": bert, "gpt2": gpt2}
