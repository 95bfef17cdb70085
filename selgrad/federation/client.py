"""How a client, a key holder or a party answers each message of the server: bytes in, bytes out; what it has to remember is kept in its own seat.

Nothing here knows how messages travel. A server may send anything, so a participant trusts only what it was enrolled with and what other participants
authenticate to it. Secret keys never enter an answer.
"""

from __future__ import annotations

import secrets
import time
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad import encryption, trees
from selgrad.encryption import agreement
from selgrad.encryption.agreement import Bits
from selgrad.errors import SelgradError, UsageError
from selgrad.federation.agreements import ASKED, SCORES, Proposer
from selgrad.federation.enrolment import Seat, digest, digest_of_weights
from selgrad.federation.learning import Task, task_of
from selgrad.federation.messages import Message, context_of, mask_digest, reply_mac
from selgrad.federation.sums import Uploads, added, answered_once, mask_of, opened, vouched


class FaultError(Exception):
    """A fault that the configuration asks this client to commit now and that only the transport can carry out: die, be late, or answer twice."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@lru_cache(maxsize=16)
def _client(key: bytes) -> encryption.Client:
    return encryption.Client(key, num_threads=1)


@lru_cache(maxsize=16)
def _party(secret: bytes) -> encryption.Party:
    return encryption.Party.restore(secret, num_threads=1)


def respond(seat: Seat, request: Message, *, faults: bool = True) -> Message:
    """Computes the answer of one participant.

    Args:
      seat: the participant's own.
      request: with `kind`, `round`, `ticket` and `config` (the configuration's fingerprint), and the fields that the kind needs.
      faults: whether to commit the configuration's `faults`.

    Raises:
      FaultError: if the configuration asks for a fault of the transport.
      SelgradError: if the request cannot be answered, or is not one that this participant answers.
    """
    number = seat.enrolment.number
    kind, round_number = request["kind"], request["round"]
    if request["config"] != seat.enrolment.public.fingerprint:
        raise SelgradError(f"participant {number} was enrolled with another configuration than the server runs; nothing is answered")
    if type(round_number) is not int or not 0 <= round_number <= seat.config.rounds:
        raise SelgradError(f"round {round_number!r} is not one of the {seat.config.rounds} rounds of this run; nothing is answered")
    if kind not in _ANSWERS:
        raise UsageError(f"message of kind {kind!r} is unknown; server and client must run the same version")
    due = {fault.kind for fault in seat.config.faults if (fault.client, fault.round) == (number, round_number)} if kind == "train" else set()
    if faults and due & {"die", "late", "twice"}:
        raise FaultError(min(due & {"die", "late", "twice"}))
    task, started = task_of(seat.enrolment.text), time.perf_counter()
    with seat.alone():
        answer = dict(_ANSWERS[kind](task, seat, request))
    if "malformed" in due:
        answer["sealed" if answer.get("sealed") else "plain"] = answer["sealed" if answer.get("sealed") else "plain"][:-7]
    if "nan" in due:
        plain = np.frombuffer(answer["plain"], np.float32).copy()
        plain[:1] = np.nan
        answer["plain"] = plain.tobytes()
        answer["mac"] = reply_mac(_mac(seat), round_number, request.get("mask_hash", ""), answer["plain"], answer["sealed"])
    return {**answer, "ticket": request["ticket"], "partition": number, "seconds": time.perf_counter() - started}


def _mac(seat: Seat) -> bytes:
    key = seat.kept("mac")
    if key is None:
        raise SelgradError(f"participant {seat.enrolment.number} has not been greeted; start the run again")
    return key


def _hello(_: Task, seat: Seat, __: Message) -> Message:
    """Makes a fresh MAC key with which the server authenticates this participant's later messages."""
    mac = secrets.token_bytes(32)
    seat.keep("mac", mac)
    return {"mac": mac}


# Keys of parties


def _make_key(task: Task, seat: Seat, request: Message) -> Message:
    """Makes a party's share of the joint key, authenticated to every other party."""
    if task.profile.decryption != "threshold":
        raise SelgradError("keys are made when a run is set up, and not when a server asks for it")
    enrolment, previous = seat.enrolment, bytes(request["previous"])

    def make() -> Message:
        party = encryption.Party(previous or None, profile=task.profile)
        seat.keep("secret", party.secret_key())
        seat.keep("previous", previous)
        client_key = party.client_key()
        return {"client_key": client_key, "key_tag": party.tag, "tags": enrolment.tags("key", enrolment.number, digest(previous), digest(client_key))}

    return seat.once("make_key", 0, digest(previous), make)


def _confirm(task: Task, seat: Seat, request: Message) -> Message:
    """Accepts the joint key once every party's tag confirms how it was made: each party added its share to what the previous one sent."""
    enrolment, key = seat.enrolment, bytes(request["client_key"])
    parties, before, after, tags = (list(request[name]) for name in ("parties", "before", "after", "tags"))
    if not len(parties) == len(set(parties)) == len(before) == len(after) == len(tags) or len(parties) < seat.config.min_clients:
        raise SelgradError(f"a joint key of {len(set(parties))} parties is not used; min_clients is {seat.config.min_clients}")
    if enrolment.number not in parties or [digest(b""), *after] != [*before, digest(key)]:
        raise SelgradError("the joint key is not made of the parties' shares, one after the other; nothing is encrypted under it")
    own_step = digest(seat.kept("previous") or b""), digest(seat.answered("make_key").get("client_key", b"none"))
    for party, old, new, tag in zip(parties, before, after, tags, strict=True):
        if (old, new) != own_step if party == enrolment.number else not enrolment.knows(party, tag, "key", party, old, new):
            raise SelgradError(f"party {party} does not say that it has a share in this key; nothing is encrypted under it")
    seat.keep("joint", key)
    return {}


def _key(task: Task, seat: Seat) -> bytes:
    """The key that this client encrypts with: from its enrolment, or confirmed by all parties."""
    key = seat.kept("joint") if task.profile.decryption == "threshold" else seat.enrolment.client_key
    if not key:
        raise SelgradError(f"client {seat.enrolment.number} holds no key that it was given or that all parties confirmed; nothing is encrypted")
    return key


# Clients


def _sealed(task: Task, seat: Seat, values: npt.NDArray[Any], round_number: int, bound_to: str, weights: str) -> tuple[bytes, bytes]:
    """Encrypts values and authenticates the ciphertexts to whoever decrypts."""
    enrolment = seat.enrolment
    context = context_of(bound_to, round_number, enrolment.public.run)
    raw = _client(_key(task, seat)).encrypt(values, context, clip=True)
    return raw, enrolment.tags("upload", enrolment.number, context, weights, digest(raw))


def _weights(request: Message) -> str:
    return digest_of_weights(np.frombuffer(bytes(request["weights"]), np.float32))


def _agree(task: Task, seat: Seat, request: Message) -> Message:
    """This client's proposal for the common mask."""
    name, number = task.config.agreement, seat.enrolment.number
    if name not in ASKED:
        raise UsageError(f"agreement {name!r} asks no client; server and client must run the same version")
    weights = _weights(request)

    def make() -> Message:
        scores = task.scores(np.frombuffer(request["weights"], np.float32), number)
        tags = [b""]

        def encrypt(values: npt.NDArray[Any], bound_to: str) -> bytes:
            raw, tags[0] = _sealed(task, seat, values, request["round"], bound_to, weights)
            return raw

        proposer = Proposer(scores, trees.count(task.config.ratio, task.num_total), task.profile.bound, encrypt)
        return {"proposal": ASKED[name].propose(proposer), "tags": tags[0]}

    answer = seat.once("agree", request["round"], weights, make)
    return {**answer, "mac": reply_mac(_mac(seat), request["round"], SCORES, b"", answer["proposal"])}


def _require_mask(task: Task, bits: Bits) -> None:
    """Refuses a mask that hides less than was agreed, no matter what the server says."""
    config = task.config
    least = task.num_total if config.protection == "full" else trees.count(config.ratio, task.num_total)
    if int(bits.sum()) < least:
        raise SelgradError(f"the mask names {int(bits.sum()):,} of {task.num_total:,} entries, and {least:,} at least are encrypted; nothing is sent")
    if config.protection == "selective" and config.agreement == "fixed" and not (bits == agreement.fixed(task.num_total, least, config.seed)).all():
        raise SelgradError("the mask is not the fixed one of this run; nothing is sent")


def _train(task: Task, seat: Seat, request: Message) -> Message:
    """The weighted update, its exposed entries in the clear and the others encrypted; given once per round, for one set of weights and one mask."""
    config, round_number = task.config, request["round"]
    if request["mask"]:
        seat.keep("mask", bytes(request["mask"]))
    bits: Bits = np.zeros(task.num_total, bool)
    if config.encrypts:
        bits = encryption.decode_indices(seat.kept("mask") or b"", task.num_total)
        if mask_digest(bits) != request["mask_hash"]:
            raise SelgradError(f"client {seat.enrolment.number} holds another mask than the server; send it again")
        _require_mask(task, bits)
        seat.pin("mask", request["mask_hash"])
    weights = _weights(request)
    answer = seat.once("train", round_number, digest(weights, request["mask_hash"]), lambda: _trained(task, seat, request, bits, weights))
    return {**answer, "mac": reply_mac(_mac(seat), round_number, request["mask_hash"], answer["plain"], answer["sealed"])}


def _trained(task: Task, seat: Seat, request: Message, bits: Bits, weights: str) -> Message:
    config, round_number, number = task.config, request["round"], seat.enrolment.number
    started = time.perf_counter()
    update = task.update(np.frombuffer(request["weights"], np.float32), number, round_number)
    trained = time.perf_counter()
    if not np.isfinite(update).all():
        raise SelgradError(f"client {number}: the update of round {round_number} is not finite; lower local.learning_rate")
    # Noise that the server could reproduce would protect nothing.
    update, num_bytes = task.protect(update, secrets.token_bytes(16), bits)
    weighted = (np.float32(task.weight(number)) * update).astype(np.float32)
    plain, sealed, tags, clipped = weighted[~bits].tobytes(), b"", b"", 0
    if config.encrypts:
        sealed, tags = _sealed(task, seat, weighted[bits], round_number, request["mask_hash"], weights)
        clipped = int((np.abs(weighted[bits]) > task.profile.bound).sum())
    seconds = {"train_seconds": trained - started, "encrypt_seconds": time.perf_counter() - trained}
    return {"plain": plain, "sealed": sealed, "tags": tags, "plain_bytes": num_bytes, "clipped": clipped, **seconds}


# Whoever decrypts


def _uploads(task: Task, seat: Seat, request: Message, bound_to: str) -> Uploads:
    own = seat.answered("train").get("sealed", b"")
    return vouched(seat.enrolment, request, bound_to, num_clients=task.config.clients.count, min_clients=task.config.min_clients, own=own)


def _decrypt(task: Task, seat: Seat, request: Message) -> Message:
    """The integer sum of one round, decrypted by the key holder: only its grid points may be published."""
    uploads = _uploads(task, seat, request, mask_of(request))

    def make() -> Message:
        points, seconds = opened(seat.enrolment, task.profile, uploads)
        return {"points": points.tobytes(), "add_seconds": seconds}

    return answered_once(seat, "decrypt", request, uploads, make)


def _choose(task: Task, seat: Seat, request: Message) -> Message:
    """The mask from a sum of score maps, computed by the key holder, who alone sees the sum."""
    uploads = _uploads(task, seat, request, SCORES)

    def make() -> Message:
        total, _ = opened(seat.enrolment, task.profile, uploads)
        return {"mask": encryption.encode_indices(agreement.from_sum(total, trees.count(task.config.ratio, task.num_total)))}

    return answered_once(seat, "choose", request, uploads, make)


def _share(task: Task, seat: Seat, request: Message) -> Message:
    """A party's decryption share of a sum that it formed itself."""
    uploads = _uploads(task, seat, request, mask_of(request))
    secret = seat.kept("secret")
    if secret is None:
        raise SelgradError(f"party {seat.enrolment.number} holds no share of a key; start the run again")

    def make() -> Message:
        total, seconds = added(task.profile, uploads.readers)
        return {"share": _party(secret).share(total, uploads.context), "add_seconds": seconds}

    answer = answered_once(seat, "share", request, uploads, make)
    return {**answer, "mac": reply_mac(_mac(seat), request["round"], request["mask_hash"], b"", answer["share"])}


_ANSWERS = {
    "hello": _hello, "make_key": _make_key, "confirm": _confirm, "agree": _agree, "train": _train, "decrypt": _decrypt, "choose": _choose, "share": _share,
}  # fmt: skip
