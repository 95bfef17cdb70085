"""The byte form of a ciphertext, a key or a share as OpenFHE writes it: constant bytes, runs of residues, and the name of a key, learned from samples.

OpenFHE does not check foreign bytes: a damaged key can end the process or be taken for another key. So only bytes of a known form reach it. The form is not
documented, and the only assumption is that what differs between samples are residues and the key's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from selgrad.errors import EncryptionError


@dataclasses.dataclass(frozen=True)
class Form:
    """One byte form.

    Attributes:
      pieces: the constant bytes before, between and after the runs of residues, with 0 in place of the name.
      run: bytes of a run.
      name_at: (piece, offset in it) of the key's name.
      name_length: bytes of the name.
    """

    pieces: tuple[bytes, ...]
    run: int
    name_at: tuple[int, int]
    name_length: int

    @classmethod
    def learn(cls, samples: Sequence[tuple[bytes, str]], run: int) -> Form:
        """Learns the form that samples have in common.

        Args:
          samples: at least four, each with the name of its key, which it contains once.
          run: bytes of a run of residues.

        Raises:
          EncryptionError: if what differs is not runs of this length.
        """
        names = [name.encode() for _, name in samples]
        if any(raw.count(name) != 1 for (raw, _), name in zip(samples, names, strict=True)) or len({len(raw) for raw, _ in samples}) > 1:
            raise EncryptionError("OpenFHE's bytes have no constant length, or name their key more than once")
        blank = [raw.replace(name, bytes(len(name))) for (raw, _), name in zip(samples, names, strict=True)]
        arrays = [np.frombuffer(raw, np.uint8) for raw in blank]
        changes = np.flatnonzero(np.any([array != arrays[0] for array in arrays[1:]], axis=0))
        pieces, piece_start = [], 0
        while changes.size:
            start = int(changes[0])
            if start + run > len(blank[0]):
                raise EncryptionError("OpenFHE's bytes differ in more than runs of residues")
            pieces.append(blank[0][piece_start:start])
            piece_start = start + run
            changes = changes[changes >= piece_start]
        pieces.append(blank[0][piece_start:])
        places = [raw.find(name) for (raw, _), name in zip(samples, names, strict=True)]
        if len(pieces) < 2 or len(set(places)) > 1:
            raise EncryptionError("OpenFHE's bytes are not runs of residues and the name of a key")
        ends = np.cumsum([len(piece) + run for piece in pieces])
        index = int(np.searchsorted(ends, places[0], side="right"))
        offset = places[0] - int(ends[index]) + len(pieces[index]) + run
        if not 0 <= offset <= len(pieces[index]) - len(names[0]):
            raise EncryptionError("OpenFHE's bytes name their key among residues")
        form = cls(tuple(pieces), run, (index, offset), len(names[0]))
        if any(form.places(raw, name) is None for raw, name in samples):
            raise EncryptionError("OpenFHE's bytes are not of the form that they seem to be of")
        return form

    @property
    def num_runs(self) -> int:
        """The number of runs of residues."""
        return len(self.pieces) - 1

    @property
    def length(self) -> int:
        """The total number of bytes."""
        return sum(map(len, self.pieces)) + self.run * self.num_runs

    def named(self, name: bytes) -> list[bytes]:
        """The pieces with a key's name in its place."""
        pieces = list(self.pieces)
        index, offset = self.name_at
        pieces[index] = pieces[index][:offset] + name + pieces[index][offset + len(name) :]
        return pieces

    def name_of(self, raw: bytes) -> str | None:
        """The name of the key in some bytes; None where it is not alphanumeric ASCII, or the length differs."""
        if len(raw) != self.length:
            return None
        index, offset = self.name_at
        start = sum(map(len, self.pieces[:index])) + self.run * index + offset
        name = raw[start : start + self.name_length]
        return name.decode() if name.isalnum() and name.isascii() else None

    def places(self, raw: bytes, name: str) -> list[int] | None:
        """The offsets at which the runs begin; None if the bytes are not of this form under a key of this name."""
        encoded = name.encode("ascii", "replace")
        if len(raw) != self.length or len(encoded) != self.name_length:
            return None
        position, starts = 0, []
        for piece in self.named(encoded):
            if raw[position : position + len(piece)] != piece:
                return None
            position += len(piece)
            starts.append(position)
            position += self.run
        return starts[:-1]


@dataclasses.dataclass(frozen=True)
class Known:
    """The known forms of one kind of object.

    Attributes:
      forms: that it may have.
      limit: exclusive upper bound of every residue.
      what: the name of the kind, for error messages.
    """

    forms: tuple[Form, ...]
    limit: int
    what: str

    def require(self, raw: bytes) -> None:
        """Refuses bytes that have none of the forms.

        Raises:
          EncryptionError: if they have none.
        """
        for form in self.forms:
            name = form.name_of(raw)
            places = None if name is None else form.places(raw, name)
            if places is not None and all(int(np.frombuffer(raw, "<u8", form.run // 8, start).max()) < self.limit for start in places):
                return
        raise EncryptionError(f"{len(raw)} bytes are not a {self.what} of this profile, or are damaged; fetch it again")
