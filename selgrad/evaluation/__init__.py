"""Measures of what an attack recovered, all of them pure JAX so that they run inside the compiled block.

`MEASURES` maps a name to a function of input spec, true batch and aligned reconstruction that returns named scalars.
"""

from selgrad.evaluation.alignment import align
from selgrad.evaluation.image import image_quality
from selgrad.evaluation.labels import label_accuracy

__all__ = ["MEASURES", "align"]

MEASURES = {"image_quality": image_quality, "label_accuracy": label_accuracy}
