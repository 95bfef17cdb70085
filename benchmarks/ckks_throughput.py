"""Values per second, bytes and memory of the encryption, beside TenSEAL in the same run.

Command: uv run --with tenseal python benchmarks/ckks_throughput.py   (without TenSEAL only selgrad is measured)
Time: about 10 minutes on 2 quiet cores; medians of 5 repeats in turns with TenSEAL, of 3 for 10 million values.
Setting: values ~ N(0, 0.1) in float32. Encrypting is clipping, rounding, encoding, encrypting and serialising; adding is from bytes to bytes over 10 clients,
  by OpenFHE and by residues; decrypting is from bytes to integers. Rings as `Profile.for_size` chooses them. The floor is OpenFHE's own encoding and encryption, or
  decryption and decoding, of values that are ready, on one thread: what no Python around it can beat on the machine of the run. TenSEAL encrypts and
  serialises lists of its slots, and decrypts from bytes too: poly 8192 with [60, 40, 40, 60] as most federated-learning code does, and 4096 with [60, 49], the smallest that works. Memory is the peak of
  a process that encrypts 100 million values to a file, beyond what it holds before.
Aims: encrypt >= 5 / 9 million a second under the public and >= 8 / 14 under the secret key (1 / 2 threads), decrypt >= 18 / 24; at most 16.3 bytes a
  value, 12 for `compact`; against TenSEAL's usual setting >= 5 and 9 times to encrypt, >= 8 to decrypt, a fifth of the bytes; memory below 1 GB.
Leaves: benchmarks/results/ckks_throughput.json.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from selgrad.encryption import CKKS, PROFILES, Header, ZeroPool
from selgrad.encryption.wire import write_file

FILE = Path(__file__).parent / "results" / "ckks_throughput.json"
CLIENTS = 10
SETTINGS = {
    "exact, public key": PROFILES["exact"],
    "exact, secret key": dataclasses.replace(PROFILES["exact"], key="secret"),
    "compact": PROFILES["compact"],
    "noise_flooding": PROFILES["noise_flooding"],
    "textbook": PROFILES["textbook"],
}
PEERS = {"TenSEAL 8192 [60, 40, 40, 60]": (8192, [60, 40, 40, 60], 40), "TenSEAL 4096 [60, 49]": (4096, [60, 49], 45)}


def seconds(function):
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def ours(profile, threads: int, values: np.ndarray) -> dict:
    """One repeat; rates in million values a second."""
    scheme = CKKS(profile.for_size(values.size), num_threads=threads)
    keys = scheme.keygen()
    encrypt, mine = seconds(lambda: scheme.encrypt(keys, values, ""))
    few = [mine] * CLIENTS if values.size > 10**6 else [scheme.encrypt(keys, values, "") for _ in range(CLIENTS)]
    found = {"ring": scheme.profile.ring, "encrypt": values.size / encrypt / 1e6, "bytes_per_value": sum(map(len, mine.parts)) / values.size}
    add, total = seconds(lambda: scheme.add(few))
    found["add"] = CLIENTS * values.size / add / 1e6
    if scheme.layout is not None:
        found["add_raw"] = CLIENTS * values.size / seconds(lambda: scheme.add(few, raw=True))[0] / 1e6
    # Ten times one ciphertext has ten times its noise: what is decrypted then is one client.
    decrypt, _ = seconds(lambda: scheme.decrypt(keys, mine if values.size > 10**6 else total, ""))
    found["decrypt"] = values.size / decrypt / 1e6
    if threads == 1 and values.size <= 10**6:
        found |= floor(scheme, keys, values)
    if profile.name == "exact" and values.size <= 10**6:
        pool = ZeroPool(scheme, keys)
        pool.fill(values.size)
        found["encrypt_from_stock"] = values.size / seconds(lambda: scheme.encrypt(keys, values, "", pool=pool))[0] / 1e6
    return found


def floor(scheme: CKKS, keys, values: np.ndarray) -> dict:
    """Rates of OpenFHE alone, in million values a second."""
    profile, context = scheme.profile, scheme.context.native
    slots = np.zeros(profile.slots)
    slots[: min(values.size, profile.slots)] = values[: profile.slots]
    slots *= 2.0**-profile.headroom_bits
    ready = slots.view(np.complex128) if profile.packing == "complex" else slots
    key = keys.secret if profile.key == "secret" else keys.public
    count = max(5, 200_000 // profile.slots)
    encrypt, made = seconds(lambda: [context.Encrypt(key, context.MakeCKKSPackedPlaintext(ready)) for _ in range(count)])

    def read(ciphertext):
        plain = context.Decrypt(ciphertext, keys.secret)
        plain.SetLength(profile.ring // 2)
        return plain.GetCKKSPackedValueArray() if profile.packing == "complex" else plain.GetRealPackedValueArray()

    decrypt, _ = seconds(lambda: [read(one) for one in made])
    return {"floor_encrypt": count * profile.slots / encrypt / 1e6, "floor_decrypt": count * profile.slots / decrypt / 1e6}


def peers(setting, values: np.ndarray) -> dict:
    import tenseal

    degree, primes, scale = setting
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=degree, coeff_mod_bit_sizes=primes, n_threads=1)
    context.global_scale = 2**scale
    lists = [values[i : i + degree // 2].tolist() for i in range(0, values.size, degree // 2)]
    encrypt, parts = seconds(lambda: [tenseal.ckks_vector(context, one).serialize() for one in lists])
    decrypt, found = seconds(lambda: [tenseal.ckks_vector_from(context, part).decrypt() for part in parts])
    error = float(np.abs(np.concatenate([np.asarray(f) for f in found]) - values).max())
    size = sum(map(len, parts)) / values.size
    return {"ring": degree, "encrypt": values.size / encrypt / 1e6, "decrypt": values.size / decrypt / 1e6, "bytes_per_value": size, "largest_error": error}


def memory() -> None:
    """Peak memory of encrypting 1e8 values, printed as JSON; runs in a process of its own."""
    values = np.random.default_rng(0).standard_normal(10**8, np.float32)
    scheme = CKKS(PROFILES["exact"].for_size(values.size))
    keys = scheme.keygen()
    scheme.encrypt(keys, values[: 10**6], "")
    # What is held now, and the peak from now on.
    Path("/proc/self/clear_refs").write_text("5")
    held = lambda name: next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    before = held("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        stream = scheme.encrypt_stream(keys, values, "")
        assert isinstance(stream.header, Header)
        took, size = seconds(lambda: write_file(Path(folder) / "upload", stream.header, stream.parts))
    after = held("VmHWM")
    print(json.dumps({"num_values": values.size, "bytes": size, "seconds_with_file": took, "peak_bytes_beyond_input": 1024 * (after - before)}))


def median(repeats: list) -> dict:
    return {key: statistics.median(one[key] for one in repeats) for key in repeats[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().memory:
        return memory()
    try:
        import tenseal

        version = tenseal.__version__
    except ImportError:
        version = None
    rows = []
    for size in (10**5, 10**6, 10**7):
        values = np.random.default_rng(0).normal(scale=0.1, size=size).astype(np.float32)
        for threads in (1, 2):
            repeats: dict = {}
            for _ in range(5 if size < 10**7 else 3):
                for name, profile in SETTINGS.items():
                    if size == 10**7 and name in ("noise_flooding", "textbook"):
                        continue
                    repeats.setdefault(name, []).append(ours(profile, threads, values))
                if version and threads == 1 and size <= 10**6:
                    for name, setting in PEERS.items():
                        repeats.setdefault(name, []).append(peers(setting, values[: 2 * 10**5]))
            for name, found in repeats.items():
                rows.append({"setting": name, "num_values": size, "threads": threads, **median(found)})
                print(rows[-1], flush=True)
    hardware = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "tenseal": version}
    document = {"hardware": hardware, "unit": "million values a second", "rows": rows}
    done = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True)
    document["memory"] = json.loads(done.stdout)
    FILE.write_text(json.dumps(document, indent=1) + "\n")
    print(document["memory"])
    return None


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
