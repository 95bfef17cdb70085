"""A picture from the sizes of a first dense layer's rows: what is visible of them, and how many of their entries somebody thought worth encrypting.

The gradient of x W is x delta', so row i is as large as pixel i (Phong et al. 2018, phong2018privacy), and a client that encrypts the largest or the most
sensitive entries says by the list of them which rows those are. `rank_one` needs visible entries that determine the rest; this reads the list as well (ours).
"""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad.attacks.kernel import on_host
from selgrad.attacks.rank_one import explained, first_layer_seen
from selgrad.attacks.spaces import image_spec
from selgrad.base import Attack, Key, Observation, Reconstruction


def row_sizes(matrix: npt.NDArray[np.float64], hidden: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """How large each row of x delta' is, relative to the largest: exact where nothing is hidden.

    Columns differ in delta alone, so each is measured by its largest visible entry, and a hidden entry counts as that. Where a column shows nothing but
    zeros, a hidden entry is 1 and a visible one is 0. Ties are broken by place: where zeros are encrypted too, the first rows are, wholly, and say nothing.

    Args:
      matrix: (d, units), 0 where hidden.
      hidden: (d, units).

    Returns:
      (d,) in [0, 1]; all 0 where every row is alike.
    """
    size = np.abs(matrix)
    largest = np.where(hidden, 0.0, size).max(axis=0)
    found: npt.NDArray[np.float64] = np.where(hidden, 1.0, size / np.where(largest > 0, largest, 1)).mean(axis=1)
    known = ~np.logical_and.accumulate(hidden.all(axis=1))
    found = np.where(known, found, found[known].mean() if known.any() else 0)
    found = np.where(np.ptp(found) > 0, found, 0)
    return found / max(float(found.max()), 1e-300)


def silhouette() -> Attack:
    """The image whose pixels are as bright as their rows of the first dense layer's gradient are large; no optimisation.

    It is right up to a factor and the pixels' signs, and no further where entries are hidden: enough to tell which picture it is. Of a batch it gives the
    sum of its images. It runs on the host.

    Raises:
      UsageError: if no dense layer reads the pixels.
    """

    def reconstruct(key: Key, observation: Observation) -> Reconstruction:
        path, entries, hidden = first_layer_seen(observation)
        # Without the bias, which is not a pixel's.
        matrix, mask = entries[:-1], hidden[:-1]
        spec, size = image_spec(observation), observation.update.batch_size
        found = row_sizes(matrix, mask)
        picture = jnp.asarray(found.reshape(spec.shape) * float(np.max(spec.high)), jnp.float32)
        inputs: Array = jnp.broadcast_to(picture, (size, *spec.shape))
        # Zeros are read as such only because the list says what else there is.
        source = path if matrix.any() else f"list of {path}"
        said = f"{source} ({mask.mean():.0%} of it encrypted)"
        labels, unexplained = explained(observation, inputs)
        report = {"used": [said], "unused": []} if found.any() else {"used": [], "unused": [said]}
        return Reconstruction.single(inputs, labels, jnp.float32(unexplained), report=json.dumps(report), moved=bool(found.any()))

    return on_host(reconstruct)
