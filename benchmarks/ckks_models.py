"""What encrypting a share of a large model's update costs a round, by encrypting that many values for real.

Command: uv run python benchmarks/ckks_models.py
Time: about 10 minutes on 2 cores.
Setting: three clients as FedML-HE's tables have; per round one client's encryption (clients work side by side), the server's sum of three (by residues, and by
  OpenFHE for the smallest), and one decryption; profile `exact` in the ring of 16,384, from float32 to float32, ciphertexts in memory. A plain round adds
  three float32 vectors. Values do not matter to the time.
Expected: FedML-HE (jin2023fedmlhe, table of models; other hardware): ResNet-50 46.7 s with everything encrypted and 5.4 s plain, BERT 136.9 and 19.7.
Leaves: benchmarks/results/ckks_models.json.
"""

import gc
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from selgrad.encryption import CKKS, PROFILES

FILE = Path(__file__).parent / "results" / "ckks_models.json"
MODELS = {"ResNet-50": 25_557_032, "ViT-base": 86_567_656, "BERT-base": 109_482_240, "GPT-2": 124_439_808}
RATIOS = (0.0, 0.01, 0.1, 0.3, 1.0)
CLIENTS = 3


def clocked(function):
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def main() -> None:
    generator, rows = np.random.default_rng(0), []
    for name, total in MODELS.items():
        update = generator.standard_normal(total, np.float32) * np.float32(1e-2)
        for ratio in RATIOS:
            selected = round(ratio * total)
            row = {"model": name, "num_parameters": total, "ratio": ratio, "num_encrypted": selected, "plain_bytes": 4 * (total - selected)}
            exposed = update[selected:]
            _, row["plain_seconds"] = clocked(lambda: (exposed + exposed) + exposed)
            if selected:
                scheme = CKKS(PROFILES["exact"].for_size(selected))
                keys = scheme.keygen()
                mine, row["encrypt_seconds"] = clocked(lambda: scheme.encrypt(keys, update[:selected], ""))
                row["sealed_bytes"] = sum(map(len, mine.parts))
                total_ciphertexts, row["add_seconds"] = clocked(lambda: scheme.add([mine] * CLIENTS, raw=True))
                if total < 5e7:
                    row["add_openfhe_seconds"] = clocked(lambda: scheme.add([mine] * CLIENTS))[1]
                del mine
                points, row["decrypt_seconds"] = clocked(lambda: scheme.decrypt(keys, total_ciphertexts, ""))
                wrong = points != CLIENTS * np.rint(np.clip(update[:selected].astype(np.float64), -1, 1) * 2.0**24).astype(np.int64)
                row["wrong_integers"] = int(wrong.sum())
                del total_ciphertexts, points, wrong
                gc.collect()
            row["seconds"] = sum(row.get(f"{phase}_seconds", 0.0) for phase in ("plain", "encrypt", "add", "decrypt"))
            rows.append(row)
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    for row in rows:
        plain = next(r for r in rows if r["model"] == row["model"] and r["ratio"] == 0)
        row["bytes_factor"] = (row["plain_bytes"] + row.get("sealed_bytes", 0)) / plain["plain_bytes"]
    FILE.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
