"""Iterations per second of one compiled block of Inverting Gradients on DLG's LeNet, at 1 to 64 parallel attacks, beside breaching.

Command: uv run python benchmarks/attack_throughput.py [--peer PYTHON]
  PYTHON is the interpreter of the environment that benchmarks/peers/setup.sh builds; without it only selgrad is measured.
Time: about ten minutes on 2 cores.
Setting: 32x32x3, 100 classes (85,036 parameters), batch 1, labels given, cosine + TV, signed Adam, box. Every repeat takes turns: breaching, then
  selgrad at each size; medians over repeats; compilation apart. One XLA device per core, and one device with a thread pool, each in a process of its own.
Expected: at least 5 times breaching's rate at the best block; 10 times is the aim.
Leaves: benchmarks/results/attack_throughput.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = (1, 8, 16, 32, 64)


def measure(sizes, num_steps, repeats):
    """One line of JSON per repeat on standard output; a line on standard input starts each repeat."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from selgrad import devices
    from selgrad.attacks import ATTACKS
    from selgrad.base import InputSpec
    from selgrad.gradients import UPDATES, observe
    from selgrad.models import MODELS

    spec = InputSpec((32, 32, 3), 100, (0.0,) * 3, (1.0,) * 3)
    model, update, attack = MODELS["lenet"](spec), UPDATES["gradient"](), ATTACKS["inverting_gradients"](num_steps=4800)
    params = model.init(jax.random.key(0))
    lanes, everywhere = jax.sharding.PartitionSpec("lanes"), jax.sharding.PartitionSpec()
    blocks = {}
    for size in sizes:
        images = jnp.asarray(np.random.default_rng(0).random((size, 1, 32, 32, 3)), jnp.float32)
        labels = jnp.arange(size, dtype=jnp.int32)[:, None] % 100
        grads = jax.jit(jax.vmap(lambda x, y: update(model, params, x, jax.nn.one_hot(y, 100))))(images, labels)

        def seen(params, grads, label):
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads)
            return observe(model, update, params, grads, nothing, label)

        start = jax.jit(jax.vmap(lambda p, g, y, k: attack.start(k, seen(p, g, y)), (None, 0, 0, 0)))
        state = start(params, grads, labels, jax.random.split(jax.random.key(1), size))
        advance = jax.vmap(lambda p, g, y, s, n: attack.advance(seen(p, g, y), s, n), (None, 0, 0, 0, None))
        advance = devices.shard(advance, devices.mesh(size), (everywhere, lanes, lanes, lanes, everywhere), lanes)
        began = time.perf_counter()
        compiled = jax.jit(advance).lower(params, grads, labels, state, jnp.int32(1)).compile()
        blocks[size] = compiled, (params, grads, labels, state), time.perf_counter() - began
    device = {"device": jax.local_devices()[0].device_kind, "num_devices": jax.local_device_count(), "jax": jax.__version__}
    print(json.dumps({"ready": device, "compile_seconds": {size: b[2] for size, b in blocks.items()}}), flush=True)
    for _ in range(repeats):
        sys.stdin.readline()
        rates = {}
        for size, (compiled, arguments, _) in blocks.items():
            steps = max(10, num_steps // max(1, size // 4))
            began = time.perf_counter()
            jax.block_until_ready(compiled(*arguments, jnp.int32(steps)))
            rates[size] = size * steps / (time.perf_counter() - began)
        print(json.dumps(rates), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter of the peers' environment")
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure(SIZES, arguments.num_steps, arguments.repeats)
        return
    cores = len(os.sched_getaffinity(0))
    modes = {
        "one device per core": f"--xla_force_host_platform_device_count={cores} --xla_cpu_multi_thread_eigen=false",
        "one device": "--xla_force_host_platform_device_count=1",
    }
    workers, ready = {}, {}
    for mode, flags in modes.items():
        command = [sys.executable, __file__, "--worker", "--num-steps", str(arguments.num_steps), "--repeats", str(arguments.repeats)]
        workers[mode] = subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready[mode] = json.loads(workers[mode].stdout.readline())
        print(mode, ready[mode], flush=True)
    rates = {mode: {size: [] for size in SIZES} for mode in modes}
    peer = []
    for _ in range(arguments.repeats):
        if arguments.peer:
            script = Path(__file__).parent / "peers" / "breaching_throughput.py"
            done = subprocess.run([arguments.peer, str(script)], capture_output=True, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            peer += told["iterations_per_second"]
            print("breaching", round(peer[-1], 1), flush=True)
        for mode, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            for size, rate in json.loads(worker.stdout.readline()).items():
                rates[mode][int(size)].append(rate)
            print(mode, {size: round(r[-1]) for size, r in rates[mode].items()}, flush=True)
    for worker in workers.values():
        worker.wait()
    medians = {mode: {size: statistics.median(r) for size, r in by_size.items()} for mode, by_size in rates.items()}
    best = max(rate for by_size in medians.values() for rate in by_size.values())
    result = {
        "hardware": {"processor": platform.processor() or platform.machine(), "cores": cores, "python": platform.python_version()},
        "selgrad": {mode: {"iterations_per_second": medians[mode], "repeats": rates[mode], **ready[mode]} for mode in modes},
        "best_iterations_per_second": best,
    }
    if peer:
        result["breaching"] = {"iterations_per_second": statistics.median(peer), "repeats": peer, "torch": told["torch"], "threads": told["threads"]}
        result["ratio_to_breaching"] = best / statistics.median(peer)
        result["ratio_of_each_turn"] = [max(rates[m][s][i] for m in modes for s in SIZES) / peer[i] for i in range(arguments.repeats)]
    file = Path(__file__).parent / "results" / "attack_throughput.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k.startswith(("best", "ratio"))}))


if __name__ == "__main__":
    main()
