"""Why selgrad has a convolution of its own: the matching step of an attack on DLG's LeNet, per form of the convolution.

Command: uv run python benchmarks/convolution_forms.py
Time: about two minutes on 2 cores.
Measures the derivative of the cosine gradient distance wrt the image, 16 attacks under vmap on one device with one thread: `selgrad` (patches
times matrix, rows and columns sliced one after the other), `one_stage` (all size^2 slices at once) and `xla` (`lax.conv_general_dilated` under vmap). Forms
take turns; medians over repeats; compilation apart.
Leaves: benchmarks/results/convolution_forms.json.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp

from selgrad.attacks.distances import cosine
from selgrad.attacks.hidden import Target
from selgrad.base import InputSpec
from selgrad.models import MODELS, convolution, layers

LANES, REPEATS = 16, 9


def xla(x, w, *, stride, padding):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def one_stage(x, w, *, stride, padding):
    size = w.shape[0]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (x.shape[1] - size) // stride + 1
    reach = stride * (rows - 1) + 1
    windows = jnp.concatenate([x[:, i : i + reach : stride, j : j + reach : stride] for i in range(size) for j in range(size)], axis=-1)
    return windows @ w.reshape(-1, w.shape[-1])


def main():
    spec = InputSpec((32, 32, 3), 100, (0.0,) * 3, (1.0,) * 3)
    model = MODELS["lenet"](spec)
    params = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (LANES, 1, 32, 32, 3))
    dummies = jax.random.normal(jax.random.key(2), images.shape)
    labels = jax.nn.one_hot(jnp.arange(LANES), 100)[:, None]
    grads = jax.vmap(jax.grad(model.loss), (None, 0, 0))(params, images, labels)

    def step(dummy, label, observed):
        counted = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), observed)
        return jax.grad(lambda x: cosine(jax.grad(model.loss)(params, x, label), Target.of(observed, counted)))(dummy)

    compiled, result = {}, {"hardware": {"processor": platform.processor() or platform.machine(), "threads": 1, "jax": jax.__version__}, "lanes": LANES}
    for name, form in {"selgrad": convolution.convolve, "one_stage": one_stage, "xla": xla}.items():
        layers.convolve = form
        began = time.perf_counter()
        compiled[name] = jax.jit(lambda *a: jax.vmap(step)(*a)).lower(dummies, labels, grads).compile()
        result[name] = {"compile_seconds": time.perf_counter() - began, "repeats": []}
    for _ in range(REPEATS):
        for name, run in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(run(dummies, labels, grads))
            result[name]["repeats"].append(LANES / (time.perf_counter() - began))
    for name in compiled:
        result[name]["steps_per_second"] = statistics.median(result[name]["repeats"][1:])
        print(name, {k: round(v, 1) for k, v in result[name].items() if k != "repeats"})
    (Path(__file__).parent / "results" / "convolution_forms.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
