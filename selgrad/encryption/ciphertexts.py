"""The ciphertexts that are sent: encrypted entries held in memory, read from any source, or computed as they are read.

Headers and byte formats are those of `wire`; nothing here depends on keys or on OpenFHE.
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
    """Ciphertexts to read, in memory or from a file: `Ciphertexts` or `wire.Reader`."""

    @property
    def header(self) -> Header:
        """The header of the ciphertexts."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """The ciphertexts, one at a time."""
        ...


@dataclasses.dataclass(frozen=True)
class Ciphertexts:
    """Encrypted entries of one client, or a sum over clients, in memory.

    Attributes:
      header: describes the ciphertexts.
      parts: one ciphertext per `values_per_ciphertext` entries.
    """

    header: Header
    parts: tuple[bytes, ...]

    def __iter__(self) -> Iterator[bytes]:
        """The ciphertexts, one at a time."""
        return iter(self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes on the wire, including the header."""
        return len(self.to_bytes())

    def to_bytes(self, mac_key: bytes | None = None) -> bytes:
        """The bytes that `wire.write` writes."""
        stream = io.BytesIO()
        wire.write(stream, self.header, self.parts, mac_key)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes, mac_key: bytes | None = None) -> Ciphertexts:
        """The inverse of `to_bytes`.

        Raises:
          EncryptionError: if the bytes are truncated, damaged, not authentic or not ciphertexts of this version.
        """
        reader = wire.Reader(raw, mac_key)
        return cls(reader.header, tuple(reader))


class Stream(NamedTuple):
    """Ciphertexts that are computed as they are read, once."""

    header: Header
    parts: Iterator[bytes]

    def collect(self) -> Ciphertexts:
        """Computes all of them and holds them in memory."""
        return Ciphertexts(self.header, tuple(self.parts))
