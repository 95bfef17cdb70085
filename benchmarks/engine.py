"""What a step of each attack costs: iterations per second, passes over gradient-sized arrays, compile seconds and memory, by lanes in a block.

Command: uv run python benchmarks/engine.py [--cases NAME,...] [--repeats N]   (some cases replace their rows alone)
Time: about fifteen minutes on 2 cores.
Setting: batch 1, 10 classes or sentences of 16 tokens, a tenth of the entries hidden at random and left out (rung `ignore`), labels given, one XLA device a
  core. A pass is the bytes that XLA counts for one step and lane, divided by four bytes for each entry of the gradient. `written_out` has every dense
  gradient written out (SELGRAD_FACTORS=0); `recomputed` lets XLA's CPU compiler recompute residual streams (`selgrad.models.residual`), and
  `scanned` has the layers of a transformer in one loop over stacked weights. Rows: a
  distance's value and derivative on a kernel of 3072 by 200 and one of 768 by 768, by inputs in the batch, read as outer products and written out. Sums:
  one pass over three arrays of 768 by 3072, folded as `selgrad.trees.total` does and by XLA's own reduction.
Expected: outer products win for one row and lose from two or three on; folded sums take half the time or less.
Leaves: benchmarks/results/engine.json.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
from pathlib import Path

from selgrad import devices

devices.configure()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.distances import cosine, mean_leaf_cosine
from selgrad.attacks.hidden import Target
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.minimisers import first_order
from selgrad.attacks.outer import Outer
from selgrad.attacks.spaces import embeddings
from selgrad.base import Batch, InputSpec, TextSpec, stride
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS, _transformer
from selgrad.models.bert import _Embeddings

IMAGES, TEXT = InputSpec((32, 32, 3), 10), TextSpec((16,), 2, 2000, 0, 101, 102, (0, 101, 102))
LONG, LANES = {"num_steps": 10**6}, (1, 8, 16, 64, 256)


def lamps_cosine():
    """The optimisation of LAMP without its search: the mean cosine over leaves, by Adam."""
    step = gradient_matching(distance=mean_leaf_cosine, minimiser=lambda _: first_order(optax.adam(0.01)), hidden="ignore", space=embeddings())
    return iterate(step, num_steps=10**6, num_restarts=1)


# model, attack, lanes, steps that are timed
CASES = {
    "lenet inverting_gradients": ("lenet", {}, "inverting_gradients", LONG, LANES, 200),
    "lenet dlg": ("lenet", {}, "dlg", LONG, LANES, 5),
    "mlp inverting_gradients": ("mlp", {}, "inverting_gradients", LONG, LANES, 50),
    "cnn inverting_gradients": ("cnn", {}, "inverting_gradients", LONG, LANES, 10),
    "resnet inverting_gradients": ("resnet", {}, "inverting_gradients", LONG, (8,), 10),
    "bert tiny tag": ("bert", {"size": "tiny"}, "tag", LONG, LANES, 30),
    "bert tiny lamp": ("bert", {"size": "tiny"}, lamps_cosine, {}, LANES, 30),
    "bert base tag": ("bert", {"size": "base"}, "tag", LONG, (1, 2, 4), 2),
    "bert base lamp": ("bert", {"size": "base"}, lamps_cosine, {}, (1, 2, 4), 2),
}
VARIANTS = {"bert tiny tag": ("recomputed", "scanned"), "bert base tag": ("recomputed", "scanned")}


def batch(spec, index):
    rng = np.random.default_rng(index)
    if spec is IMAGES:
        return Batch(jnp.asarray(rng.random((1, *spec.shape)), jnp.float32), jnp.asarray([index % 10], jnp.int32))
    length = int(rng.integers(8, 15))
    tokens = np.where(np.arange(16) < length, rng.integers(200, 1900, 16), 0)
    tokens[0], tokens[length - 1] = 101, 102
    return Batch(jnp.asarray(tokens[None], jnp.int32), jnp.asarray([index % 2], jnp.int32), jnp.asarray(np.arange(16) < length)[None])


def program(name, lanes):
    """A function of the number of steps, what its compilation says, and what XLA counts for a step of all lanes of a device."""
    model_name, options, attack_name, arguments, *_ = CASES[name]
    spec = TEXT if model_name == "bert" else IMAGES
    build = ATTACKS[attack_name] if isinstance(attack_name, str) else attack_name
    model, update, attack = MODELS[model_name](spec, **options), UPDATES["gradient"](), build(**arguments)
    params = jax.jit(model.init)(jax.random.key(0))
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[batch(spec, i) for i in range(lanes)])
    one_hot = lambda labels: jax.nn.one_hot(labels, spec.num_classes)
    grads = jax.jit(lambda p, b: jax.lax.map(lambda one: update.client(model, p, one, one_hot(one.labels)), b))(params, batches)
    masks = jax.tree.map(lambda leaf: np.random.default_rng(5).random(leaf.shape, np.float32) < 0.1, grads)
    mesh, everywhere, each = devices.mesh(lanes), jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("lanes")
    put = lambda tree, where: jax.device_put(tree, jax.sharding.NamedSharding(mesh, where))
    data = put(params, everywhere), *(put(part, each) for part in (grads, masks, batches))

    def phase(function, *axes):
        seen = lambda p, g, m, b, *rest: function(observe(model, update, p, g, m, b.labels, b.valid), *rest)
        specs = [each if axis == 0 else everywhere for axis in axes]
        return jax.jit(devices.shard(jax.vmap(seen, (None, 0, 0, 0, *axes)), mesh, (everywhere, each, each, each, *specs), each))

    state = phase(lambda seen, key: attack.start(key, seen), 0)(*data, put(jax.random.split(jax.random.key(1), lanes), each))
    started = time.perf_counter()
    compiled = phase(attack.advance, 0, None).lower(*data, state, jnp.int32(1)).compile()
    seconds, analysis, counted = time.perf_counter() - started, compiled.memory_analysis(), compiled.cost_analysis()
    counted = counted[0] if isinstance(counted, list) else counted
    per_device, entries = lanes / mesh.size, trees.size(model.split(params)[0])
    told = {
        "entries": entries,
        "compile_seconds": seconds,
        "passes": counted["bytes accessed"] / per_device / 4 / entries,
        "megabytes_per_step_and_lane": counted["bytes accessed"] / per_device / 1e6,
        "argument_megabytes_per_lane": analysis.argument_size_in_bytes / per_device / 1e6,
        "temporary_megabytes_per_lane": analysis.temp_size_in_bytes / per_device / 1e6,
    }
    return (lambda steps: jax.block_until_ready(compiled(*data, state, jnp.int32(steps)))), told, counted


def seconds_per_step(run, steps, repeats):
    """Each repeat's, without what a call costs whatever its steps."""
    # An attack's loop takes so many at a time.
    few = stride()
    steps = -(-steps // few) * few
    run(few)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(few)
        middle = time.perf_counter()
        run(few + steps)
        found.append((time.perf_counter() - middle - (middle - started)) / steps)
    return found


def scanned(self, params, embedded, valid=None):
    """The logits of BERT with its layers in one loop, over weights stacked by layer."""
    of, config = (lambda module, name, *x: module.apply({"params": params[name]}, *x)), self.config
    x, _ = of(_Embeddings(config), "embeddings", embedded)
    allowed = _transformer.allowed_positions(embedded, valid, causal=False)
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[f"layer_{i}"] for i in range(config.num_layers)))
    layer = _transformer.Layer(config, 0, pre_norm=False)
    x, _ = jax.lax.scan(lambda x, one: (layer.apply({"params": one}, x, allowed)[0], None), x, layers)
    return of(_transformer.Dense(2, config), "classifier", jnp.tanh(of(_transformer.Dense(config.width, config), "pooler", x[:, 0])))


def seconds(function, *arguments, repeats=5):
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def ceilings(size, entries):
    """Operations and bytes a second of one device, by a product of square float32 matrices at full precision and by a copy."""
    a = jnp.ones((size, size))
    with jax.default_matmul_precision("highest"):
        product = jax.jit(jnp.dot).lower(a, a).compile()
    copied = jnp.ones((entries,))
    return {
        "flops_per_second": 2 * size**3 / seconds(product, a, a),
        "bytes_per_second": 2 * copied.nbytes / seconds(jax.jit(lambda x: x + 1), copied),
    }


@contextlib.contextmanager
def variant(name):
    kept, logits = _transformer.kept, _transformer.Transformer.logits
    os.environ["SELGRAD_FACTORS"] = "0" if name == "written_out" else "1"
    _transformer.kept = (lambda x: x) if name == "recomputed" else kept
    _transformer.Transformer.logits = scanned if name == "scanned" else logits
    try:
        yield
    finally:
        os.environ["SELGRAD_FACTORS"], _transformer.kept, _transformer.Transformer.logits = "1", kept, logits


def attacks(names, repeats):
    rows = []
    for name in names:
        # In the same minutes as what they bound: neighbours on a shared machine come and go.
        ceiling = ceilings(2048, 2**26)
        lanes_tried, steps = CASES[name][4:]
        for lanes in lanes_tried:
            kinds = ["as it is"]
            if lanes == (8 if 8 in lanes_tried else 2):
                kinds += VARIANTS.get(name, ("written_out",))
            programs = {}
            for kind in kinds:
                with variant(kind):
                    programs[kind] = program(name, lanes)
            # Variants take turns.
            times = {kind: [] for kind in kinds}
            for _ in range(repeats):
                for kind in kinds:
                    times[kind] += seconds_per_step(programs[kind][0], max(min(steps, 6), steps // max(1, lanes // 8)), 1)
            for kind in kinds:
                each, (_, told, counted) = statistics.median(times[kind]), programs[kind]
                # One device a core, each with its own lanes.
                least = {one: counted[at] / ceiling[f"{one}_per_second"] for one, at in (("flops", "flops"), ("bytes", "bytes accessed"))}
                share = {"share_of_roofline": max(least.values()) / each, "bound_by": max(least, key=least.get), "ceilings": ceiling}
                rows.append({"case": name, "variant": kind, "lanes": lanes, "iterations_per_second": lanes / each, **share, "seconds": times[kind], **told})
                print(
                    {key: round(value, 2) if isinstance(value, float) else value for key, value in rows[-1].items() if key not in ("seconds", "ceilings")},
                    flush=True,
                )
    return rows


def looped(function, arguments, repeats):
    """Median seconds of a call inside a compiled loop, where buffers are used again."""

    def loop(steps, arguments):
        def body(_, carry):
            found = function(arguments[0] + carry, *arguments[1:])
            return sum(leaf.reshape(-1)[0] for leaf in jax.tree.leaves(found)) * 1e-20

        return jax.lax.fori_loop(0, steps, body, jnp.float32(0))

    compiled = jax.jit(loop)
    return statistics.median(seconds_per_step(lambda steps: jax.block_until_ready(compiled(steps, arguments)), 8, repeats))


def rows_of_factors(repeats):
    found = []
    for d, f in ((3072, 200), (768, 768)):
        for rows in (1, 2, 3, 4, 8):
            x, y, t = (jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate(((rows, d), (rows, f), (d, f))))
            counted = jnp.arange(d * f).reshape(d, f) % 10 != 0

            def outer(x, y, t, c):
                i, j = jnp.triu_indices(len(x))
                inner = jnp.sum((x @ t) * y)
                square = jnp.sum(((x[i] * x[j]) @ c) * y[i] * y[j] * jnp.where(i == j, 1, 2)[:, None])
                return 1 - inner / jnp.sqrt(square)

            one = lambda x, y, t, c: cosine([Outer(x[0], y[0], t.shape)], Target.of([t], [c]))
            written = lambda x, y, t, c: cosine([jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))], Target.of([t], [c]))
            both = lambda function: lambda x, y, t, c: jax.value_and_grad(lambda pair: function(*pair, t, c))((x, y))
            factors = looped(both(one if rows == 1 else outer), (x, y, t, counted.astype(jnp.float32)), repeats)
            found.append(
                {"inputs": d, "outputs": f, "rows": rows, "factors_seconds": factors, "written_seconds": looped(both(written), (x, y, t, counted), repeats)}
            )
            print(found[-1], flush=True)
    return found


def sums(repeats):
    g, t = jax.random.normal(jax.random.key(0), (768, 3072)), jax.random.normal(jax.random.key(1), (768, 3072))
    error = lambda g, t, c: jnp.where(c, g - t, 0) ** 2
    found = {
        "folded_seconds": looped(lambda g, t, c: trees.total(error, g, t, c), (g, t, t > -1), repeats),
        "columns_seconds": looped(lambda g, t, c: error(g, t, c).sum(axis=0).sum(), (g, t, t > -1), repeats),
        "plain_seconds": looped(lambda g, t, c: error(g, t, c).sum(), (g, t, t > -1), repeats),
    }
    print(found, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    file, cases = Path(__file__).parent / "results" / "engine.json", arguments.cases.split(",")
    kept = {} if set(cases) == set(CASES) else json.loads(file.read_text())
    load = os.getloadavg()[0]
    result = kept or {"sums": sums(arguments.repeats), "rows": rows_of_factors(arguments.repeats), "attacks": []}
    result |= {
        "hardware": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__},
        "device": jax.local_devices()[0].device_kind,
        "load_at_start": load,
    }
    rows = [*(row for row in result["attacks"] if row["case"] not in cases), *attacks(cases, arguments.repeats)]
    result["attacks"] = sorted(rows, key=lambda row: list(CASES).index(row["case"]))
    result["load_at_end"] = os.getloadavg()[0]
    file.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
