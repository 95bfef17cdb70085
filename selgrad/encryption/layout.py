"""Where the residues of a ciphertext lie in OpenFHE's bytes, learned from samples and proven by a self-test before anything rests on it.

The layout is documented nowhere, so nothing is assumed of it. Knowing it, foreign bytes can be checked before OpenFHE reads them, residues can travel alone
in few bytes, and sums can be computed without deserialising.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from selgrad.errors import EncryptionError

Residues = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Form:
    """One form in which OpenFHE writes a ciphertext: constant bytes, two polynomials and a key tag.

    Attributes:
      pieces: what lies before, between and after the residues, with 0 in the place of the tag.
      tag_at: (piece, offset in it) of the key tag.
    """

    pieces: tuple[bytes, bytes, bytes]
    tag_at: tuple[int, int]

    def tagged(self, tag: bytes) -> list[bytes]:
        """The pieces with a key tag in its place."""
        pieces = list(self.pieces)
        index, at = self.tag_at
        pieces[index] = pieces[index][:at] + tag + pieces[index][at + len(tag) :]
        return pieces


@dataclasses.dataclass(frozen=True)
class Layout:
    """The forms of one context's ciphertexts.

    Attributes:
      forms: the first is that of a fresh ciphertext.
      ring: residues of a polynomial.
      modulus: of every residue.
      tag_length: bytes of a key tag.
    """

    forms: tuple[Form, ...]
    ring: int
    modulus: int
    tag_length: int

    @classmethod
    def learn(cls, samples: Sequence[Sequence[bytes]], tag: str, ring: int, modulus: int) -> Layout:
        """Finds the residues where samples of one form differ from each other.

        Args:
          samples: for each form at least four ciphertexts under one key.
          tag: of that key.
          ring, modulus: of the context.

        Raises:
          EncryptionError: if what differs is not two runs of `ring` residues.
        """
        forms, run = [], 8 * ring
        for group in samples:
            whole = group[0]
            if len({len(sample) for sample in group}) > 1:
                raise EncryptionError("OpenFHE's ciphertexts have no constant length; residues cannot be told from the rest")
            raw = [np.frombuffer(sample, np.uint8) for sample in group]
            changes = np.flatnonzero(np.any([part != raw[0] for part in raw[1:]], axis=0))
            if not changes.size:
                raise EncryptionError("OpenFHE's ciphertexts do not differ; two encryptions must")
            first = int(changes[0])
            later = changes[changes >= first + run]
            second = int(later[0]) if later.size else len(whole)
            pieces = [whole[:first], whole[first + run : second], whole[second + run :]]
            places = [(i, piece.find(tag.encode())) for i, piece in enumerate(pieces) if tag.encode() in piece]
            if second + run > len(whole) or len(places) != 1:
                raise EncryptionError("OpenFHE's ciphertexts are not two runs of residues and the name of a key")
            index, at = places[0]
            pieces[index] = pieces[index].replace(tag.encode(), bytes(len(tag)))
            forms.append(Form((pieces[0], pieces[1], pieces[2]), (index, at)))
        found = cls(tuple(forms), ring, modulus, len(tag))
        for group in samples:
            for sample in group:
                found.residues(sample, tag)
        return found

    def extended(self, samples: Sequence[bytes], tag: str) -> Layout:
        """The same with one form more, unless it is known; samples as for `learn`."""
        (form,) = Layout.learn([samples], tag, self.ring, self.modulus).forms
        return self if form in self.forms else dataclasses.replace(self, forms=(*self.forms, form))

    def residues(self, part: bytes, tag: str) -> Residues:
        """The two polynomials of a ciphertext, (2, ring) uint64.

        Raises:
          EncryptionError: if the bytes are no ciphertext of this context under a key of this tag.
        """
        run, named = 8 * self.ring, tag.encode("ascii", "replace")
        for form in self.forms if len(named) == self.tag_length else ():
            before, between, after = form.tagged(named)
            first = len(before)
            second = first + run + len(between)
            if len(part) == second + run + len(after) and part.startswith(before) and part.endswith(after) and part[first + run : second] == between:
                found = np.stack([np.frombuffer(part, "<u8", self.ring, start) for start in (first, second)])
                if found.max() < self.modulus:
                    return found
        raise EncryptionError(f"a ciphertext of {len(part)} bytes is truncated, damaged or of other parameters; ask the client to send it again")

    def serialise(self, residues: Residues, tag: str) -> bytes:
        """The bytes of a fresh ciphertext that holds these residues, (2, ring), under a key of this tag."""
        before, between, after = self.forms[0].tagged(tag.encode())
        return b"".join((before, residues[0].tobytes(), between, residues[1].tobytes(), after))

    def pack(self, residues: Residues, word_bytes: int) -> bytes:
        """Residues alone, the lowest `word_bytes` bytes of each."""
        unit = np.uint16 if word_bytes % 2 == 0 else np.uint8
        return residues.reshape(-1, 1).view(unit)[:, : word_bytes // unit().itemsize].tobytes()

    def unpack(self, part: bytes, word_bytes: int) -> Residues:
        """The inverse of `pack`.

        Raises:
          EncryptionError: for a wrong length or a residue that is too large.
        """
        if len(part) != 2 * self.ring * word_bytes:
            raise EncryptionError(f"a ciphertext of {len(part)} bytes is truncated: {2 * self.ring * word_bytes} are due; ask the client to send it again")
        unit = np.uint16 if word_bytes % 2 == 0 else np.uint8
        width = word_bytes // unit().itemsize
        wide = np.zeros((2 * self.ring, 8 // unit().itemsize), unit)
        wide[:, :width] = np.frombuffer(part, unit).reshape(-1, width)
        found: Residues = wide.view("<u8").reshape(2, self.ring)
        if found.max() >= self.modulus:
            raise EncryptionError(f"a ciphertext of {len(part)} bytes is damaged: a residue is above the modulus; ask the client to send it again")
        return found

    def add(self, parts: Sequence[Residues]) -> Residues:
        """The sum of ciphertexts modulo the prime; it is reduced only when 64 bits could not hold another term."""
        modulus = np.uint64(self.modulus)
        # A reduced total is one term; so many more fit.
        room = (2**64 - 1) // (self.modulus - 1) - 1
        total: Residues = parts[0].copy()
        for count, part in enumerate(parts[1:], 1):
            total += part
            if count % room == 0:
                total %= modulus
        return total % modulus
