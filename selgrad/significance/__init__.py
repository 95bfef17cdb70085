"""Significance metrics: which entries of a client update to encrypt first, one file each.

`METRICS` maps a name to a factory; the metric that it returns scores all entries at once and can be jitted and vmapped.
"""

from selgrad.significance.distance import distance
from selgrad.significance.fisher import fisher
from selgrad.significance.layerwise import layerwise
from selgrad.significance.magnitude import magnitude
from selgrad.significance.own import adapt
from selgrad.significance.product import product
from selgrad.significance.random import random
from selgrad.significance.sensitivity import sensitivity

__all__ = ["METRICS", "adapt"]

METRICS = {
    "random": random,
    "magnitude": magnitude,
    "sensitivity": sensitivity,
    "product": product,
    "fisher": fisher,
    "distance": distance,
    "layerwise": layerwise,
}
