"""What each significance metric costs: seconds, gradient evaluations, and memory, on a LeNet, a CNN of ResNet-18's size, and a BERT of base size.

Command: uv run python benchmarks/metric_cost.py   (random inputs: a cost does not depend on them)
Time: about 20 minutes on 2 cores. Median of 5 calls after compilation (of 1 where a call takes more than 20 s).
Expected: magnitude and product are free; a Jacobian metric costs about two gradients a probe or an input coordinate, and conjugate gradients many of these.
Leaves: benchmarks/results/metric_cost.json.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from selgrad import devices

devices.configure()
import jax
import jax.numpy as jnp

from selgrad import trees
from selgrad.base import Batch, GradientContext, InputSpec, TextSpec
from selgrad.gradients import UPDATES
from selgrad.registry import make_spec

FILE = Path(__file__).parent / "results" / "metric_cost.json"
IMAGES, TEXT = InputSpec((32, 32, 3), 10), TextSpec((16,), 2, 30522, special_ids=(0, 101, 102, 103))
MODELS = {
    "lenet": ("lenet", {}, IMAGES),
    "cnn of 11 million": ("cnn", {"width": 72}, IMAGES),
    "bert base": ("bert", {"size": "base"}, TEXT),
}
PLAIN = [("random", {}), ("magnitude", {}), ("product", {}), ("fisher", {}), ("sensitivity", {"target": "labels"})]
PROBED = [("sensitivity", {"target": "inputs", "num_probes": 16}), ("distance", {"reading": "proxy", "num_probes": 16})]
SOLVED = [("distance", {"reading": reading}) for reading in ("solved", "leverage", "posterior")]


def metrics_of(model: str) -> list:
    """Exact where the input is small; beyond, probes, few of them where one takes minutes: the cost is linear in their number."""
    if model == "lenet":
        return [*PLAIN, *PROBED, *SOLVED, ("distance", {"reading": "solved", "num_blocks": 4})]
    probes = 8 if model.startswith("cnn") else 1
    return [*PLAIN, *PROBED, *[(name, {**arguments, "num_probes": probes}) for name, arguments in SOLVED[:2]]]


def timed(function, *arguments) -> tuple[float, int]:
    """Median seconds and bytes at once, arguments and results counted."""
    compiled = jax.jit(function).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    used = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
        if seconds[0] > 20:
            break
    return statistics.median(seconds), used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    chosen = parser.parse_args().models
    hardware = {"device": jax.local_devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    rows = [row for row in json.loads(FILE.read_text())["rows"] if row["model"] not in chosen] if FILE.exists() else []
    for title in chosen:
        name, arguments, spec = MODELS[title]
        model, update = make_spec("model", name, arguments).build(spec), UPDATES["gradient"]()
        params = model.init(jax.random.key(0))
        tokens = jax.random.randint(jax.random.key(1), (1, 16), 1000, 30000)
        inputs = tokens if isinstance(spec, TextSpec) else jax.random.uniform(jax.random.key(1), (1, *spec.shape))
        batch = Batch(inputs, jnp.zeros(1, jnp.int32), jnp.ones((1, 16), bool) if isinstance(spec, TextSpec) else None)
        label = jax.nn.one_hot(model.targets(batch), model.input_spec.num_classes)
        gradient = lambda p, b, model=model, update=update, label=label: update.client(model, p, b, label)
        grads = jax.jit(gradient)(params, batch)
        base, base_bytes = timed(gradient, params, batch)
        print(f"{title}: {trees.size(grads):,} entries, one gradient {base:.4f} s, {base_bytes / 1e6:,.0f} MB", flush=True)
        for metric, options in metrics_of(title):
            spec_of = make_spec("metric", metric, options)
            score = spec_of.build()

            def run(p, b, g, model=model, update=update, score=score):
                return score(GradientContext(model=model, params=p, batch=b, update=update, grads=g, key=jax.random.key(2)))

            seconds, used = timed(run, params, batch, grads)
            rows.append(
                {
                    "model": title, "num_entries": trees.size(grads), "metric": spec_of.label, "seconds": seconds, "gradient_seconds": base,
                    "gradient_evaluations": seconds / base, "memory_in_gradient_evaluations": used / base_bytes, "hardware": hardware,
                }
            )  # fmt: skip
            print(f"  {spec_of.label}: {seconds:.4f} s, {seconds / base:.1f} gradients, {used / base_bytes:.1f} times the memory", flush=True)
            FILE.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
