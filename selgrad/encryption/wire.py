"""The wire format of an encrypted selection: a header, length-prefixed ciphertexts one after the other, and an authentication tag over all of it.

It is written and read as a stream, so that memory does not grow with the number of values. A reader verifies everything before it returns a ciphertext.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from selgrad.errors import EncryptionError

_MAGIC = b"selgrad-ckks\x00\x02"
_TAG = 32
_LARGEST_HEADER = 4096
_LARGEST_PART = 2**26


@dataclasses.dataclass(frozen=True)
class Header:
    """What a receiver must know before it reads ciphertexts.

    Attributes:
      parameter_hash, key_tag, mask_hash: of the profile, the key and the selection; ciphertexts that differ in any of them are not added.
      num_values: entries encrypted.
      num_clients: clients summed so far.
      grid_bits: values are multiples of 2^-grid_bits.
      num_parts: ciphertexts that follow.
    """

    parameter_hash: str
    key_tag: str
    mask_hash: str
    num_values: int
    num_clients: int
    grid_bits: int
    num_parts: int

    @classmethod
    def of(cls, given: dict[str, Any]) -> Header:
        """A header from foreign values, each of which must have its type and lie in its range.

        Raises:
          ValueError: if a value is invalid, missing, or not part of a header.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        for name, kind in fields.items():
            value = given.get(name)
            if not (type(value) is str and len(value) <= 128 if kind == "str" else type(value) is int and 0 <= value < 2**48):
                raise ValueError(f"{name}={value!r}")
        if len(given) != len(fields):
            raise ValueError(f"{len(given)} fields")
        return cls(**given)


SHORTEST_KEY = 16
"""The fewest bytes of an authentication key."""


def require_mac_key(key: Any) -> None:
    """Refuses an authentication key that is too short, or not bytes.

    Raises:
      EncryptionError: if it is either.
    """
    if not isinstance(key, bytes):
        raise EncryptionError(f"an authentication key is bytes and this is {type(key).__name__}; make one with secrets.token_bytes(32)")
    if len(key) < SHORTEST_KEY:
        raise EncryptionError(f"an authentication key of {len(key)} bytes can be guessed; give at least {SHORTEST_KEY}, such as secrets.token_bytes(32)")


def _digest(mac_key: bytes | None) -> Any:
    if mac_key is None:
        return hashlib.sha256()
    require_mac_key(mac_key)
    return hmac.new(mac_key, digestmod="sha256")


def write(stream: io.BufferedIOBase, header: Header, parts: Iterable[bytes], mac_key: bytes | None = None) -> int:
    """Writes a header and its ciphertexts as they come; returns the number of bytes.

    Args:
      stream: to write to.
      header: of the ciphertexts.
      parts: `num_parts` ciphertexts.
      mac_key: with it the tag is an HMAC-SHA256 that authenticates the sender; without it a SHA-256 that detects damage and authenticates nobody.

    Raises:
      EncryptionError: if there are more or fewer parts than the header says.
    """
    digest, written = _digest(mac_key), 0

    def put(piece: bytes) -> None:
        nonlocal written
        digest.update(piece)
        stream.write(piece)
        written += len(piece)

    text = json.dumps({**dataclasses.asdict(header), "authenticated": mac_key is not None}, sort_keys=True).encode()
    put(_MAGIC + len(text).to_bytes(4, "big") + text)
    count = 0
    for part in parts:
        put(len(part).to_bytes(4, "big"))
        put(part)
        count += 1
    if count != header.num_parts:
        raise EncryptionError(f"{count} ciphertexts were written and the header says {header.num_parts}")
    stream.write(digest.digest())
    return written + _TAG


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file for writing that only its owner may read (0600), and that appears under its name only when it is complete.

    Raises:
      EncryptionError: if the disk is full or the folder cannot be written to.
    """
    # The name is unpredictable and the file must be new, so that a file or link that somebody put there is neither followed nor written to.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
    except OSError as error:
        raise EncryptionError(f"{path} cannot be written ({error.strerror}); free space or choose another folder") from None
    finally:
        scratch.unlink(missing_ok=True)


def write_file(path: str | Path, header: Header, parts: Iterable[bytes], mac_key: bytes | None = None) -> int:
    """Writes to a private file as `write` does; returns the number of bytes.

    Raises:
      EncryptionError: if the disk is full or the folder cannot be written to.
    """
    with private_file(Path(path)) as stream:
        return write(stream, header, parts, mac_key)


class Reader:
    """Reads verified ciphertexts: everything is read once for the tag and the lengths, and again for each pass over the parts.

    Later passes are compared with what was verified, since a file may be replaced in between.

    Attributes:
      header: of the ciphertexts.
      digests: SHA-256 of each ciphertext; two uploads that share one are, at least in part, the same upload.

    Args:
      source: bytes, or the path of a file.
      mac_key: of the sender; None accepts only ciphertexts with a plain checksum.

    Raises:
      EncryptionError: if the bytes are truncated, damaged, not from the holder of the key, or not ciphertexts of this version.
    """

    def __init__(self, source: bytes | str | Path, mac_key: bytes | None = None) -> None:
        self._source = source if isinstance(source, bytes) else Path(source)
        with self._open() as stream:
            self.header, self._start = self._verify(stream, mac_key)

    @contextlib.contextmanager
    def _open(self) -> Iterator[io.BufferedIOBase]:
        if isinstance(self._source, bytes):
            yield io.BytesIO(self._source)
            return
        try:
            with self._source.open("rb") as stream:
                yield stream
        except OSError as error:
            raise EncryptionError(f"{self._source} cannot be read ({error.strerror}); ask the client to send it again") from None

    def _verify(self, stream: io.BufferedIOBase, mac_key: bytes | None) -> tuple[Header, int]:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        start = stream.read(len(_MAGIC) + 4)
        if start[: len(_MAGIC)] != _MAGIC:
            raise EncryptionError(f"these {size} bytes are not selgrad ciphertexts of this version (they begin {start[:8].hex() or 'empty'})")
        damaged = EncryptionError(f"the ciphertexts of {size} bytes are truncated or damaged; ask the client to send them again")
        length = int.from_bytes(start[len(_MAGIC) :], "big")
        if length > _LARGEST_HEADER or size < len(start) + length + _TAG:
            raise damaged
        text = stream.read(length)
        try:
            fields = json.loads(text)
            authenticated = fields.pop("authenticated")
            header = Header.of(fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise EncryptionError(f"the header of {size} bytes of ciphertexts is truncated, damaged or malformed; ask the client to send them again") from None
        if authenticated != (mac_key is not None):
            wanted = "carry no authentication" if mac_key is not None else "are authenticated and no key was given to check them"
            raise EncryptionError(f"the ciphertexts of {size} bytes {wanted}; sender and receiver must share one authentication key")
        digest, self.digests = _digest(mac_key), []
        digest.update(start + text)
        remaining = size - len(start) - length - _TAG
        for _ in range(header.num_parts):
            prefix = stream.read(4)
            part_bytes = int.from_bytes(prefix, "big")
            remaining -= 4 + part_bytes
            if len(prefix) < 4 or remaining < 0 or part_bytes > _LARGEST_PART:
                raise damaged
            part = stream.read(part_bytes)
            digest.update(prefix)
            digest.update(part)
            self.digests.append(hashlib.sha256(part).digest())
        if remaining or not hmac.compare_digest(stream.read(_TAG), digest.digest()):
            if mac_key is None:
                raise damaged
            raise EncryptionError(
                f"the ciphertexts of {size} bytes are not authentic: truncated, damaged, or from a sender with another key; ask the client to send them again"
            )
        return header, len(start) + length

    def __iter__(self) -> Iterator[bytes]:
        """The ciphertexts, one at a time.

        Raises:
          EncryptionError: if one differs from what was verified.
        """
        with self._open() as stream:
            stream.seek(self._start)
            for expected in self.digests:
                part = stream.read(min(int.from_bytes(stream.read(4), "big"), _LARGEST_PART))
                if hashlib.sha256(part).digest() != expected:
                    raise EncryptionError("the ciphertexts have changed since they were verified; ask the client to send them again")
                yield part


def require_different(readers: Sequence[Reader]) -> None:
    """Refuses uploads that share a ciphertext, regardless of their headers: no two encryptions are equal.

    Raises:
      EncryptionError: naming the two uploads.
    """
    first_use: dict[bytes, int] = {}
    for index, reader in enumerate(readers):
        first = next((first_use[digest] for digest in reader.digests if digest in first_use), None)
        if first is not None:
            raise EncryptionError(f"upload {index} is the same as upload {first}, in part at least; add each client once")
        first_use |= dict.fromkeys(reader.digests, index)
