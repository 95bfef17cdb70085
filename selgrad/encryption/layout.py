"""Where the residues of a ciphertext lie in OpenFHE's bytes, learned from samples and verified by a self-test before anything relies on it.

The layout is not documented, so nothing is assumed about it. Once it is known, foreign bytes can be checked before OpenFHE reads them, residues can be sent
alone in fewer bytes, and sums can be computed without deserialising.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from selgrad.encryption.forms import Form
from selgrad.errors import EncryptionError

Residues = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The forms of one context's ciphertexts.

    Attributes:
      forms: the first is the form of a fresh ciphertext.
      ring: residues of a polynomial.
      modulus: of every residue.
    """

    forms: tuple[Form, ...]
    ring: int
    modulus: int

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
        forms = tuple(Form.learn([(sample, tag) for sample in group], 8 * ring) for group in samples)
        if any(form.num_runs != 2 for form in forms):
            raise EncryptionError("OpenFHE's ciphertexts are not two runs of residues and the name of a key")
        layout = cls(forms, ring, modulus)
        for group in samples:
            for sample in group:
                layout.residues(sample, tag)
        return layout

    def extended(self, samples: Sequence[bytes], tag: str) -> Layout:
        """The same layout with one more form, unless that is known; samples as for `learn`."""
        (form,) = Layout.learn([samples], tag, self.ring, self.modulus).forms
        return self if form in self.forms else dataclasses.replace(self, forms=(*self.forms, form))

    def residues(self, part: bytes, tag: str) -> Residues:
        """The two polynomials of a ciphertext, (2, ring) uint64.

        Raises:
          EncryptionError: if the bytes are not a ciphertext of this context under a key of this tag.
        """
        for form in self.forms:
            places = form.places(part, tag)
            if places is not None:
                residues = np.stack([np.frombuffer(part, "<u8", self.ring, start) for start in places])
                if residues.max() < self.modulus:
                    return residues
        raise EncryptionError(f"a ciphertext of {len(part)} bytes is truncated, damaged or of other parameters; ask the client to send it again")

    def serialise(self, residues: Residues, tag: str) -> bytes:
        """The bytes of a fresh ciphertext that holds these residues, (2, ring), under a key of this tag."""
        before, between, after = self.forms[0].named(tag.encode())
        return b"".join((before, residues[0].tobytes(), between, residues[1].tobytes(), after))

    def pack(self, residues: Residues, word_bytes: int) -> bytes:
        """The residues alone, as the lowest `word_bytes` bytes of each."""
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
        residues: Residues = wide.view("<u8").reshape(2, self.ring)
        if residues.max() >= self.modulus:
            raise EncryptionError(f"a ciphertext of {len(part)} bytes is damaged: a residue is above the modulus; ask the client to send it again")
        return residues

    def add(self, parts: Sequence[Residues]) -> Residues:
        """The sum of ciphertexts modulo the prime; it is reduced only when 64 bits could not hold another term."""
        modulus = np.uint64(self.modulus)
        # How many more terms fit on top of a reduced total, which counts as one.
        room = (2**64 - 1) // (self.modulus - 1) - 1
        total: Residues = parts[0].copy()
        for count, part in enumerate(parts[1:], 1):
            total += part
            if count % room == 0:
                total %= modulus
        return total % modulus
