"""A picture from the sizes of a first dense layer's rows: from their visible entries, and from how many of their entries the client encrypted.

The gradient of x W is x delta', so row i is as large as pixel i (Phong et al. 2018, phong2018privacy), and a client that encrypts the largest or the most
sensitive entries reveals by their list which rows those are. `rank_one` needs visible entries that determine the rest; this attack also reads the list (ours).
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
    """Returns the size of each row of x delta', relative to the largest row: exact where nothing is hidden.

    Columns only differ in delta, so each is measured by its largest visible entry, and a hidden entry counts as that. Where all visible entries of a column
    are 0, a hidden entry is 1 and a visible one is 0. Ties are broken by index: where zeros are encrypted too, the first rows are wholly hidden and say
    nothing.

    Args:
      matrix: (d, units), 0 where hidden.
      hidden: (d, units).

    Returns:
      (d,) in [0, 1]; all 0 where every row has the same size.
    """
    size = np.abs(matrix)
    largest = np.where(hidden, 0.0, size).max(axis=0)
    sizes: npt.NDArray[np.float64] = np.where(hidden, 1.0, size / np.where(largest > 0, largest, 1)).mean(axis=1)
    known = ~np.logical_and.accumulate(hidden.all(axis=1))
    sizes = np.where(known, sizes, sizes[known].mean() if known.any() else 0)
    sizes = np.where(np.ptp(sizes) > 0, sizes, 0)
    return sizes / max(float(sizes.max()), 1e-300)


def silhouette() -> Attack:
    """Returns the image whose pixels are as bright as their rows of the first dense layer's gradient are large; no optimisation.

    It is right up to a factor and the pixels' signs, and only roughly where entries are hidden: enough to recognise the picture. For a batch it gives the
    sum of its images. It runs on the host.

    Raises:
      UsageError: if no dense layer reads the pixels.
    """

    def reconstruct(key: Key, observation: Observation) -> Reconstruction:
        path, entries, hidden = first_layer_seen(observation)
        # The last row is the bias, which belongs to no pixel.
        matrix, mask = entries[:-1], hidden[:-1]
        spec, size = image_spec(observation), observation.update.batch_size
        brightness = row_sizes(matrix, mask)
        picture = jnp.asarray(brightness.reshape(spec.shape) * float(np.max(spec.high)), jnp.float32)
        inputs: Array = jnp.broadcast_to(picture, (size, *spec.shape))
        # Where all visible entries are 0, only the list of encrypted entries says anything.
        source = path if matrix.any() else f"list of {path}"
        description = f"{source} ({mask.mean():.0%} of it encrypted)"
        labels, unexplained = explained(observation, inputs)
        report = {"used": [description], "unused": []} if brightness.any() else {"used": [], "unused": [description]}
        return Reconstruction.single(inputs, labels, jnp.float32(unexplained), report=json.dumps(report), moved=bool(brightness.any()))

    return on_host(reconstruct)
