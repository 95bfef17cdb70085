"""Images from a folder of PNG, JPEG or other files that Pillow reads; the label is the sub-folder, or a number in the file's name.

Files are taken in sorted order, so a folder always gives the same data set.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from selgrad.data.dataset import Dataset, Normalisation, make
from selgrad.errors import DataError, UsageError

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def image_folder(
    *,
    path: str,
    size: int | None = None,
    label_pattern: str | None = None,
    num_classes: int | None = None,
    count: int | None = None,
    offset: int = 0,
    normalisation: Normalisation = "none",
) -> Dataset:
    """RGB images from files.

    Args:
      path: folder whose sub-folders are the classes, in sorted order, or a flat folder with `label_pattern`.
      size: height and width to resize to (bilinear); None asks that all files have one shape.
      label_pattern: regular expression whose first group is the label in a file's name, such as "_([0-9]+)[.]png$".
      num_classes: default: the number of sub-folders, or the largest label plus one.
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    from PIL import Image, UnidentifiedImageError

    if size is not None and size < 1:
        raise UsageError(f"size={size} must be at least 1 pixel")
    try:
        pattern = re.compile(label_pattern or "")
    except re.error as error:
        raise UsageError(f"label_pattern={label_pattern!r} is no regular expression ({error})") from None
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"data folder {str(root)!r} does not exist; set dataset.path to a folder of images")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in _ENDINGS)
    if not files:
        raise DataError(f"data folder {str(root)!r} holds no image ({', '.join(sorted(_ENDINGS))})")
    folders = sorted({p.parent for p in files})
    images, labels = [], []
    for file in files:
        if label_pattern is None:
            labels.append(folders.index(file.parent))
        else:
            match = pattern.search(file.name)
            if match is None or not match.groups() or not match[1].isdigit():
                raise UsageError(f"label_pattern={label_pattern!r} finds no number in the file name {file.name!r}")
            labels.append(int(match[1]))
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
                images.append(np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR) if size else rgb))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{str(file)!r} is no readable image ({error})") from None
        if images[-1].shape != images[0].shape:
            raise DataError(f"{str(file)!r} has shape {images[-1].shape}, {str(files[0])!r} has {images[0].shape}; set size to resize")
    classes = num_classes or (len(folders) if label_pattern is None else max(labels) + 1)
    source = f"image_folder {str(root)!r}"
    return make(np.stack(images), np.asarray(labels), num_classes=classes, count=count, offset=offset, normalisation=normalisation, source=source)
