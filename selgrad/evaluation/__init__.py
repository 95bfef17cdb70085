"""Measures of what an attack recovered: for images in pure JAX inside the compiled block, for text on the host, where it is decoded.

`MEASURES` maps the name of a column to a `Measure`, which holds the function and how the number is interpreted and shown.
"""

from selgrad.evaluation import identification, image, labels, text
from selgrad.evaluation.alignment import align
from selgrad.evaluation.identification import identified_images, identified_sentences
from selgrad.evaluation.text import align_texts
from selgrad.measures import Measure

__all__ = ["MEASURES", "align", "align_texts", "identified_images", "identified_sentences"]

_VERDICTS = (Measure("success", "share of attacks that succeed", "Whether the success rule holds.", None, "verdicts", curve=True, summary=True),)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (*image.MEASURES, *text.MEASURES, *identification.MEASURES, *_VERDICTS, *labels.MEASURES)}
