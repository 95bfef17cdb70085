"""Data sets: loaders of original files, one module each; two data sets are bundled with dependencies and so work offline.

`DATASETS` maps a name to a loader; its keyword arguments are the data set's configuration.
"""

from selgrad.data.cifar import cifar10, cifar100
from selgrad.data.cola import cola
from selgrad.data.dataset import Dataset
from selgrad.data.digits import digits
from selgrad.data.huggingface import huggingface
from selgrad.data.idx import fashion_mnist, mnist
from selgrad.data.image_folder import image_folder
from selgrad.data.own import adapt, from_arrays, from_sentences
from selgrad.data.photos import photos
from selgrad.data.rotten_tomatoes import rotten_tomatoes
from selgrad.data.sentences import sentences
from selgrad.data.sst2 import sst2
from selgrad.data.text import TextDataset
from selgrad.data.text_file import shakespeare, text_file

__all__ = ["DATASETS", "Dataset", "TextDataset", "adapt", "from_arrays", "from_sentences"]

DATASETS = {
    "digits": digits,
    "photos": photos,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image_folder": image_folder,
    "huggingface": huggingface,
    "sentences": sentences,
    "cola": cola,
    "sst2": sst2,
    "rotten_tomatoes": rotten_tomatoes,
    "shakespeare": shakespeare,
    "text_file": text_file,
}
