"""Pictures as RGB, from any file that Pillow opens: deep and float pictures are scaled by their type, and ambiguous ones are refused.

Every loader of pictures uses it, since Pillow alone clips 16 bits to 8, drops transparency and ignores the orientation.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad.errors import DataError, first_line

# Pillow says of a damaged file on standard error what its exception says as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MOST_PIXELS = 2**26
"""Largest number of pixels of one picture: the header of a file of a few kilobytes may announce terabytes."""
_BYTES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")
_ALPHA = ("LA", "RGBA", "PA", "La", "RGBa")


def _deep(image: Any, what: str, of: Any) -> npt.NDArray[np.float32]:
    """Scales a grey picture of more than 8 bits to (H, W) in [0, 1]; `of` is the image as it was opened."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise DataError(f"{what} holds floats outside [0, 1], whose levels of black and white are unknown; scale them to [0, 1]")
        return values.astype(np.float32)
    if image.mode == "I" and of.format not in (None, "PNG"):
        raise DataError(f"{what} holds integers of 32 bits, whose level of white is unknown; save it with 8 or 16 bits")
    # Older versions of Pillow return a PNG's 16 bits as 32.
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{what} holds integers from {values.min()} to {values.max()}, and 16 bits end at 65535; save it with 8 or 16 bits")
    # Pillow turns a TIFF whose white is 0 around where it has 8 bits, and not where it has 16.
    is_negative = of.format == "TIFF" and of.tag_v2.get(262) == 0
    return ((65535 - values.astype(np.int64) if is_negative else values) / 65535).astype(np.float32)


def _require_whole(image: Any, what: str) -> None:
    """Raises DataError for a file of which Pillow would keep a part: 8 of 16 bits of each colour, or one of several pictures."""
    if not image.mode.startswith(("I", "F")) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        raise DataError(f"{what} has 16 bits for each colour, of which 8 would be read; save it with 8")
    # Cameras add small copies to a JPEG, as MPO.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{what} holds {image.n_frames} pictures, of which one would be read; save each in a file of its own")


def to_rgb(image: Any, what: str, size: int | None = None) -> npt.NDArray[Any]:
    """Returns the upright picture, (H, W, 3): uint8, or float32 in [0, 1] where it has more than 8 bits.

    Args:
      image: an image of Pillow.
      what: its name in errors.
      size: height and width to resize to, bilinear.

    Raises:
      DataError: if it is too large or cannot be decoded, has transparent pixels, or values of no known range.
    """
    from PIL import Image, ImageOps

    if image.width * image.height > MOST_PIXELS:
        raise DataError(f"{what} is {image.width} x {image.height} pixels large, more than {MOST_PIXELS:,} in all; make it smaller")
    opened = image
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in _ALPHA or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            if (alpha < 255).any():
                raise DataError(f"{what} has transparent pixels, whose colours are undefined; put it on a background and save it without transparency")
            image = image.convert("RGB")
        if image.mode in _BYTES:
            rgb = image.convert("RGB")
            return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR) if size else rgb)
        if image.mode != "F" and not image.mode.startswith("I"):
            raise DataError(f"{what} has mode {image.mode!r} of Pillow, which has no single interpretation; save it as RGB")
        grey = _deep(image, what, opened)
        if size:
            grey = np.clip(np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR)), 0, 1)
        return np.repeat(grey[..., None], 3, axis=-1)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds, SyntaxError among them
        raise DataError(f"{what} is not a readable image ({first_line(error)})") from None


def read(file: Path, size: int | None = None) -> npt.NDArray[Any]:
    """Reads the picture in a file, as `to_rgb` returns it.

    Raises:
      DataError: if it is not a picture, or as in `to_rgb`.
    """
    from PIL import Image

    what = repr(str(file))
    try:
        with warnings.catch_warnings():
            # Too many pixels are refused below, with our own message.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                _require_whole(image, what)
                return to_rgb(image, what, size)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what} is not a readable image ({first_line(error)})") from None


def together(pictures: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Stacks pictures of one shape to one array: uint8 where all are, else float32 in [0, 1]."""
    if all(picture.dtype == np.uint8 for picture in pictures):
        return np.stack(pictures)
    return np.stack([picture / np.float32(255) if picture.dtype == np.uint8 else picture for picture in pictures]).astype(np.float32)
