"""What each participant holds before a run begins: the configuration that it agreed to, its keys, and the answers that it has already given.

Enrolments are made by whoever sets up the run, not by the server, which could be anybody: nothing that a participant relies on comes from the network. Each
participant has its own folder, readable by its owner alone; each pair that needs a shared key has one, and every client holds the encryption key.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import yaml

from selgrad import encryption, files
from selgrad.encryption.roles import read_private
from selgrad.encryption.wire import private_file
from selgrad.errors import DamagedError, SelgradError
from selgrad.federation.config import FederationConfig, parse
from selgrad.files import checksum

FILE = "participant.json"


@dataclasses.dataclass(frozen=True)
class Public:
    """What everybody may know about a run, including the server.

    Attributes:
      run: identifies the run; everything that is encrypted or authenticated is bound to it.
      fingerprint: of the configuration.
      key_tag: of the encryption key; empty where parties make a joint key, or nothing is encrypted.
    """

    run: str
    fingerprint: str
    key_tag: str


@dataclasses.dataclass(frozen=True)
class Enrolment:
    """What one participant is enrolled with.

    Attributes:
      number: of the participant; clients come first.
      public: of the run.
      text: of the configuration.
      shared: another participant's number -> the key that the two share and the server does not have.
      client_key: the key that it encrypts with; empty where parties make a joint key.
      secret: the key holder's secret key; empty for others.
    """

    number: int
    public: Public
    text: str
    shared: dict[int, bytes] = dataclasses.field(repr=False)
    client_key: bytes = dataclasses.field(repr=False)
    secret: bytes = dataclasses.field(repr=False)

    def save(self, folder: str | Path) -> None:
        """Writes the participant's file, which only its owner can read.

        Raises:
          EncryptionError: if the folder cannot be written to.
        """
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        plain = {**dataclasses.asdict(self), "shared": {str(k): _text(v) for k, v in self.shared.items()}}
        plain |= {name: _text(getattr(self, name)) for name in ("client_key", "secret")}
        with private_file(path) as stream:
            stream.write(json.dumps({**plain, "checksum": checksum(plain)}).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Enrolment:
        """Reads what `save` wrote.

        Raises:
          SelgradError: if the file is missing or damaged, or others may read it.
        """
        path = Path(folder) / FILE
        try:
            content = json.loads(read_private(path))
            if content.pop("checksum") != checksum(content):
                raise ValueError("the checksum is of other content")
            shared = {int(number): base64.b64decode(key, validate=True) for number, key in content["shared"].items()}
            keys = {name: base64.b64decode(content[name], validate=True) for name in ("client_key", "secret")}
            return cls(int(content["number"]), Public(**content["public"]), str(content["text"]), shared, **keys)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SelgradError(f"{str(path)!r} is damaged ({type(error).__name__}); fetch it again from whoever set the run up") from None

    def tag(self, other: int, *what: Any) -> bytes:
        """Authenticates a message to another participant.

        Args:
          other: that participant's number.
          what: the parts of the message; each is written with its length, so that no two lists have the same encoding.
        """
        return hmac.new(self.shared[other], _framed(self.public.run, *what), "sha256").digest()

    def tags(self, *what: Any) -> bytes:
        """Concatenates the `tag` for each participant that shares a key with this one, in the order of their numbers."""
        return b"".join(self.tag(other, *what) for other in sorted(self.shared))

    def knows(self, other: int, tag: bytes, *what: Any) -> bool:
        """Whether another participant authenticated this message to this one."""
        return other in self.shared and hmac.compare_digest(tag, self.tag(other, *what))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _framed(*parts: Any) -> bytes:
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in encoded)


def digest(*parts: Any) -> str:
    """SHA-256 of the parts, each prefixed with its length."""
    return hashlib.sha256(_framed(*parts)).hexdigest()


def digest_of_weights(flat: npt.NDArray[Any]) -> str:
    """A digest that identifies global weights; equal weights have equal digests, whether or not a zero is signed."""
    return digest((flat + 0.0).astype(flat.dtype).tobytes())


def enrol(config: FederationConfig) -> list[Enrolment]:
    """Makes the enrolments of all participants of one run: the clients, then the key holder where there is one.

    Args:
      config: the configuration that all of them have agreed to.
    """
    from selgrad.federation.learning import task_of

    count, run = config.clients.count, secrets.token_hex(8)
    client_key = secret = b""
    key_tag = ""
    pairs: dict[tuple[int, int], bytes] = {}
    num_participants = count
    if config.encrypts:
        profile = task_of(config.text).profile
        if profile.decryption == "threshold":
            pairs = {(a, b): secrets.token_bytes(32) for a in range(count) for b in range(a)}
        else:
            holder = encryption.KeyHolder(profile)
            secret, client_key, key_tag = holder.secret_key(), holder.client_key(), holder.tag
            pairs = {(count, client): secrets.token_bytes(32) for client in range(count)}
            num_participants = count + 1
    public = Public(run, config.fingerprint, key_tag)
    keys_of = lambda number: {b if a == number else a: key for (a, b), key in pairs.items() if number in (a, b)}
    return [Enrolment(number, public, config.text, keys_of(number), client_key, secret if number == count else b"") for number in range(num_participants)]


def write(enrolments: Sequence[Enrolment], folder: str | Path, names: Mapping[int, str] | None = None) -> Path:
    """Writes one folder per participant, each for its owner alone, and `public.json` for the server.

    Args:
      enrolments: of all participants.
      folder: in which their folders are made.
      names: number -> name of a participant's folder; the others are named by their numbers.

    Raises:
      SelgradError: if the folder cannot be written to.
    """
    root = Path(folder)
    for enrolment in enrolments:
        enrolment.save(root / (names or {}).get(enrolment.number, str(enrolment.number)))
    files.write_json(root / "public.json", dataclasses.asdict(enrolments[0].public))
    return root


def read_public(folder: str | Path) -> Public:
    """Reads what `write` left for the server.

    Raises:
      SelgradError: if it is missing or damaged.
    """
    path = Path(folder) / "public.json"
    try:
        return Public(**files.read_json(path))
    except (DamagedError, TypeError):
        raise SelgradError(f"{str(path)!r} is damaged or gone; it is written when a run is set up, fetch it again or set another run up") from None


def pack(message: Mapping[str, Any]) -> bytes:
    """Encodes a message: text and numbers as JSON, and bytes and lists of bytes unchanged, since they may be large."""
    blobs = {name: value if isinstance(value, list) else [value] for name, value in message.items() if _is_bytes(value)}
    plain = {name: value for name, value in message.items() if name not in blobs}
    sizes = {name: [len(blob) for blob in values] if isinstance(message[name], list) else len(values[0]) for name, values in blobs.items()}
    text = json.dumps({"plain": plain, "sizes": sizes}).encode()
    return b"".join([len(text).to_bytes(8, "big"), text, *(blob for values in blobs.values() for blob in values)])


def unpack(raw: bytes) -> dict[str, Any]:
    """Decodes what `pack` encoded.

    Raises:
      ValueError: if the bytes are not a message.
    """
    offset = 8 + int.from_bytes(raw[:8], "big")
    try:
        envelope = json.loads(raw[8:offset])
        message, view = dict(envelope["plain"]), memoryview(raw)
        for name, sizes in envelope["sizes"].items():
            parts = []
            for size in sizes if isinstance(sizes, list) else [sizes]:
                if not isinstance(size, int) or not 0 <= size <= len(raw) - offset:
                    raise ValueError(f"{name!r} is longer than the message")
                parts.append(bytes(view[offset : offset + size]))
                offset += size
            message[name] = parts if isinstance(sizes, list) else parts[0]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message ({type(error).__name__})") from None
    if offset != len(raw):
        raise ValueError(f"{len(raw)} bytes and {offset} are due")
    return message


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, list) and bool(value) and all(isinstance(part, bytes) for part in value))


def _summed(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest() + raw


def _checked(raw: bytes) -> bytes:
    """The inverse of `_summed`; raises ValueError if the checksum does not match."""
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        raise ValueError("the checksum is of other content")
    return raw[32:]


class _Answered(NamedTuple):
    """One answer, with the request that it was given to."""

    round: int
    asked: str
    answer: dict[str, Any]


class Seat:
    """The state of a participant: what it was enrolled with, and what it has answered.

    Args:
      enrolment: the participant's own.
      folder: where it keeps its answers, so that a restarted process still has them; None keeps them in memory.
    """

    def __init__(self, enrolment: Enrolment, folder: Path | None = None) -> None:
        self.enrolment, self._folder = enrolment, folder
        self._answered: dict[str, _Answered] = {}
        self.memory: dict[str, bytes] = {}
        self._lock, self._depth = threading.RLock(), 0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the seat while a request is answered, against other threads and processes: two requests at once would each find that none was answered yet.

        A process that comes second reads what the first has stored.
        """
        with self._lock, contextlib.ExitStack() as stack:
            if self._depth == 0 and self._folder is not None:
                stack.enter_context(files.locked(self._folder, "participant", wait=True, name="answers.lock"))
                self._answered.clear()
                self.memory.clear()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @cached_property
    def config(self) -> FederationConfig:
        """The configuration of one of selgrad's own runs."""
        return parse(yaml.safe_load(self.enrolment.text))

    def once(self, kind: str, round_number: int, asked: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Answers one request of a kind per round: a repeated request gets the same answer, and a different one is refused.

        A server that was interrupted gets back what it lost, but never a second view of the same update.

        Args:
          kind: of the message.
          round_number: the round that the request belongs to.
          asked: a digest of the request.
          make: computes the answer if none was given yet.

        Raises:
          SelgradError: if another request of that kind was answered in this round or a later one.
        """
        with self.alone():
            last = self._last(kind)
            if last is not None and round_number <= last.round:
                if (round_number, asked) == (last.round, last.asked):
                    return dict(last.answer)
                raise SelgradError(f"{kind!r} of round {last.round} was answered to another request; each is answered once")
            answer = make()
            self._answered[kind] = _Answered(round_number, asked, answer)
            if self._folder is not None:
                # Stored before it is returned; otherwise a process that is killed could forget an answer that it gave.
                with private_file(self._folder / f"answered-{kind}") as stream:
                    stream.write(_summed(pack({"answer": pack(answer), "round": round_number, "asked": asked})))
            return answer

    def answered(self, kind: str) -> dict[str, Any]:
        """The last answer of a kind; empty if there was none."""
        last = self._last(kind)
        return {} if last is None else dict(last.answer)

    def keep(self, name: str, value: bytes) -> None:
        """Stores a value of the participant's own under a name."""
        self.memory[name] = value
        if self._folder is not None:
            with private_file(self._folder / f"{name}.key") as stream:
                stream.write(_summed(value))

    def kept(self, name: str) -> bytes | None:
        """The value stored under a name; None if there is none."""
        if name not in self.memory and self._folder is not None and (self._folder / f"{name}.key").exists():
            try:
                self.memory[name] = _checked(read_private(self._folder / f"{name}.key"))
            except ValueError:
                file = str(self._folder / f"{name}.key")
                raise SelgradError(f"{file!r} is damaged, so participant {self.enrolment.number} cannot go on; set another run up") from None
        return self.memory.get(name)

    def pin(self, name: str, value: str) -> None:
        """Accepts only the first value given for a name: with two masks in one run, each would expose what the other hides.

        Raises:
          SelgradError: if a different value was pinned before.
        """
        pinned = self.kept(f"pinned-{name}")
        if pinned is None:
            self.keep(f"pinned-{name}", value.encode())
        elif pinned != value.encode():
            raise SelgradError(f"the {name} is not the one that participant {self.enrolment.number} began the run with; nothing is sent")

    def _last(self, kind: str) -> _Answered | None:
        if kind not in self._answered and self._folder is not None and (self._folder / f"answered-{kind}").exists():
            try:
                stored = unpack(_checked(read_private(self._folder / f"answered-{kind}")))
                self._answered[kind] = _Answered(int(stored["round"]), str(stored["asked"]), unpack(stored["answer"]))
            except (ValueError, KeyError, TypeError):
                reason = f"what participant {self.enrolment.number} has answered cannot be read"
                raise SelgradError(f"{reason}, so it cannot know what to answer once; set another run up") from None
        return self._answered.get(kind)
