"""Is the decrypted sum the integer sum? A hundred clients with a million values each, and the largest sums that each profile holds.

Command: uv run python benchmarks/ckks_exactness.py
Time: about 3 minutes on 2 cores.
Expected: 0 wrong integers.
Leaves: benchmarks/results/ckks_exactness.json.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.progress import track

from selgrad.encryption import CKKS, PROFILES, decrypt, make_keys, quantise

FILE = Path(__file__).parent / "results" / "ckks_exactness.json"


def wrong(scheme: CKKS, clients, num_clients: int, size: int, what: str) -> int:
    """Integers of the decrypted sum that differ; clients are added as they come, so that two are in memory at a time."""
    keys, total, expected = make_keys(scheme, 10), None, np.zeros(size, np.int64)
    for values in track((clients(i) for i in range(num_clients)), what, total=num_clients):
        mine = scheme.encrypt(keys[-1], values, "")
        total = mine if total is None else scheme.add([total, mine], raw=scheme.layout is not None)
        expected += quantise(values, scheme.profile)
    return int((decrypt(scheme, keys, total, "") != expected).sum())


def main() -> None:
    rows = []

    def row(profile: str, what: str, num_clients: int, size: int, clients) -> None:
        scheme = CKKS(PROFILES[profile].for_size(size))
        found = wrong(scheme, clients, num_clients, size, f"{profile}: {what}")
        rows.append({"profile": profile, "values": what, "num_clients": num_clients, "num_values": size, "ring": scheme.profile.ring, "wrong_integers": found})
        print(rows[-1], flush=True)

    for name in ("exact", "compact"):
        row(
            name,
            "of all sizes, 1e-8 to 1",
            100,
            10**6,
            lambda i: np.random.default_rng(i).choice([-1, 1], 10**6) * 10 ** np.random.default_rng(i).uniform(-8, 0, 10**6),
        )
    for name, profile in PROFILES.items():
        most, size = min(profile.max_clients, 200), 2 * profile.slots
        step = 2.0**-profile.grid_bits
        for what, value in (("all at the bound", 1.0), ("all at minus the bound", -1.0), ("all one grid step", step), ("all zero", 0.0)):
            row(name, what, most, size, lambda _, value=value, size=size: np.full(size, value))
        row(name, "normal, a third clipped", most, size, lambda i, size=size: np.random.default_rng(i).normal(size=size))
    FILE.write_text(json.dumps({"rows": rows, "wrong_integers": sum(r["wrong_integers"] for r in rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
