"""Real handwritten digits, 8x8 grey, 1,797 samples, bundled with scikit-learn: nothing to download.

The test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak 1998, alpaydin1998optdigits).
"""

from __future__ import annotations

from selgrad.data.dataset import Dataset, Normalisation, make


def digits(*, count: int | None = None, offset: int = 0, normalisation: Normalisation = "none") -> Dataset:
    """Loads 8x8x1 images of 10 classes.

    Args:
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    from sklearn.datasets import load_digits  # heavy, and only needed here

    bunch = load_digits()
    pixels = (bunch.images / 16.0)[..., None]
    return make(pixels, bunch.target, num_classes=10, count=count, offset=offset, normalisation=normalisation, source="digits")
