"""The messages between a run's server and its participants: the fields of every answer, what an upload is bound to, and how answers are requested.

How messages travel is left to a `Transport`, such as Flower's; anything that goes wrong with a message becomes an `Event`, and the run goes on.
"""

from __future__ import annotations

import dataclasses
import hmac
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from selgrad import encryption
from selgrad.encryption.agreement import Bits
from selgrad.federation.config import FederationConfig

Message = dict[str, Any]


def mask_digest(bits: Bits) -> str:
    """SHA-256 of a flat mask, compared between clients and server."""
    return encryption.mask_hash({"update": bits})


def context_of(digest: str, round_number: int, run: str = "") -> str:
    """The context that an upload is bound to, so that one from an earlier round or another run cannot be replayed."""
    return f"{digest}:{round_number}:{run}" if run else f"{digest}:{round_number}"


def reply_mac(mac_key: bytes, round_number: int, mask_hash: str, plain: bytes, sealed: bytes) -> bytes:
    """Authenticates a reply's exposed entries and ciphertexts, for one round and one mask, to the server."""
    sizes = f"{round_number}:{mask_hash}:{len(plain)}:{len(sealed)}:".encode()
    return hmac.new(mac_key, sizes + plain + sealed, "sha256").digest()


@dataclasses.dataclass(frozen=True)
class Event:
    """A problem with one client that did not stop the run.

    Attributes:
      client: its number.
      status: `died`, `late`, `twice`, `malformed`, `failed` or `missing`.
      detail: one line.
    """

    client: int
    status: str
    detail: str = ""


_BYTES, _NUMBER, _TEXT = "bytes", "number", "text"
_FIELDS: dict[str, dict[str, str]] = {
    "hello": {"mac": _BYTES},
    "make_key": {"client_key": _BYTES, "key_tag": _TEXT, "tags": _BYTES},
    "confirm": {},
    "agree": {"proposal": _BYTES, "mac": _BYTES, "tags": _BYTES},
    "train": {
        "plain": _BYTES, "sealed": _BYTES, "mac": _BYTES, "tags": _BYTES, "plain_bytes": _NUMBER, "clipped": _NUMBER, "train_seconds": _NUMBER,
        "encrypt_seconds": _NUMBER,
    },
    "decrypt": {"points": _BYTES, "add_seconds": _NUMBER},
    "choose": {"mask": _BYTES},
    "share": {"share": _BYTES, "mac": _BYTES, "add_seconds": _NUMBER},
}  # fmt: skip


def _wrong_field(kind: str, reply: Message) -> str | None:
    """The first field of a reply that is missing or of another type; None where all are sound."""
    for name, wanted in _FIELDS[kind].items():
        value = reply.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
        if not (isinstance(value, bytes) if wanted == _BYTES else isinstance(value, str) if wanted == _TEXT else number):
            return name
    return None


STARTUP_SECONDS = 120.0
"""The shortest wait for participants that are starting: importing JAX takes a while, longer still on a busy machine."""


@runtime_checkable
class Transport(Protocol):
    """Carries messages to participants by number."""

    def exchange(self, requests: Mapping[int, Message], timeout: float) -> tuple[dict[int, Message], list[Event]]:
        """Sends one request to each participant; returns the replies that came in time, and what went wrong, including late replies to earlier requests."""
        ...


class Post:
    """The server's side of every exchange: requests are numbered, and only expected, well-formed replies get through.

    Args:
      transport: to the participants.
      config: of the run.
      fingerprint: of the configuration, which participants compare with their own.
      note: called with the round and an event for everything that went wrong.

    Attributes:
      down, up: bytes sent and received; callers may reset them.
    """

    def __init__(self, transport: Transport, config: FederationConfig, fingerprint: str, note: Callable[[int, Event], None]) -> None:
        self._transport, self._config, self._fingerprint, self._note = transport, config, fingerprint, note
        self._tickets = itertools.count(1)
        self.down = self.up = 0

    def ask(self, number: int, kind: str, requests: Mapping[int, Message], patience: float = 0.0) -> dict[int, Message]:
        """Replies by participant; anything that goes wrong becomes an event of the round. It waits at least `patience` seconds, even beyond the time limit."""
        timeout = max(patience, self._config.timeout)
        addressed = {
            party: {"kind": kind, "round": number, "ticket": next(self._tickets), "config": self._fingerprint, **request} for party, request in requests.items()
        }
        replies, events = self._transport.exchange(addressed, timeout)
        for event in events:
            self._note(number, event)
        good: dict[int, Message] = {}
        for party, reply in sorted(replies.items()):
            if reply.get("error"):
                self._note(number, Event(party, "failed", str(reply["error"])))
            elif reply.get("ticket") != addressed[party]["ticket"]:
                self._note(number, Event(party, "malformed", f"answers message {reply.get('ticket')} and was asked {addressed[party]['ticket']}"))
            elif (wrong := _wrong_field(kind, reply)) is not None:
                self._note(number, Event(party, "malformed", f"{wrong} is missing or of another type"))
            else:
                good[party] = reply
        accounted_for = set(replies) | {event.client for event in events if event.status in ("died", "failed", "malformed", "missing")}
        for party in sorted(set(addressed) - accounted_for):
            self._note(number, Event(party, "missing", f"no answer to {kind!r} within {timeout:g} s"))
        unsent = {event.client for event in events if event.status == "missing"}
        self.down += _num_bytes(request for party, request in addressed.items() if party not in unsent)
        self.up += _num_bytes(replies.values())
        return good


def _num_bytes(messages: Iterable[Message]) -> int:
    total = 0
    for message in messages:
        for value in message.values():
            total += sum(len(blob) for blob in (value if isinstance(value, list) else [value]) if isinstance(blob, bytes))
    return total
