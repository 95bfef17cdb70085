"""Image data sets of the Hugging Face hub, by name, through the optional package `datasets` (the extra `hub`).

A local folder that `datasets.load_dataset` reads also works, without a network.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from selgrad.data import pictures
from selgrad.data.dataset import Dataset, Normalisation, make
from selgrad.errors import DataError, UsageError, first_line


def _column(features: dict[str, Any], requested: str | None, kind: str, fallback: tuple[str, ...]) -> str:
    if requested is not None:
        if requested not in features:
            raise UsageError(f"the data set has no column {requested!r}; it has {', '.join(features)}")
        return requested
    for name, feature in features.items():
        if type(feature).__name__ == kind:
            return name
    for name in fallback:
        if name in features:
            return name
    raise UsageError(f"the data set has no {kind} column; name one of {', '.join(features)}")


def huggingface(
    *,
    repository: str,
    configuration: str | None = None,
    split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    size: int | None = None,
    count: int | None = None,
    offset: int = 0,
    normalisation: Normalisation = "none",
) -> Dataset:
    """Loads RGB images and integer labels from the hub or from a local folder in its layout.

    Args:
      repository: such as "ylecun/mnist", or a local folder.
      configuration: of the data set, where it has several.
      split: such as "test".
      image_column, label_column: default: the first Image and the first ClassLabel column.
      size: height and width to resize to; None requires that all images have one shape.
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UsageError("the data set 'huggingface' needs the package datasets; install the extra: selgrad[hub]") from None
    try:
        loaded = datasets.load_dataset(repository, configuration, split=split)
    except Exception as error:  # the hub's client raises errors of many packages; each means that the set could not be fetched
        raise DataError(f"{repository!r} could not be loaded: {type(error).__name__}: {first_line(error)}") from None
    image, label = (
        _column(loaded.features, image_column, "Image", ("image", "img")),
        _column(loaded.features, label_column, "ClassLabel", ("label", "fine_label")),
    )
    if offset < 0 or offset >= len(loaded) or (count is not None and count < 1):
        raise UsageError(f"{repository}: offset={offset}, count={count} asks for no sample; there are {len(loaded)}")
    if size is not None and size < 1:
        raise UsageError(f"size={size} must be at least 1 pixel")
    labels = np.asarray(loaded[label])
    stop = len(loaded) if count is None else min(offset + count, len(loaded))
    images = []
    for index, row in enumerate(loaded.select(range(offset, stop)), offset):
        images.append(pictures.to_rgb(row[image], f"picture {index} of {repository!r}", size))
    if len({i.shape for i in images}) > 1:
        raise DataError(f"{repository!r} holds images of several shapes; set size to resize")
    classes = getattr(loaded.features[label], "num_classes", None) or int(labels.max()) + 1
    kept = labels[offset:stop]
    return make(pictures.together(images), kept, num_classes=classes, count=count, offset=0, normalisation=normalisation, source=repository)
