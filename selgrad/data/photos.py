"""32x32 colour crops of the photographs bundled with scikit-image: nothing to download.

The label is the photograph that a crop comes from. Photographs are first halved in size twice, so that a crop shows objects, not texture.
"""

from __future__ import annotations

import numpy as np

from selgrad.data.dataset import Dataset, Normalisation, make

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry")


def photos(*, count: int | None = None, offset: int = 0, normalisation: Normalisation = "none") -> Dataset:
    """Loads 32x32x3 images of 6 classes (astronaut, cat, coffee, rocket, galaxies, tissue), in a fixed order with alternating classes.

    Args:
      count: samples to keep, all by default.
      offset: samples to leave out first.
      normalisation: "none" keeps [0, 1]; "channel" standardises.
    """
    from skimage import data, transform  # heavy, and only needed here

    crops: list[list[np.ndarray]] = []
    for name in _PHOTOGRAPHS:
        image = getattr(data, name)().astype(np.float32) / 255
        small = transform.downscale_local_mean(image, (4, 4, 1))
        small = small[: image.shape[0] // 4, : image.shape[1] // 4]
        rows, columns = ((n - 32) // 16 + 1 for n in small.shape[:2])
        tiles = [small[16 * i : 16 * i + 32, 16 * j : 16 * j + 32] for i in range(rows) for j in range(columns)]
        order = np.random.default_rng(0).permutation(len(tiles))
        crops.append([tiles[k] for k in order])
    turns = [(tile, label) for turn in zip(*(c[: min(map(len, crops))] for c in crops), strict=True) for label, tile in enumerate(turn)]
    pixels = np.stack([tile for tile, _ in turns])
    labels = np.asarray([label for _, label in turns])
    return make(pixels, labels, num_classes=len(_PHOTOGRAPHS), count=count, offset=offset, normalisation=normalisation, source="photos")
