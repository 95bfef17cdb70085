"""What is sent: encrypted entries in memory, to be read from anywhere, or computed as they are read.

Headers and bytes are those of `wire`; nothing here knows of keys or of OpenFHE.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from selgrad.encryption import wire
from selgrad.encryption.wire import Header


@runtime_checkable
class Source(Protocol):
    """Ciphertexts to read, in memory or from a file: `Ciphertexts`, or `wire.Reader`."""

    @property
    def header(self) -> Header:
        """Of the ciphertexts."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """The ciphertexts, one at a time."""
        ...


@dataclasses.dataclass(frozen=True)
class Ciphertexts:
    """Encrypted entries of one client, or a sum over clients, in memory.

    Attributes:
      header: what they are.
      parts: one ciphertext per `values_per_ciphertext` entries.
    """

    header: Header
    parts: tuple[bytes, ...]

    def __iter__(self) -> Iterator[bytes]:
        """The ciphertexts."""
        return iter(self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes on the wire, header included."""
        return len(self.to_bytes())

    def to_bytes(self, mac_key: bytes | None = None) -> bytes:
        """As `wire.write` writes them."""
        stream = io.BytesIO()
        wire.write(stream, self.header, self.parts, mac_key)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes, mac_key: bytes | None = None) -> Ciphertexts:
        """The inverse of `to_bytes`.

        Raises:
          EncryptionError: if the bytes are truncated, damaged, not authentic or no ciphertexts of this version.
        """
        reader = wire.Reader(raw, mac_key)
        return cls(reader.header, tuple(reader))


class Stream(NamedTuple):
    """Ciphertexts that are computed as they are read, once."""

    header: Header
    parts: Iterator[bytes]

    def collect(self) -> Ciphertexts:
        """All of them in memory."""
        return Ciphertexts(self.header, tuple(self.parts))
