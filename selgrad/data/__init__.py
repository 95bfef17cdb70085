"""Data sets: loaders of original files, two of them bundled with dependencies and so offline, one file each.

`DATASETS` maps a name to a loader; its keyword arguments are the data set's configuration.
"""

from selgrad.data.cifar import cifar10, cifar100
from selgrad.data.dataset import Dataset
from selgrad.data.digits import digits
from selgrad.data.huggingface import huggingface
from selgrad.data.idx import fashion_mnist, mnist
from selgrad.data.image_folder import image_folder
from selgrad.data.photos import photos

__all__ = ["DATASETS", "Dataset"]

DATASETS = {
    "digits": digits,
    "photos": photos,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image_folder": image_folder,
    "huggingface": huggingface,
}
