"""Parameter profiles of the encryption: what is asked of CKKS, what it can hold, and what it costs in bytes.

CKKS: Cheon, Kim, Kim, Song 2017 (cheon2017ckks). Security levels are those of the Homomorphic Encryption Standard (albrecht2018standard).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

from selgrad.errors import EncryptionError


@dataclasses.dataclass(frozen=True)
class Profile:
    """CKKS at multiplicative depth 0 with one prime, two real values per complex slot, on a public grid.

    Attributes:
      name: in the registry.
      ring: ring dimension N; a ciphertext holds N real values, one of which is the canary.
      prime_bits, scale_bits: of the one RNS prime and of the scaling factor.
      security: level asked of OpenFHE, which refuses a smaller ring.
      grid_bits: values are rounded to multiples of 2^-grid_bits.
      bound: public bound; larger values are clipped to it. A larger bound leaves room for fewer clients.
    """

    name: str
    ring: int
    prime_bits: int
    scale_bits: int
    security: str
    grid_bits: int
    bound: float

    @property
    def values_per_ciphertext(self) -> int:
        """Real values in one ciphertext beside the canary."""
        return self.ring - 1

    @property
    def max_clients(self) -> int:
        """The largest K for which a sum of K values cannot wrap: sqrt(2) * K * bound * 2^scale < q / 2."""
        return math.floor(2.0 ** (self.prime_bits - 1 - self.scale_bits) / (math.sqrt(2) * self.bound))

    @property
    def quantisation_error(self) -> float:
        """Largest error of one value inside the bound: half a grid step."""
        return 2.0 ** -(self.grid_bits + 1)

    @property
    def parameter_hash(self) -> str:
        """Identifies the parameters on the wire."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def num_ciphertexts(self, num_values: int) -> int:
        """Ciphertexts that hold so many values, the last one padded."""
        return -(-num_values // self.values_per_ciphertext)

    def require_clients(self, num_clients: int) -> None:
        """Raises EncryptionError if a sum over so many clients could overflow silently."""
        if not 1 <= num_clients <= self.max_clients:
            raise EncryptionError(
                f"num_clients={num_clients} lies outside 1 .. {self.max_clients}: profile {self.name!r} would overflow silently; "
                "aggregate in groups or lower the bound"
            )


EXACT = Profile("exact", ring=4096, prime_bits=57, scale_bits=48, security="HEStd_256_classic", grid_bits=24, bound=1.0)
"""The decrypted sum equals the integer sum. Only its grid points are published, which closes the CKKS key-recovery leak of Li and
Micciancio 2021 (li2021ckks) against passive attackers; ciphertexts are malleable, and clients that share one secret key can read each other."""

PROFILES = {"exact": EXACT}
