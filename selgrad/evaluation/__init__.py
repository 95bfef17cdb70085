"""Measures of what an attack recovered: of images in pure JAX inside the compiled block, of text on the host, where it is decoded.

`MEASURES` maps a name to a function of input spec, true batch and aligned reconstruction, `TEXT_MEASURES` to one of two sentences; both return
named scalars.
"""

from selgrad.evaluation.alignment import align
from selgrad.evaluation.image import image_quality
from selgrad.evaluation.labels import label_accuracy
from selgrad.evaluation.text import align_texts, rouge, token_accuracy

__all__ = ["MEASURES", "TEXT_MEASURES", "align", "align_texts", "token_accuracy"]

MEASURES = {"image_quality": image_quality, "label_accuracy": label_accuracy}
TEXT_MEASURES = {"rouge": rouge}
