"""Images from a folder of PNG, JPEG or other files that Pillow reads; the label is the sub-folder, or a number in the file's name.

Files are read in sorted order, so a folder always gives the same data set. Hidden files and folders are not data: folders that tools leave behind, such as
`.ipynb_checkpoints`, would otherwise become classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from selgrad.data import pictures
from selgrad.data.dataset import Dataset, Normalisation, make
from selgrad.errors import DataError, UsageError

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_PARTS = ({"train", "training"}, {"test", "testing"}, {"val", "valid", "validation", "dev"})
_LEFT_BEHIND = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"}
"""Folders that tools and file systems create next to the data."""


def _is_data(folder: str) -> bool:
    return not folder.startswith(".") and folder not in _LEFT_BEHIND


def _files(root: Path) -> Iterator[Path]:
    """Yields every picture file under a folder; links are followed, but not in circles."""
    visited = set()
    for folder, below, names in os.walk(root, followlinks=True):
        # A folder that contains itself through a link is walked once.
        if os.path.realpath(folder) in visited:
            below.clear()
            continue
        visited.add(os.path.realpath(folder))
        # In sorted order, so that of two ways to one folder the same counts everywhere.
        below[:] = sorted(filter(_is_data, below))
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and file.suffix.lower() in _ENDINGS:
                if not file.exists():
                    raise DataError(f"{str(file)!r} is a link to {os.readlink(file)!r}, which is not there; fetch the data again or remove the link")
                yield file


def _classes(root: Path, files: list[Path]) -> tuple[list[str], list[int]]:
    """Returns the names of the classes, which are the folders directly under the root, and the class of each file."""
    folders = [file.relative_to(root).parts[:-1] for file in files]
    unclassified = next((file for file, parts in zip(files, folders, strict=True) if not parts), None)
    if unclassified is not None:
        raise DataError(
            f"{str(unclassified)!r} is not in the folder of a class; move it into one, or give label_pattern, which finds the label in a file's name"
        )
    names = sorted({parts[0] for parts in folders})
    of_parts = [name for part in _PARTS for name in names if name.lower() in part]
    if of_parts == names or sum(any(name.lower() in part for name in names) for part in _PARTS) > 1:
        raise UsageError(f"{str(root)!r} holds {', '.join(of_parts)}, which are parts of a data set and not classes; set path to one of them")
    there = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and _is_data(folder.name))
    empty = [name for name in there if name not in names]
    if empty:
        raise DataError(
            f"{str(root / empty[0])!r} holds no picture of its own ({', '.join(sorted(_ENDINGS))}), and without it the classes after it would be others; "
            "convert its files, or remove the folder"
        )
    return names, [names.index(parts[0]) for parts in folders]


def _in_name(pattern: re.Pattern[str], file: Path) -> int:
    match = pattern.search(file.name)
    if match is None or not match.groups() or not re.fullmatch("[0-9]{1,9}", match[1] or ""):
        raise UsageError(f"label_pattern={pattern.pattern!r} finds no number in the file name {file.name!r}")
    return int(match[1])


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
    """Loads RGB images from files.

    Pictures of 16 bits and of floats keep their levels, pictures are turned upright by their EXIF data, and those with transparent pixels are refused.

    Args:
      path: folder whose sub-folders are the classes, in sorted order, or a flat folder with `label_pattern`. Hidden files and folders are left out.
      size: height and width to resize to (bilinear); None requires that all files have one shape.
      label_pattern: regular expression whose first group is the label in a file's name, such as "_([0-9]+)[.]png$".
      num_classes: default: the number of sub-folders, or the largest label plus one.
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    if size is not None and size < 1:
        raise UsageError(f"size={size} must be at least 1 pixel")
    try:
        pattern = None if label_pattern is None else re.compile(label_pattern)
    except re.error as error:
        raise UsageError(f"label_pattern={label_pattern!r} is not a regular expression ({error})") from None
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"data folder {str(root)!r} does not exist; set dataset.path to a folder of images")
    files = sorted(_files(root))
    if not files:
        raise DataError(f"data folder {str(root)!r} holds no image ({', '.join(sorted(_ENDINGS))})")
    if pattern is None:
        names, labels = _classes(root, files)
        classes = len(names)
    else:
        labels = [_in_name(pattern, file) for file in files]
        classes = max(labels) + 1
    source = f"image_folder {str(root)!r}"
    # Only the requested pictures are read, unless the normalisation depends on all of them.
    first, stop = (0, len(files)) if normalisation == "channel" else (max(offset, 0), len(files) if count is None else max(offset, 0) + count)
    images = []
    for file in files[first:stop]:
        images.append(pictures.read(file, size))
        if images[-1].shape != images[0].shape:
            raise DataError(f"{str(file)!r} has shape {images[-1].shape}, {str(files[first])!r} has {images[0].shape}; set size to resize")
    if not images or (count is not None and stop > len(files)):
        raise UsageError(f"{source}: offset={offset}, count={count} asks for samples {offset} .. {stop - 1}; there are {len(files)}")
    return make(
        pictures.together(images), np.asarray(labels[first:stop]), num_classes=classes if num_classes is None else num_classes, count=count,
        offset=offset - first, normalisation=normalisation, source=source,
    )  # fmt: skip
