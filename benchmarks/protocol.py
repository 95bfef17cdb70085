"""What it costs that a federated run holds against a server that deviates: bytes and seconds of a round, at few clients and at many.

Command: uv run python benchmarks/protocol.py
Time: about two minutes on 2 cores.
Setting: participants in one process, an MLP of 1.8 million entries on digits, 10 % encrypted, masks by vote; profiles exact and threshold, 5 and 24 clients, one round.
  Seconds are of the participant that decrypts: reading and checking all uploads with their clients' words, adding, and decrypting; of threshold of one party.
Expected: words on uploads are 32 bytes each; who decrypts is sent as many uploads as there are clients, where an unchecked sum would be one.
Leaves: benchmarks/results/protocol.json.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from selgrad import devices

devices.configure()

import numpy as np

from selgrad import encryption
from selgrad.federation.client import respond
from selgrad.federation.config import parse
from selgrad.federation.enrolment import Seat, digest, enrol
from selgrad.federation.learning import task_of
from selgrad.federation.messages import mask_digest

FILE = Path(__file__).parent / "results" / "protocol.json"
REPEATS = 3


def measured(num_clients: int, profile: str) -> dict[str, Any]:
    """One round of so many clients."""
    config = parse(
        {
            "dataset": {"name": "digits", "count": 1200}, "model": {"name": "mlp", "width": 1300}, "clients": {"count": num_clients, "alpha": 0.0}, "rounds": REPEATS,
            "local": {"num_steps": 1, "batch_size": 8, "learning_rate": 0.1}, "ratio": 0.1, "encryption": {"profile": profile},
        }
    )  # fmt: skip
    started = time.perf_counter()
    seats = {one.number: Seat(one) for one in enrol(config)}
    enrolled = time.perf_counter() - started
    ask = lambda party, kind, number, **more: respond(seats[party], {"kind": kind, "round": number, "ticket": 1, "config": config.fingerprint, **more})
    for party in seats:
        ask(party, "hello", 0)
    task, clients = task_of(config.text), range(num_clients)
    others = lambda client: [num_clients] if profile != "threshold" else [party for party in clients if party != client]
    word = lambda reply, client, to: reply["tags"][32 * others(client).index(to) :][:32] if to in others(client) else b""
    key_bytes = 0
    if profile == "threshold":
        key, before, after, replies = b"", [], [], {}
        for party in clients:
            before.append(digest(key))
            replies[party] = ask(party, "make_key", 0, previous=key)
            key = replies[party]["client_key"]
            after.append(digest(key))
            key_bytes += len(key) + len(replies[party]["tags"])
        for to in clients:
            tags = [word(replies[party], party, to) for party in clients]
            ask(to, "confirm", 0, client_key=key, parties=list(clients), before=before, after=after, tags=tags)
    bits = np.random.default_rng(0).permutation(task.num_total) < round(0.1 * task.num_total)
    seconds: list[float] = []
    for number in range(1, REPEATS + 1):
        weights = task.initial + np.float32(0.001 * number)
        common = {"weights": weights.tobytes(), "mask_hash": mask_digest(bits), "mask": encryption.encode_indices(bits)}
        replies = {client: ask(client, "train", number, **common) for client in clients}
        to = num_clients if profile != "threshold" else 0
        asked = {
            "clients": list(clients), "uploads": [replies[client]["sealed"] for client in clients], "tags": [word(replies[client], client, to) for client in clients],
            "weights": digest(weights.tobytes()), "mask_hash": mask_digest(bits),
        }  # fmt: skip
        started = time.perf_counter()
        answer = ask(to, "decrypt" if profile != "threshold" else "share", number, **asked)
        seconds.append(time.perf_counter() - started)
    upload = len(replies[0]["sealed"])
    return {
        "clients": num_clients, "profile": profile, "num_total": task.num_total, "num_encrypted": int(bits.sum()), "enrol_seconds": enrolled, "upload_bytes": upload,
        "word_bytes": len(replies[0]["tags"]), "to_each_who_decrypts_bytes": num_clients * (upload + 32), "those_who_decrypt": 1 if profile != "threshold" else num_clients,
        "key_bytes": key_bytes, "decrypt_seconds": float(np.median(seconds)), "of_which_add_seconds": float(answer["add_seconds"]),
    }  # fmt: skip


def main() -> None:
    rows = []
    for profile in ("exact", "threshold"):
        for num_clients in (5, 24):
            rows.append(measured(num_clients, profile))
            print(json.dumps(rows[-1]), flush=True)
    FILE.write_text(json.dumps({"hardware": {"cores": os.cpu_count(), "machine": platform.machine()}, "repeats": REPEATS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
