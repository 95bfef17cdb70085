"""Milliseconds of the products of a dense layer and its derivatives, as JAX writes them and as `selgrad.models.matmul` does.

Command: uv run python benchmarks/matmul_forms.py   (one minute on 2 cores)
Setting: 16 rows (one sentence), the layer shapes of BERT tiny and base, one XLA device with one thread; medians of 30.
  nn: x W; tn: x' dy; nt: dy W', which JAX's rules contract over the last axes of both; matmul: the same product through the primitive.
Expected: nt several times slower than the others, matmul as fast as they are.
Leaves: benchmarks/results/matmul_forms.json.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"

import jax

from selgrad.models.matmul import matmul_transposed

ROWS = 16


def median_milliseconds(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(31):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[1:])


def main():
    rows = []
    for width, features in ((128, 128), (128, 512), (512, 128), (768, 768), (768, 3072), (3072, 768)):
        x, dy, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((ROWS, width), (ROWS, features), (width, features))))
        # The sum keeps XLA from choosing the output's layout to please the product.
        times = {
            "nn": median_milliseconds(lambda x, w: x @ w + 1, x, w),
            "tn": median_milliseconds(lambda x, dy: x.T @ dy + 1, x, dy),
            "nt": median_milliseconds(lambda dy, w: dy @ w.T + 1, dy, w),
            "matmul": median_milliseconds(lambda dy, w: matmul_transposed(dy, w) + 1, dy, w),
        }
        rows.append({"width": width, "features": features, **times})
        print({k: round(v, 3) for k, v in rows[-1].items()}, flush=True)
    result = {"hardware": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}, "milliseconds": rows}
    (Path(__file__).parent / "results" / "matmul_forms.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
