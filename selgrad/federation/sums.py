"""The sum of a round as a decrypting participant forms it: over uploads that clients authenticate to that participant, and once for each set of weights.

The key holder and the parties of selgrad's own runs follow these rules, as does the key holder for a user's own app. The server only relays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selgrad import encryption
from selgrad.encryption.profiles import Profile
from selgrad.encryption.wire import require_different
from selgrad.errors import EncryptionError, SelgradError
from selgrad.federation.enrolment import Enrolment, Seat, digest
from selgrad.federation.messages import Message, context_of

_HASH = re.compile(r"[0-9a-f]{64}")


class Uploads(NamedTuple):
    """The uploads of one round, each authenticated by its client.

    Attributes:
      clients: their numbers.
      readers: their ciphertexts.
      context: that all uploads are bound to: mask, round and run.
      digest: of all uploads and of the weights that they were trained on.
    """

    clients: list[int]
    readers: list[encryption.Reader]
    context: str
    digest: str


@lru_cache(maxsize=4)
def _holder(secret: bytes, client: bytes) -> encryption.KeyHolder:
    return encryption.KeyHolder.restore(secret, client)


@lru_cache(maxsize=4)
def _scheme(profile: Profile) -> encryption.CKKS:
    return encryption.CKKS(profile)


def vouched(enrolment: Enrolment, request: Message, bound_to: str, *, num_clients: int, min_clients: int, own: bytes = b"") -> Uploads:
    """The uploads of a request, if each client authenticated its own to this participant.

    Args:
      enrolment: of the participant.
      request: with `round`, `clients`, `uploads`, `tags` (one from each client) and `weights` (a digest of the weights that were trained on).
      bound_to: the mask's hash, or the context used in its place.
      num_clients: of the run.
      min_clients: the smallest number of clients whose sum this participant decrypts.
      own: its own upload, which needs no tag.

    Raises:
      SelgradError: if an upload is not authentic, appears twice or has another context, or there are fewer than `min_clients`.
    """
    clients, raws, tags = list(request["clients"]), list(request["uploads"]), list(request["tags"])
    if not len(clients) == len(set(clients)) == len(raws) == len(tags) or not set(clients) <= set(range(num_clients)):
        raise SelgradError("the uploads are not one of each client; nothing is decrypted")
    if len(clients) < min_clients:
        raise SelgradError(f"a sum over {len(clients)} clients is not decrypted; min_clients is {min_clients}")
    # As text in one canonical form, so that equal weights are recognised when they come again.
    require_hash("weights", request["weights"])
    context = context_of(bound_to, request["round"], enrolment.public.run)
    readers: list[encryption.Reader] = []
    for client, raw, tag in zip(clients, raws, tags, strict=True):
        mine = client == enrolment.number and raw == own
        if not mine and not enrolment.knows(client, tag, "upload", client, context, request["weights"], digest(raw)):
            raise SelgradError(f"client {client} does not vouch for its upload in round {request['round']}; nothing is decrypted")
        reader = encryption.Reader(raw)
        header = reader.header
        if (header.mask_hash, header.num_clients, header.num_values) != (context, 1, readers[0].header.num_values if readers else header.num_values):
            raise SelgradError(f"the upload of client {client} is of another mask, round, request or number of clients; nothing is decrypted")
        readers.append(reader)
    require_different(readers)
    digests = (digest(client, raw) for client, raw in zip(clients, raws, strict=True))
    return Uploads(clients, readers, context, digest(request["weights"], *digests))


def mask_of(request: Message) -> str:
    """The mask hash that a request names; updates are bound to one, and score maps to another context.

    Raises:
      SelgradError: if it is not a hash.
    """
    return require_hash("mask_hash", request["mask_hash"])


def require_hash(name: str, value: Any) -> str:
    """Returns a SHA-256 in hexadecimal; raises SelgradError if a value is anything else."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise SelgradError(f"{name} is not a SHA-256 in hexadecimal; nothing is decrypted")
    return value


def added(profile: Profile, readers: Sequence[encryption.Reader]) -> tuple[bytes, float]:
    """The sum of the ciphertexts, and the seconds that adding took."""
    started, scheme = time.perf_counter(), _scheme(profile)
    total = scheme.add(readers, raw=scheme.layout is not None).to_bytes()
    return total, time.perf_counter() - started


def opened(enrolment: Enrolment, profile: Profile, uploads: Uploads) -> tuple[npt.NDArray[np.int64], float]:
    """The sum in grid units (n,), decrypted by the key holder, and the seconds that adding took.

    Raises:
      SelgradError: if the sum is off the grid or beyond the bound; it names the client whose upload is.
    """
    holder = _holder(enrolment.secret, enrolment.client_key)
    seconds = [0.0]

    def points(subset: Sequence[encryption.Reader]) -> npt.NDArray[np.int64]:
        total, took = added(profile, subset)
        seconds[0] += took
        return holder.decrypt(total, uploads.context)

    try:
        return points(uploads.readers), seconds[0]
    except EncryptionError as error:
        for client, reader in zip(uploads.clients, uploads.readers, strict=True):
            try:
                points([reader])
            except EncryptionError as wrong:
                raise SelgradError(f"client {client} sent what cannot be summed: {wrong}") from None
        raise SelgradError(str(error)) from None


def answered_once(seat: Seat, kind: str, request: Message, uploads: Uploads, make: Callable[[], dict[str, Any]]) -> Message:
    """Answers for one set of uploads only: once per round, and for updates of the same weights in no other round.

    Args:
      seat: of the decrypting participant; the answer is stored there before it is given, so that it survives if the process is killed.
      kind: of the request.
      request: with `round` and `weights`.
      uploads: that the request is about.
      make: computes the answer.

    Raises:
      SelgradError: if another set was decrypted in this round, or one of the same weights in another: the difference would show one client's update.
    """
    name = "weights" if kind in ("decrypt", "share") else f"weights-{kind}"
    with seat.alone():
        recorded, step = seat.kept(name) or b"", f"{request['round']}:{request['weights']};".encode()
        if step not in recorded and f":{request['weights']};".encode() in recorded:
            raise SelgradError("a sum over updates of these weights was decrypted in another round; the difference of two would show one client's")

        def remembered() -> dict[str, Any]:
            answer = make()
            if step not in recorded:
                seat.keep(name, recorded + step)
            return answer

        return seat.once(kind, request["round"], uploads.digest, remembered)
