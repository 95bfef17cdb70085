"""Gradient-matching iterations per second on BERT tiny and base, and seconds per sentence of a whole LAMP run, beside a PyTorch loop.

Command: uv run python benchmarks/text_throughput.py [--peer PYTHON] [--parts tiny base lamp_run]
  PYTHON is the interpreter of the environment that benchmarks/peers/setup.sh builds; without it only selgrad is measured.
Time: about 15 minutes on 2 quiet cores.
Setting: weights from scratch, 16 tokens, vocabulary of 30,522, batch 1, word embeddings frozen, labels given, nothing encrypted. `tag` matches by L2 + L1,
  `lamp` by the mean cosine over leaves. Every repeat takes turns: PyTorch, then selgrad at each number of parallel attacks; medians; compilation apart.
  A LAMP run as published: 500 starts, 500 orders, 2,000 steps, 200 moves every 75 steps from a tenth on, moves judged by a GPT-2 (2 layers of 128)
  too. selgrad runs it whole for 16 sentences at once; PyTorch's is composed of the measured seconds of a step, a start and a move.
Aims: 3 times PyTorch's rate for tiny at the best block, 1.5 times for base; 10 times for a whole LAMP run.
Leaves: benchmarks/results/text_throughput.json.
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

LANES = {"tiny": (1, 4, 16, 32, 64), "base": (1, 2, 4)}
STEPS = {"tiny": 100, "base": 4}
LENGTH, VOCABULARY = 16, 30522


def worker():
    """Answers `SIZE KIND` on standard input with one JSON line: rates by number of attacks, or the seconds of a LAMP run."""
    from selgrad import devices

    devices.configure()
    import jax
    import jax.numpy as jnp
    import optax

    from selgrad.attacks import ATTACKS
    from selgrad.attacks.distances import mean_leaf_cosine
    from selgrad.attacks.kernel import gradient_matching, iterate
    from selgrad.attacks.minimisers import first_order
    from selgrad.attacks.spaces import embeddings
    from selgrad.base import TextSpec
    from selgrad.gradients import UPDATES, observe
    from selgrad.models import MODELS

    spec = TextSpec((LENGTH,), 2, VOCABULARY, start_id=101, end_id=102, special_ids=(0, 100, 101, 102, 103))
    update = UPDATES["gradient"]()
    judge = MODELS["gpt2"](spec, size="tiny", task="causal_lm")
    judge_params = jax.jit(judge.init)(jax.random.key(9))
    cosine = gradient_matching(distance=mean_leaf_cosine, minimiser=lambda _: first_order(optax.adam(0.01)), hidden="ignore", space=embeddings())
    attacks = {
        "tag": ATTACKS["tag"](start="vocabulary"),
        "lamp": iterate(cosine, num_steps=2000, num_restarts=1),
        "run": ATTACKS["lamp"](language_model=judge),
    }
    lanes, everywhere = jax.sharding.PartitionSpec("lanes"), jax.sharding.PartitionSpec()
    blocks = {}

    def block(size, kind, number):
        model, attack = MODELS["bert"](spec, size=size), attacks[kind]
        params = jax.jit(model.init)(jax.random.key(0))
        tokens = jax.random.randint(jax.random.key(1), (number, 1, LENGTH), 1000, VOCABULARY)
        labels = jnp.zeros((number, 1), jnp.int32)
        one = lambda item: update(model, params, model.embed(params, item[0]), jax.nn.one_hot(item[1], 2))
        grads = jax.jit(lambda items: jax.lax.map(one, items))((tokens, labels))

        def seen(params, grads, label):
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads)
            whole = jnp.ones((1, LENGTH), bool)
            return observe(model, update, params[0], grads, nothing, label, whole, params[1])

        began = time.perf_counter()
        mesh, every = devices.mesh(number), (params, judge_params)
        start = jax.vmap(lambda p, g, y, k: attack.start(k, seen(p, g, y)), (None, 0, 0, 0))
        advance = jax.vmap(lambda p, g, y, s, n: attack.advance(seen(p, g, y), s, n), (None, 0, 0, 0, None))
        start = jax.jit(devices.shard(start, mesh, (everywhere, lanes, lanes, lanes), lanes))
        advance = jax.jit(devices.shard(advance, mesh, (everywhere, lanes, lanes, lanes, everywhere), lanes))
        given = (every, grads, labels, jax.random.split(jax.random.key(2), number))
        start = start.lower(*given).compile()
        state = jax.block_until_ready(start(*given))
        advance = advance.lower(*given[:3], state, jnp.int32(1)).compile()
        return start, advance, given, state, attack.num_steps, time.perf_counter() - began

    print(json.dumps({"device": jax.local_devices()[0].device_kind, "num_devices": jax.local_device_count(), "jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        size, kind = line.split()
        found, compile_seconds = {}, {}
        for number in LANES[size] if kind != "run" else (16,):
            if (size, kind, number) not in blocks:
                blocks[size, kind, number] = block(size, kind, number)
            start, advance, given, state, num_steps, compile_seconds[number] = blocks[size, kind, number]
            steps = num_steps if kind == "run" else max(2, STEPS[size] * 4 // (number + 3))
            began = time.perf_counter()
            if kind == "run":
                state = start(*given)
            jax.block_until_ready(advance(*given[:3], state, jnp.int32(steps)))
            seconds = time.perf_counter() - began
            found[number] = seconds / number if kind == "run" else number * steps / seconds
        print(json.dumps({"found": found, "compile_seconds": compile_seconds}), flush=True)


class Talker:
    """A process that answers each line with a line."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline())

    def ask(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def lamp_run(ours, peer):
    told = ours.ask("tiny run")
    run = {"selgrad_seconds_per_sentence": told["found"]["16"], "compile_seconds": told["compile_seconds"]["16"]}
    if peer:
        each = {kind: statistics.median(peer.ask(f"tiny {kind} 200")["seconds"] / 200 for _ in range(3)) for kind in ("lamp", "starts", "moves")}
        # Searches at step 1 mod 75 from step 200 on: 24 of them.
        seconds = 2000 * each["lamp"] + 1000 * each["starts"] + 24 * 200 * each["moves"]
        run |= {"pytorch_seconds": each, "pytorch_seconds_per_sentence": seconds, "ratio": seconds / run["selgrad_seconds_per_sentence"]}
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter of the peers' environment")
    parser.add_argument("--repeats", type=int, default=5)
    parts = [*LANES, "lamp_run"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="others keep the numbers that the result file has")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return
    ours = Talker([sys.executable, __file__, "--worker"])
    peer = Talker([arguments.peer, str(Path(__file__).parent / "peers" / "torch_text_throughput.py")]) if arguments.peer else None
    hardware = {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    result = {"hardware": hardware, "selgrad": ours.about, "pytorch": peer.about if peer else None, "iterations_per_second": []}
    file = Path(__file__).parent / "results" / "text_throughput.json"
    if set(arguments.parts) != set(parts) and file.exists():
        old = json.loads(file.read_text())
        result = {**old, **result, "iterations_per_second": [row for row in old["iterations_per_second"] if row["model"] not in arguments.parts]}
    for size in [part for part in arguments.parts if part in LANES]:
        for kind in ("tag", "lamp"):
            ours.ask(f"{size} {kind}")  # compiles
            rates, theirs = {number: [] for number in LANES[size]}, []
            for _ in range(arguments.repeats):
                if peer:
                    theirs.append(STEPS[size] / peer.ask(f"{size} {kind} {STEPS[size]}")["seconds"])
                answer = ours.ask(f"{size} {kind}")
                for number, rate in answer["found"].items():
                    rates[int(number)].append(rate)
            row = {"model": size, "attack": kind, "selgrad": {n: statistics.median(r) for n, r in rates.items()}, "repeats": rates}
            row["compile_seconds"] = answer["compile_seconds"]
            if peer:
                row |= {"pytorch": statistics.median(theirs), "pytorch_repeats": theirs}
                row["ratio"] = max(row["selgrad"].values()) / row["pytorch"]
                row["ratio_alone"] = row["selgrad"][1] / row["pytorch"]
                row["ratio_of_each_turn"] = [max(r[i] for r in rates.values()) / theirs[i] for i in range(arguments.repeats)]
            print({k: v for k, v in row.items() if "repeats" not in k}, flush=True)
            result["iterations_per_second"].append(row)
    if "lamp_run" in arguments.parts:
        result["lamp_run"] = lamp_run(ours, peer)
        print(result["lamp_run"], flush=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
