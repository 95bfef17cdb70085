"""The sum of a round as whoever decrypts forms it: of uploads that clients vouch for to that participant itself, and one for a set of weights.

The key holder and the parties of selgrad's own runs are held to this, and the key holder of an app of one's own. A server only relays.
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
    """Of one round, each its client's own.

    Attributes:
      clients: their numbers.
      readers: their ciphertexts.
      context: that all of them are bound to: mask, round and run.
      digest: of them all and of the weights that they are of.
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
    """The uploads of a request, if each client vouches for its own to this participant.

    Args:
      enrolment: of the participant.
      request: with `round`, `clients`, `uploads`, `tags` (each client's word) and `weights` (a digest of those that were trained on).
      bound_to: the mask's hash, or what stands in its place.
      num_clients: of the run.
      min_clients: that this participant opens a sum over.
      own: what it uploaded itself, for which nobody need vouch.

    Raises:
      SelgradError: if one is not vouched for, stands twice or is of something else, or they are fewer than `min_clients`.
    """
    clients, raws, tags = list(request["clients"]), list(request["uploads"]), list(request["tags"])
    if not len(clients) == len(set(clients)) == len(raws) == len(tags) or not set(clients) <= set(range(num_clients)):
        raise SelgradError("the uploads are not one of each client; nothing is decrypted")
    if len(clients) < min_clients:
        raise SelgradError(f"a sum over {len(clients)} clients is not decrypted; min_clients is {min_clients}")
    # As text, so that what is remembered of it is the same whenever it is the same.
    _require_hash("weights", request["weights"])
    context = context_of(bound_to, request["round"], enrolment.public.run)
    readers: list[encryption.Reader] = []
    for client, raw, tag in zip(clients, raws, tags, strict=True):
        mine = client == enrolment.number and raw == own
        if not mine and not enrolment.knows(client, tag, "upload", client, context, request["weights"], digest(raw)):
            raise SelgradError(f"client {client} does not vouch for its upload in round {request['round']}; nothing is decrypted")
        reader = encryption.Reader(raw)
        header = reader.header
        if (header.mask_hash, header.num_clients, header.num_values) != (context, 1, readers[0].header.num_values if readers else header.num_values):
            raise SelgradError(f"the upload of client {client} is of another mask, round or number of clients; nothing is decrypted")
        readers.append(reader)
    require_different(readers)
    digests = (digest(client, raw) for client, raw in zip(clients, raws, strict=True))
    return Uploads(clients, readers, context, digest(request["weights"], *digests))


def mask_of(request: Message) -> str:
    """The mask's hash that a request names: updates are bound to one, and score maps to something else.

    Raises:
      SelgradError: if it is none.
    """
    return _require_hash("mask_hash", request["mask_hash"])


def _require_hash(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise SelgradError(f"{name} is not a SHA-256 in hexadecimal; nothing is decrypted")
    return value


def added(profile: Profile, readers: Sequence[encryption.Reader]) -> tuple[bytes, float]:
    """The ciphertexts' sum, and the seconds that forming it took."""
    started, scheme = time.perf_counter(), _scheme(profile)
    total = scheme.add(readers, raw=scheme.layout is not None).to_bytes()
    return total, time.perf_counter() - started


def opened(enrolment: Enrolment, profile: Profile, uploads: Uploads) -> tuple[npt.NDArray[np.int64], float]:
    """The sum in grid units (n,), by the key holder, and the seconds that forming it took.

    Raises:
      SelgradError: naming the client whose upload is off the grid or beyond the bound, if the sum is.
    """
    holder, largest = _holder(enrolment.secret, enrolment.client_key), profile.bound * 2.0**profile.grid_bits
    seconds = [0.0]

    def points(subset: Sequence[encryption.Reader]) -> npt.NDArray[np.int64]:
        total, took = added(profile, subset)
        seconds[0] += took
        decrypted = holder.decrypt(total, uploads.context)
        if np.abs(decrypted).max(initial=0) > len(subset) * largest:
            raise EncryptionError("a decrypted value lies beyond the bound")
        return decrypted

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
    """What is made of one set of uploads: once in a round, and for updates of the same weights in no other round.

    Args:
      seat: of whoever decrypts, in which it is remembered before the answer is given, so that no kill makes it forget.
      kind: of the request.
      request: with `round` and `weights`.
      uploads: that it is about.
      make: the answer.

    Raises:
      SelgradError: if another set was opened in this round, or one of the same weights in another: the difference would show one client's.
    """
    name = "weights" if kind in ("decrypt", "share") else f"weights-{kind}"
    recorded, step = seat.kept(name) or b"", f"{request['round']}:{request['weights']};".encode()
    if step not in recorded and f":{request['weights']};".encode() in recorded:
        raise SelgradError("a sum over updates of these weights was decrypted in another round; the difference of two would show one client's")

    def remembered() -> dict[str, Any]:
        answer = make()
        if step not in recorded:
            seat.keep(name, recorded + step)
        return answer

    return seat.once(kind, request["round"], uploads.digest, remembered)
