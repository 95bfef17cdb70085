"""Rounding error of DLG's LeNet in float32: logits and gradient, with the dense layer as one matrix product and as sums of blocks of 32.

Command: uv run python benchmarks/float32_noise.py
Time: under a minute on 2 cores.
Expected: the error of the logits falls by about a third; what remains comes from the convolutions.
Leaves: benchmarks/results/float32_noise.json.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from selgrad.base import InputSpec
from selgrad.models import layers
from selgrad.models.lenet import lenet

IMAGES = 50


def main() -> None:
    spec = InputSpec((32, 32, 3), 100, (0.0,) * 3, (1.0,) * 3)
    model, images = lenet(spec), np.random.default_rng(0).random((IMAGES, 1, 32, 32, 3)).astype(np.float32)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    labels = np.eye(100, dtype=np.float32)[np.arange(IMAGES) % 100][:, None]

    def both(params, image, label):
        return model.logits(params, image), jax.grad(model.loss)(params, image, label)

    def everything(dtype):
        cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
        return jax.device_get(jax.jit(jax.vmap(both, (None, 0, 0)))(cast(params), cast(images), cast(labels)))

    found = {}
    for name, block in (("one product", 10**9), ("blocks", layers._BLOCK)):
        layers._BLOCK = block
        found[name] = everything(jnp.float32)
    jax.config.update("jax_enable_x64", True)
    logits, gradient = everything(jnp.float64)
    result = {"hardware": {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count()}, "jax": jax.__version__, "images": IMAGES}
    norm = lambda tree: np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))
    for name, (rounded_logits, rounded_gradient) in found.items():
        result[name] = {
            "logits_error_std": float((rounded_logits - logits).std()),
            "gradient_relative_error": float(norm(jax.tree.map(np.subtract, rounded_gradient, gradient)) / norm(gradient)),
        }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "float32_noise.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
