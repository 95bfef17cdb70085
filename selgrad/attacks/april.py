"""Recovers the image that a vision transformer read in closed form: its patches are the solution of a linear system.

Patches x_t become tokens x_t W + b + e_t, so the gradient of the position e_t is the gradient D_t that flowed back to token t, and that of W is the sum of
x_t D_t' over tokens: the patches solve X' D = dL/dW, exactly while a token has no fewer features than there are patches. After Lu et al. 2022 (lu2022april),
who solve the first attention layer with the same D; the layer that reads the patches makes no demand on the layers above it.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import PyTree
from scipy.sparse.linalg import LinearOperator, lsqr

from selgrad import trees
from selgrad.attacks.completion import low_rank
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import on_host
from selgrad.attacks.rank_one import explained
from selgrad.attacks.spaces import image_prior, image_spec
from selgrad.attacks.starts import draw
from selgrad.base import Attack, InputSpec, Key, Observation, Reconstruction
from selgrad.errors import UsageError

Matrix = npt.NDArray[np.float64]

_ROUNDING = 1e-6
"""Assumed standard deviation of an entry, relative to the gradient that flowed back through its column; float32 leaves a tenth of it."""


class Patches(NamedTuple):
    """The leaves where a model reads patches.

    Attributes:
      kernel: path of the layer that reads them, (pixels of a patch, features), or (side, side, channels, features) where it is a convolution.
      bias: path of its bias; None where it has none.
      positions: path of the positions that are added to the tokens, (..., tokens, features).
      side: of a patch, in pixels.
      first: number of tokens before the patches: 1 for a class token, or 0.
    """

    kernel: str
    bias: str | None
    positions: str
    side: int
    first: int


def reads_patches(tree: PyTree, spec: InputSpec) -> list[Patches]:
    """Finds leaves, in a tree like the update, whose shapes fit a layer that reads patches and positions for as many tokens; the outermost come first."""
    height, width, channels = spec.shape
    shapes = {path: jnp.shape(leaf) for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True)}
    layers = []
    for kernel, shape in shapes.items():
        pixels, features = math.prod(shape[:-1]), shape[-1] if shape else 0
        side = math.isqrt(pixels // channels)
        reads = shape in ((side * side * channels, features), (side, side, channels, features))
        if not kernel.endswith("kernel") or not reads or height % side or width % side or side in (height, width):
            continue
        count, bias = (height // side) * (width // side), kernel.removesuffix("kernel") + "bias"
        for positions, table in shapes.items():
            if not positions.endswith("kernel") and len(table) > 1 and table[-1] == features and math.prod(table[:-1]) in (count, count + 1):
                layers.append(Patches(kernel, bias if bias in shapes else None, positions, side, math.prod(table[:-1]) - count))
    return sorted(layers, key=lambda layer: (layer.kernel.count("/"), layer.positions.count("/")))


def _stacked(observation: Observation, where: Patches) -> tuple[Matrix, npt.NDArray[np.bool_], int]:
    """Returns [D; X' D; 1' D] of all rounds side by side, of the rank of D since the patches are the same, its mask, and the number of patches."""

    def stack(tree: Any) -> npt.NDArray[Any]:
        positions = np.asarray(trees.subtree(tree, where.positions))
        kernel = np.asarray(trees.subtree(tree, where.kernel))
        parts = [positions.reshape(-1, positions.shape[-1])[where.first :], kernel.reshape(-1, kernel.shape[-1])]
        return np.concatenate(parts if where.bias is None else [*parts, np.asarray(trees.subtree(tree, where.bias))[None]])

    rounds = [(stack(view.visible), stack(view.mask)) for view in observation.rounds]
    matrix, mask = (np.concatenate(parts, axis=1) for parts in zip(*rounds, strict=True))
    positions = trees.subtree(observation.visible, where.positions)
    return matrix.astype(np.float64), mask, math.prod(positions.shape[:-1]) - where.first


def _as_patches(images: Any, side: int) -> Any:
    """Reshapes (H, W, C) to (patches, pixels of a patch), rows of patches first."""
    height, width, channels = images.shape
    return images.reshape(height // side, side, width // side, side, channels).swapaxes(1, 2).reshape(-1, side * side * channels)


def _as_image(patches: Any, spec: InputSpec, side: int) -> Any:
    """Inverts `_as_patches`."""
    height, width, channels = spec.shape
    return patches.reshape(height // side, width // side, side, side, channels).swapaxes(1, 2).reshape(spec.shape)


def _solved(flow: Matrix, products: Matrix, visible: npt.NDArray[np.bool_]) -> Matrix | None:
    """Returns the patches (count, pixels) by least squares, pixel by pixel; None where the visible entries do not determine all of them.

    Args:
      flow: D (count, columns).
      products: X' D (pixels, columns).
      visible: which of these are visible.
    """
    count = len(flow)
    patches = np.zeros((count, len(products)))
    solvers: dict[bytes, Matrix | None] = {}
    for pixel, (row, visible_columns) in enumerate(zip(products, visible, strict=True)):
        key = visible_columns.tobytes()
        if key not in solvers:
            u, s, vt = np.linalg.svd(flow[:, visible_columns], full_matrices=False)
            determined = visible_columns.sum() >= count and s[-1] > _ROUNDING * s[0]
            solvers[key] = (u / s) @ vt if determined else None
        inverse = solvers[key]
        if inverse is None:
            return None
        patches[:, pixel] = inverse @ row[visible_columns]
    return patches


def _likeliest(observation: Observation, flow: Matrix, products: Matrix, visible: npt.NDArray[np.bool_], side: int, shrinkage: float, num_steps: int) -> Matrix:
    """Returns the patches at the mode of their posterior under a Gaussian prior of images, where the visible entries leave some undetermined."""
    spec = image_spec(observation)
    prior = image_prior(observation, shrinkage)
    root = jax.jit(prior.root)
    mean = np.asarray(prior.mean, np.float64)
    apply = lambda z: _as_patches(np.asarray(root(jnp.asarray(z, jnp.float32).reshape(spec.shape)), np.float64), side)

    def forward(z: Any) -> Any:
        return (apply(z).T @ flow)[visible] / _ROUNDING

    def backward(r: Any) -> Any:
        spread = np.zeros(visible.shape)
        spread[visible] = r / _ROUNDING
        return np.asarray(root(jnp.asarray(_as_image((spread @ flow.T).T, spec, side), jnp.float32)), np.float64).ravel()

    operator = LinearOperator((int(visible.sum()), mean.size), matvec=forward, rmatvec=backward, dtype=np.float64)  # type: ignore[call-arg]
    residual = (products - _as_patches(mean, side).T @ flow)[visible] / _ROUNDING
    patches: Matrix = _as_patches(mean, side) + apply(lsqr(operator, residual, damp=1.0, atol=1e-7, btol=1e-7, iter_lim=num_steps)[0])
    return patches


def april(*, hidden: Hidden = "ignore", shrinkage: float = 0.1, num_steps: int = 2000) -> Attack:
    """Solves for the patches that a vision transformer read, from the gradients of its positions and of the layer that reads patches; no search.

    Hidden entries are completed where the stacked gradients have redundancy, since their rank is the number of patches. Columns in which the gradient that
    flowed back to some patch stays hidden are left out; where the others leave pixels undetermined, the likeliest image is returned, under a Gaussian prior of
    the public images or of photographs. Several local steps on one image are as good as one, because the gradients that flow back add up. The leaves are
    recognised by their shapes; where several fit, those whose image reproduces the update are used. It runs on the host in float64.

    Args:
      hidden: how encrypted entries are treated: `zero` and `average` put 0 or the mean in their place.
      shrinkage: weight of the mean variance in the prior's covariance.
      num_steps: largest number of least-squares (LSQR) steps under the prior.

    Raises:
      UsageError: if the model has no layer that reads patches with positions for as many tokens, or a client holds more than one image.
    """
    if num_steps < 1:
        raise UsageError(f"num_steps={num_steps} must be at least 1")

    def read(observation: Observation, where: Patches) -> tuple[Matrix | None, str]:
        """Returns the image, or None where nothing can be said about it, and a description of how it was recovered."""
        spec = image_spec(observation)
        matrix, mask, count = _stacked(observation, where)
        completion = "nothing hidden"
        if hidden in ("zero", "average"):
            matrix = np.where(mask, matrix[~mask].mean() if hidden == "average" and not mask.all() else 0.0, matrix)
            mask = np.zeros_like(mask)
        elif mask.any():
            matrix, mask, completion = low_rank(matrix, mask, count)
        pixels = slice(count, len(matrix) - (where.bias is not None))
        size: Matrix = np.linalg.norm(np.where(mask, 0.0, matrix)[:count], axis=0)
        columns = ~mask[:count].any(axis=0) & (size > 0)
        flow, products, visible = matrix[:count, columns] / size[columns], matrix[pixels, columns] / size[columns], ~mask[pixels, columns]
        name = f"{where.positions}, {where.kernel}"
        if not visible.any():
            return None, f"{name} ({completion})"
        patches, method = _solved(flow, products, visible), "solved"
        if patches is None:
            patches = _likeliest(observation, flow, products, visible, where.side, shrinkage, num_steps)
            method = f"likeliest image, {visible.sum()} of {visible.size} entries known"
        return _as_image(patches, spec, where.side), f"{name} ({completion}; {method})"

    def reconstruct(key: Key, observation: Observation) -> Reconstruction:
        spec = image_spec(observation)
        layers = reads_patches(observation.visible, spec)
        if not layers:
            raise UsageError("attack 'april' reads a layer of patches and the positions added to them, and this model has none; choose vit, or another attack")
        if observation.update.batch_size > 1:
            raise UsageError(f"attack 'april' reads one image, and a client holds batch_size={observation.update.batch_size}; choose another attack")
        used: list[str] = []
        unused: list[str] = []
        best: tuple[Any, Any, float] | None = None
        for where in layers:
            image, description = read(observation, where)
            if image is None:
                unused.append(description)
                continue
            inputs = jnp.asarray(image, jnp.float32)[None]
            labels, unexplained = explained(observation, inputs)
            if best is None or unexplained < best[2]:
                unused += used
                best, used = (inputs, labels, unexplained), [description]
            else:
                unused.append(description)
        if best is None:
            # Nothing can be solved, so a sample of the prior is returned, as by every attack at ratio 1.
            drawn = draw("normal", key, 1, spec)
            best = drawn, *explained(observation, drawn)
        inputs, labels, unexplained = best
        report = json.dumps({"used": used, "unused": unused})
        return Reconstruction.single(inputs, labels, jnp.float32(unexplained), report=report, moved=bool(used))

    return on_host(reconstruct, rung=hidden)
