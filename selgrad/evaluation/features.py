"""Features of images from a trained network: images with the same content are near each other, even if their pixels do not coincide.

Distances of deep features follow human judgement where squared errors do not: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", CVPR 2018 (zhang2018unreasonable). Here the features are those of the last hidden layer of a network that the user names.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from selgrad import trees
from selgrad.base import InputSpec, Model, Params
from selgrad.errors import UsageError

_AT_ONCE = 128

Pixels = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]


class HiddenLayer:
    """Maps pixels (N, H, W, C) in [0, 1] to the inputs of a network's last dense layer, (N, features) of length 1.

    A class score is linear in the last kernel, and its derivative by the kernel is the layer's input, which is thus available in any model whose head is
    named.

    Args:
      model: the network.
      params: its trained weights.

    Raises:
      UsageError: if the model reads no images.
    """

    def __init__(self, model: Model, params: Params) -> None:
        spec, path = model.input_spec, f"{model.head}/kernel"
        if not isinstance(spec, InputSpec):
            raise UsageError("features: the network reads text; name one of images")
        self._spec = spec
        self._weights = trees.partition(params, lambda name: name == path)
        self._kept: tuple[Pixels, Vectors] | None = None

        def score(last: Params, rest: Params, image: jax.Array) -> jax.Array:
            logit: jax.Array = model.logits(trees.merge(last, rest), image[None])[0, 0]
            return logit

        def read(last: Params, rest: Params, images: jax.Array) -> jax.Array:
            slopes = trees.subtree(jax.vmap(jax.grad(score), (None, None, 0))(last, rest, images), path)[..., 0]
            return slopes / jnp.maximum(jnp.linalg.norm(slopes, axis=1, keepdims=True), 1e-30)

        self._read = jax.jit(read)

    def __call__(self, pixels: Pixels) -> Vectors:
        """Returns the features of images."""
        images = np.asarray(self._spec.normalise(np.asarray(pixels, np.float32)))
        # Blocks of one size, so that one program serves all.
        padded = np.concatenate([images, np.zeros((-len(images) % _AT_ONCE, *images.shape[1:]), images.dtype)])
        parts = [np.asarray(self._read(*self._weights, jnp.asarray(part))) for part in padded.reshape(-1, _AT_ONCE, *images.shape[1:])]
        return np.concatenate(parts)[: len(images)] if parts else np.zeros((0, 1), np.float32)

    def kept(self, pixels: Pixels) -> Vectors:
        """Returns the same features, computed once for an array that is passed repeatedly."""
        if self._kept is None or self._kept[0] is not pixels:
            self._kept = pixels, self(pixels)
        return self._kept[1]
