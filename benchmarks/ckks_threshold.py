"""Threshold decryption from 2 to 100 parties: what do keys, shares and their combination cost, and are the sums exact?

Command: uv run python benchmarks/ckks_threshold.py
Time: about 10 seconds.
Setting: profile `threshold`, 10 clients with 50,000 values each; medians of 5 shares and 3 combinations, one thread. Noise is that of a sum of zeros.
Expected: 0 wrong integers; noise that grows with the root of the number of parties; 1.4 to 2.1 ms and 33.6 kB for each share of a ciphertext.
Leaves: benchmarks/results/ckks_threshold.json.
"""

import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses

import numpy as np
from rich.progress import track

from selgrad.encryption import CKKS, PROFILES, make_keys, quantise

FILE = Path(__file__).parent / "results" / "ckks_threshold.json"
NUM_CLIENTS, NUM_VALUES = 10, 50_000


def timed(function):
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def noise_of(scheme: CKKS, keys) -> float:
    """The spread of a decrypted sum of zeros before it is rounded."""
    total = scheme.add([scheme.encrypt(keys[-1], np.zeros(4000), "") for _ in range(NUM_CLIENTS)], raw=True)
    shares = [scheme.share(party, total, "", lead=i == 0).collect() for i, party in enumerate(keys)]
    context = scheme.context
    seen, original = [], context.points
    context.points = lambda plain, count: (seen.append(np.asarray(plain.GetCKKSPackedValue()).view(np.float64)), original(plain, count))[1]
    scheme.combine(shares, "")
    del context.points
    return float(np.concatenate([s[:4000] for s in seen]).std())


def main() -> None:
    profile = PROFILES["threshold"]
    scheme = CKKS(profile, num_threads=1)
    clients = [np.random.default_rng(i).uniform(-1, 1, NUM_VALUES) for i in range(NUM_CLIENTS)]
    expected = np.sum([quantise(values, profile) for values in clients], axis=0)
    rows = []
    for parties in track((2, 3, 10, 30, 100), "parties"):
        keys, key_seconds = timed(lambda parties=parties: make_keys(scheme, parties))
        total = scheme.add([scheme.encrypt(keys[-1], values, "") for values in clients], raw=True)
        shared = [timed(lambda i=i, party=party: scheme.share(party, total, "", lead=i == 0).collect()) for i, party in enumerate(keys)]
        combined = [timed(lambda: scheme.combine([share for share, _ in shared], "")) for _ in range(3)]
        stated = dataclasses.replace(profile, num_parties=parties)
        rows.append(
            {
                "num_parties": parties, "num_ciphertexts": len(total.parts), "wrong_integers": int((combined[0][0] != expected).sum()),
                "key_seconds": key_seconds, "share_seconds": float(np.median([s for _, s in shared[:5]])), "combine_seconds": float(np.median([s for _, s in combined])),
                "share_bytes": shared[0][0].num_bytes, "noise": noise_of(scheme, keys), "stated_noise": stated.noise_deviation(NUM_CLIENTS),
                "margin": stated.margin(NUM_CLIENTS),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    FILE.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "num_values": NUM_VALUES, "num_clients": NUM_CLIENTS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
