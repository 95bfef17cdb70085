"""DAGER on GPT-2 and BERT of base size: ROUGE-1 and ROUGE-2 of the recovered text and seconds per batch.

Command: uv run python benchmarks/dager.py --data DIR   (DIR holds cola/, sst2/ and tokenizers/ as shared with the tests; about 75 minutes on one core)
Models: random weights (the standard initialisation), 12 layers of 768, no entry encrypted, labels not given, padding known;
  dager with num_attempts=8.
Expected: the paper reports ROUGE-1 and ROUGE-2 above 99 % for GPT-2 at every batch size here, and for BERT up to batch 2 (petrov2024dager).
Leaves: benchmarks/results/dager.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from selgrad import devices

devices.configure()

import jax

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.data import DATASETS
from selgrad.evaluation.text import align_texts, rouge
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS

ATTEMPTS = 8
BATCHES = {("gpt2", 1): 4, ("gpt2", 2): 3, ("gpt2", 4): 2, ("gpt2", 8): 1, ("bert", 1): 4, ("bert", 2): 2, ("bert", 4): 1, ("bert", 8): 1}


def measure(data: Path, dataset: str, model: str, batch_size: int, num_batches: int) -> dict:
    tokenizer = data / "tokenizers" / {"gpt2": "gpt2", "bert": "bert-base-uncased"}[model]
    loaded = DATASETS[dataset](path=str(data / dataset), tokenizer=str(tokenizer), count=batch_size * num_batches)
    network, update, attack = MODELS[model](loaded.spec, size="base"), UPDATES["gradient"](batch_size=batch_size), ATTACKS["dager"](num_attempts=ATTEMPTS)
    params = jax.jit(network.init)(jax.random.key(0))
    client = jax.jit(lambda p, batch: update.client(network, p, batch, jax.nn.one_hot(batch.labels, loaded.spec.num_classes)))
    seconds, found = [], []
    for i in range(num_batches):
        batch = loaded.batch(i, batch_size)
        grads = jax.block_until_ready(client(params, batch))
        nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.False_, leaf.shape), grads)
        observation = observe(network, update, params, grads, nothing, valid=batch.valid)
        started = time.perf_counter()
        result = attack.reconstruct(jax.random.key(i), observation)
        seconds.append(time.perf_counter() - started)
        truths, texts = ([loaded.decode(tokens) for tokens in np.asarray(side)] for side in (batch.inputs, result.inputs))
        order = align_texts(truths, texts)
        scores = [{**rouge(t, texts[j]), "exact_match": t == texts[j]} for t, j in zip(truths, order, strict=True)]
        found.append({name: np.mean([one[name] for one in scores]) for name in ("rouge1", "rouge2", "exact_match")})
        found[-1]["label_correct"] = np.mean(np.sort(np.asarray(result.labels)) == np.sort(np.asarray(batch.labels)))
        tokens = np.asarray(batch.valid).sum()
        print(f"{model} {dataset} batch {batch_size}: {tokens} tokens, {seconds[-1]:.1f} s, {found[-1]}", flush=True)
    row = {"dataset": dataset, "model": model, "batch_size": batch_size, "num_batches": num_batches, "num_attempts": ATTEMPTS}
    row |= {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    # The first batch compiles the model's first two layers.
    row |= {"seconds_first": seconds[0], "seconds_median": float(np.median(seconds[1:] or seconds)), "num_entries": trees.size(grads)}
    return {**row, "cores": len(os.sched_getaffinity(0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SELGRAD_DATA", "data")))
    parser.add_argument("--models", nargs="+", default=["gpt2", "bert"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    file = Path(__file__).parent / "results" / "dager.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    for model in arguments.models:
        for batch_size in arguments.batches:
            for dataset in ("cola", "sst2"):
                row = measure(arguments.data, dataset, model, batch_size, BATCHES[model, batch_size])
                rows = [r for r in rows if (r["dataset"], r["model"], r["batch_size"]) != (dataset, model, batch_size)] + [row]
                print(json.dumps(row), flush=True)
                hardware = {"device": jax.local_devices()[0].device_kind, "jax": jax.__version__}
                file.write_text(json.dumps({"hardware": hardware, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
