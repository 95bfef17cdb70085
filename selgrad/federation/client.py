"""What a client, a key holder or a party answers to each message of the server; bytes in, bytes out, and a small state of its own.

Nothing here knows how messages travel. Secret keys live in the state and never enter an answer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import MutableMapping
from functools import lru_cache

import numpy as np

from selgrad import encryption, trees
from selgrad.encryption import agreement
from selgrad.errors import SelgradError, UsageError
from selgrad.federation.agreements import ASKED, SCORES, Proposer
from selgrad.federation.learning import Task, task_of
from selgrad.federation.messages import Message, context_of, mask_digest, plain_mac

State = MutableMapping[str, bytes]


class FaultError(Exception):
    """What the configuration asks this client to do wrong now, and only whoever carries messages can: die, be late, answer twice."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@lru_cache(maxsize=16)
def _client(key: bytes, mac_key: bytes) -> encryption.Client:
    return encryption.Client(key, mac_key=mac_key, num_threads=1)


@lru_cache(maxsize=16)
def _party(secret: bytes) -> encryption.Party:
    return encryption.Party.restore(secret, num_threads=1)


@lru_cache(maxsize=4)
def _holder(secret: bytes, client: bytes) -> encryption.KeyHolder:
    return encryption.KeyHolder.restore(secret, client)


def respond(state: State, partition: int, request: Message, *, faults: bool = True) -> Message:
    """The answer of one participant.

    Args:
      state: its own, kept between messages.
      partition: its number; clients come first, the key holder has the number after the last one.
      request: with `kind`, `round`, `ticket` and `config` (the text of the configuration), and what the kind needs.
      faults: whether to do what the configuration's `faults` ask for.

    Raises:
      FaultError: where the configuration asks for one that has to do with how messages travel.
      SelgradError: if the request cannot be answered.
    """
    task = task_of(request["config"])
    kind, round_number = request["kind"], request["round"]
    due = {fault.kind for fault in task.config.faults if (fault.client, fault.round) == (partition, round_number)} if kind == "train" else set()
    if faults and due & {"die", "late", "twice"}:
        raise FaultError(min(due & {"die", "late", "twice"}))
    if kind not in _ANSWERS:
        raise UsageError(f"message of kind {kind!r} is unknown; server and client must run the same version")
    started = time.perf_counter()
    answer = _ANSWERS[kind](task, state, partition, request)
    if "malformed" in due:
        answer["sealed" if answer.get("sealed") else "plain"] = answer["sealed" if answer.get("sealed") else "plain"][:-7]
    if "nan" in due:
        plain = np.frombuffer(answer["plain"], np.float32).copy()
        plain[:1] = np.nan
        answer["plain"] = plain.tobytes()
        answer["plain_mac"] = plain_mac(state["mac"], round_number, answer["plain"])
    return {**answer, "ticket": request["ticket"], "partition": partition, "seconds": time.perf_counter() - started}


def _hello(_: Task, state: State, __: int, ___: Message) -> Message:
    """A fresh key by which the server knows its later messages."""
    state["mac"] = secrets.token_bytes(32)
    return {"mac": state["mac"]}


def _make_key(task: Task, state: State, _: int, request: Message) -> Message:
    """The key holder's fresh keys, or a party's share of joint ones; the answer holds what clients need to encrypt, and no secret."""
    profile = task.profile
    if profile.decryption == "threshold":
        party = encryption.Party(request["previous"] or None, profile=profile)
        state["secret"] = party.secret_key()
        return {"client_key": party.client_key(), "key_tag": party.tag}
    holder = encryption.KeyHolder(profile)
    state["secret"], state["holder"] = holder.secret_key(), holder.client_key()
    if profile.key == "secret":
        # It must not pass through the server: clients read it from a folder of their own.
        holder.save(task.config.keys_folder)
        return {"client_key": b"", "key_tag": holder.tag}
    return {"client_key": state["holder"], "key_tag": holder.tag}


def _key_of(task: Task, request: Message) -> bytes:
    if task.profile.key == "public":
        return bytes(request["client_key"])
    return encryption.roles.read_private(task.config.keys_folder / "client.key")


def _agree(task: Task, state: State, partition: int, request: Message) -> Message:
    """What this client puts in for the common mask."""
    name = task.config.agreement
    if name not in ASKED:
        raise UsageError(f"agreement {name!r} asks no client; server and client must run the same version")
    scores = task.scores(np.frombuffer(request["weights"], np.float32), partition)
    encrypt = lambda values, bound_to: _client(_key_of(task, request), state["mac"]).encrypt(values, bound_to, clip=True)
    asked = Proposer(scores, trees.count(task.config.ratio, task.num_total), task.profile.bound, encrypt)
    return {"proposal": ASKED[name].propose(asked)}


def _train(task: Task, state: State, partition: int, request: Message) -> Message:
    """The weighted update: its exposed entries in the clear, the others encrypted."""
    config, round_number = task.config, request["round"]
    started = time.perf_counter()
    update = task.update(np.frombuffer(request["weights"], np.float32), partition, round_number)
    trained = time.perf_counter()
    if not np.isfinite(update).all():
        raise SelgradError(f"client {partition}: the update of round {round_number} is not finite; lower local.learning_rate")
    # Noise that the server could draw again would protect nothing.
    update, num_bytes = task.protect(update, secrets.token_bytes(16))
    weighted = (np.float32(task.weight(partition)) * update).astype(np.float32)
    if not config.encrypts:
        plain = weighted.tobytes()
        numbers = {"plain_bytes": num_bytes, "clipped": 0, "train_seconds": trained - started, "encrypt_seconds": time.perf_counter() - trained}
        return {"plain": plain, "plain_mac": plain_mac(state["mac"], round_number, plain), "sealed": b"", **numbers}
    if request["mask"]:
        state["mask"] = request["mask"]
    bits = encryption.decode_indices(state["mask"], task.num_total)
    if mask_digest(bits) != request["mask_hash"]:
        raise SelgradError(f"client {partition} holds another mask than the server; send it again")
    sealed = _client(_key_of(task, request), state["mac"]).encrypt(weighted[bits], context_of(request["mask_hash"], round_number), clip=True)
    plain = weighted[~bits].tobytes()
    seconds = {"train_seconds": trained - started, "encrypt_seconds": time.perf_counter() - trained}
    clipped = int((np.abs(weighted[bits]) > task.profile.bound).sum())
    signed = plain_mac(state["mac"], round_number, plain)
    return {"plain": plain, "plain_mac": signed, "sealed": sealed, "plain_bytes": len(plain), "clipped": clipped, **seconds}


def _require_a_sum(task: Task, raw: bytes) -> None:
    """Refuses to decrypt one client's entries alone, or a sum over fewer clients than agreed.

    A server that fills up a sum with ciphertexts of its own is an active attacker, which nothing here stops.
    """
    found, needed = encryption.Reader(raw).header.num_clients, task.config.min_clients
    if found < needed:
        raise SelgradError(f"a sum over {found} clients is not decrypted; min_clients is {needed}")


def _decrypt(task: Task, state: State, _: int, request: Message) -> Message:
    """The integer sum, by the key holder: grid points, which are all that may be published."""
    _require_a_sum(task, request["sum"])
    points = _holder(state["secret"], state["holder"]).decrypt(request["sum"], request["mask_hash"])
    return {"points": points.tobytes()}


def _choose(task: Task, state: State, _: int, request: Message) -> Message:
    """The mask of a sum of score maps, by the key holder, who alone sees the sum."""
    _require_a_sum(task, request["sum"])
    total = _holder(state["secret"], state["holder"]).decrypt(request["sum"], SCORES)
    return {"mask": encryption.encode_indices(agreement.from_sum(total, trees.count(task.config.ratio, task.num_total)))}


def _share(task: Task, state: State, _: int, request: Message) -> Message:
    """A party's share of the decryption of a sum."""
    _require_a_sum(task, request["sum"])
    return {"share": _party(state["secret"]).share(request["sum"], request["mask_hash"], share_key=state["mac"])}


_ANSWERS = {"hello": _hello, "make_key": _make_key, "agree": _agree, "train": _train, "decrypt": _decrypt, "choose": _choose, "share": _share}
