"""Parameter profiles of the encryption: CKKS parameters, their capacity and cost in bytes, and the checks that refuse unsafe ones.

CKKS is due to Cheon, Kim, Kim, Song 2017 (cheon2017ckks). Security levels are those of the Homomorphic Encryption Standard (albrecht2018standard).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from typing import Any, Literal

from selgrad.errors import EncryptionError, UsageError, first_line

_LOG_MODULUS = {
    "HEStd_128_classic": {2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881},
    "HEStd_192_classic": {2048: 37, 4096: 75, 8192: 152, 16384: 305, 32768: 611},
    "HEStd_256_classic": {2048: 29, 4096: 58, 8192: 118, 16384: 237, 32768: 476},
}
"""Largest log2 of the modulus by security level and ring, for ternary secrets (albrecht2018standard, table 1)."""
_SIGMA = 3.19
_ENCODING = 1 / 12
_SMUDGING = 2.0**20
_FLOODING = math.sqrt(24) * 2.0**15
_MARGIN = 7
LARGE_RINGS = (16384, 8192)
LARGE_FROM = 1_000_000


@dataclasses.dataclass(frozen=True)
class Profile:
    """CKKS parameters for values on a public grid; only sums over clients are computed, without multiplication, so one prime is enough.

    Attributes:
      name: of the profile.
      ring: ring dimension N; a ciphertext holds N real values in complex packing, N / 2 in real packing, one of which is the canary.
      prime_bits, scale_bits: of the first RNS prime and of the scaling factor.
      security: level requested from OpenFHE, and checked against the standard's table.
      grid_bits: values are rounded to multiples of 2^-grid_bits.
      bound: public bound; larger values are clipped to it. A larger bound leaves room for fewer clients.
      packing: `complex`, two real values per slot, or `real`.
      key: the key that encrypts: the `public` one, or the `secret` one, which every client then holds.
      decryption: `exact`, by one key holder who publishes grid points only; `threshold`, by all parties together; `noise_flooding`, by one key holder whose
        noise hides the ciphertext's.
      depth: multiplications that the parameters leave room for; each costs another prime of `scale_bits`.
      headroom_bits: values are divided by 2^headroom_bits before encoding, so that sums fit where OpenFHE prescribes the scale.
      noise_bits: log2 of the noise that `noise_flooding` has to hide.
      num_parties: the largest number of parties for `threshold`.
      word_bytes: bytes of a residue on the wire; below 8, ciphertexts travel as bare residues, which requires a passed self-test.
      about: what the profile is for and what it does not guarantee.

    Raises:
      EncryptionError: for a combination that is unsafe or cannot work.
    """

    name: str
    ring: int
    prime_bits: int
    scale_bits: int
    security: str
    grid_bits: int
    bound: float
    packing: Literal["complex", "real"] = "complex"
    key: Literal["public", "secret"] = "public"
    decryption: Literal["exact", "threshold", "noise_flooding"] = "exact"
    depth: int = 0
    headroom_bits: int = 0
    noise_bits: int = 0
    num_parties: int = 1
    word_bytes: int = 8
    about: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        refuse = self._refusal()
        if refuse:
            raise EncryptionError(f"profile {self.name!r}: {refuse}")

    def _refusal(self) -> str | None:
        table = _LOG_MODULUS.get(self.security)
        if table is None:
            return f"security={self.security!r} is not a level of the standard; choose from {', '.join(_LOG_MODULUS)}"
        if self.ring not in table:
            return f"ring={self.ring} is not in the standard's table; choose from {', '.join(map(str, table))}"
        if self.prime_bits > 60:
            return f"prime_bits={self.prime_bits} does not fit in a machine word; at most 60"
        if self.log_modulus > table[self.ring]:
            return f"a modulus of {self.log_modulus} bits in ring {self.ring} is below {self.security} (at most {table[self.ring]} bits); take a larger ring"
        if not 0 < self.bound < math.inf:
            return f"bound={self.bound} must be positive"
        if self.bound < 2.0**-self.grid_bits:
            return f"bound={self.bound:g} lies below a grid step of 2^-{self.grid_bits}, so that every value would be rounded to 0; take a larger one"
        if self.key == "secret" and self.decryption == "threshold":
            return "key='secret' needs one secret key, and decryption='threshold' is there so that nobody has it; encrypt under the public key"
        if self.decryption == "noise_flooding" and self.packing == "complex":
            return "OpenFHE floods no complex packing; set packing='real'"
        if self.decryption == "noise_flooding" and not self.noise_bits:
            return "decryption='noise_flooding' needs noise_bits, the log2 of the noise to hide"
        if not 0 < self.word_bytes <= 8 or 8 * self.word_bytes < self.prime_bits or (self.word_bytes < 8 and self.depth):
            return f"word_bytes={self.word_bytes} does not hold residues of {self.prime_bits} bits and depth {self.depth}"
        if self._fitting_clients < 1:
            return f"a scale of {self.scale_bits} bits leaves no room for bound={self.bound} under a prime of {self.prime_bits} bits"
        if self.max_clients < 1:
            return (
                f"half a grid step of 2^-{self.grid_bits} is only {self.margin(1):.1f} standard deviations of the noise, and rounding would be wrong; "
                "take a coarser grid, or a larger scale"
            )
        return None

    @property
    def log_modulus(self) -> int:
        """Bits of the ciphertext modulus; hybrid key switching adds primes of its own, which OpenFHE accounts for."""
        return self.prime_bits + self.depth * self.scale_bits

    @property
    def slots(self) -> int:
        """Real values in one ciphertext, including the canary."""
        return self.ring if self.packing == "complex" else self.ring // 2

    @property
    def values_per_ciphertext(self) -> int:
        """Real values in one ciphertext, not counting the canary."""
        return self.slots - 1

    @property
    def _fitting_clients(self) -> int:
        # Primes lie just below a power of two, so a quotient that is a whole number is one client too many.
        root = math.sqrt(2) if self.packing == "complex" else 1.0
        return math.ceil(2.0 ** (self.log_modulus - 1 - self.scale_bits + self.headroom_bits) / (root * self.bound)) - 1

    @property
    def max_clients(self) -> int:
        """The largest K for which a sum of K values cannot wrap around and half a grid step is at least 7 standard deviations of its noise.

        It cannot wrap around while sqrt(2) * K * bound * 2^scale < q / 2 for complex slots; for real slots the root is dropped.
        """
        fresh, added = self._noise_variances
        most = (self.quantisation_error * 2.0 ** (self.scale_bits - self.headroom_bits) / _MARGIN) ** 2 / (self.ring / 2) - added
        # The positive root of _ENCODING K^2 + fresh K = most.
        quiet = (math.sqrt(fresh**2 + 4 * _ENCODING * max(most, 0.0)) - fresh) / (2 * _ENCODING)
        return min(self._fitting_clients, math.floor(quiet))

    @property
    def quantisation_error(self) -> float:
        """Largest error of one value inside the bound: half a grid step."""
        return 2.0 ** -(self.grid_bits + 1)

    def noise_deviation(self, num_clients: int) -> float:
        """Standard deviation of a decrypted sum's noise, per real value.

        A fresh coefficient's variance is sigma^2 under the secret key and sigma^2 (1 + 4 N / 3) under the public one (ternary secrets; a joint key of P
        parties is a sum of P, and the second term P times as large); N / 2 of them make up a real value of a slot. Encoding rounds each coefficient, with
        variance 1 / 12; clients that send the same values round identically, which is the worst case assumed here. Each threshold share adds smudging noise
        of 2^20; flooding hides `noise_bits` with 30 bits of statistical security.
        """
        fresh, added = self._noise_variances
        return math.sqrt((num_clients * fresh + num_clients**2 * _ENCODING + added) * self.ring / 2) / 2.0 ** (self.scale_bits - self.headroom_bits)

    @property
    def _noise_variances(self) -> tuple[float, float]:
        """Noise variances of a coefficient: what each client adds, and what decryption adds."""
        fresh = _SIGMA**2 * (1.0 if self.key == "secret" else 1 + 4 * self.ring / 3 * self.num_parties)
        if self.decryption == "threshold":
            return fresh, self.num_parties * _SMUDGING**2
        return fresh, (_FLOODING * 2.0**self.noise_bits) ** 2 if self.decryption == "noise_flooding" else 0.0

    def margin(self, num_clients: int) -> float:
        """Half a grid step in standard deviations of the noise: a sum is rounded wrongly where a Gaussian exceeds that many."""
        return self.quantisation_error / self.noise_deviation(num_clients)

    @property
    def parameter_hash(self) -> str:
        """A hash that identifies the parameters on the wire."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def bytes_per_value(self) -> float:
        """Bytes of residues per value in a full ciphertext."""
        return 2 * self.ring * (1 + self.depth) * self.word_bytes / self.values_per_ciphertext

    def num_ciphertexts(self, num_values: int) -> int:
        """The number of ciphertexts that hold `num_values` values, the last one padded."""
        return -(-num_values // self.values_per_ciphertext)

    def require_clients(self, num_clients: int) -> None:
        """Raises EncryptionError if a sum over `num_clients` clients could overflow silently."""
        if not 1 <= num_clients <= self.max_clients:
            raise EncryptionError(
                f"num_clients={num_clients} lies outside 1 .. {self.max_clients}: profile {self.name!r} would overflow silently; "
                "aggregate in groups or lower the bound"
            )

    def for_size(self, num_values: int) -> Profile:
        """The same profile with the fastest ring for `num_values` values: from a million on, the largest of 16,384 and 8,192 that holds as many clients.

        Only single-prime complex packing offers a choice; a larger ring's noise leaves room for fewer clients.
        """
        if num_values < LARGE_FROM or self.depth or self.packing != "complex":
            return self
        for ring in LARGE_RINGS:
            if ring <= self.ring:
                continue
            with contextlib.suppress(EncryptionError):
                large = dataclasses.replace(self, ring=ring)
                if large.max_clients >= self.max_clients:
                    return large
        return self

    def to_json(self) -> str:
        """All attributes as JSON, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """The inverse of `to_json`.

        Raises:
          EncryptionError: if it is not a profile.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise EncryptionError(f"this is not a profile ({first_line(error)}); save it again with this version") from None


EXACT = Profile(
    "exact", ring=4096, prime_bits=57, scale_bits=48, security="HEStd_256_classic", grid_bits=24, bound=1.0,
    about="The decrypted sum equals the integer sum. Only its grid points are published, which closes the key-recovery leak of Li and Micciancio 2021 against "
    "passive attackers. Ciphertexts are malleable: authenticate them. One key holder can decrypt any single upload that it gets hold of.",
)  # fmt: skip

COMPACT = Profile(
    "compact", ring=4096, prime_bits=48, scale_bits=39, security="HEStd_256_classic", grid_bits=23, bound=1.0, key="secret", word_bytes=6,
    about="The fewest bytes: 6 for each residue, and the smaller noise of secret-key encryption. Every client holds the secret key and can read every other's "
    "upload.",
)  # fmt: skip

THRESHOLD = Profile(
    "threshold", ring=4096, prime_bits=60, scale_bits=52, security="HEStd_128_classic", grid_bits=19, bound=1.0, decryption="threshold", num_parties=100,
    about="No single party can decrypt: each of up to 100 holds a share of the secret key, and all must take part. The smudging noise is OpenFHE's "
    "fixed one (20 bits): it gives no bits of statistical security for any number of queries, so what shares reveal of a party's key is not bounded. Whoever "
    "combines the shares sees the sum before it is rounded.",
)  # fmt: skip

NOISE_FLOODING = Profile(
    "noise_flooding", ring=4096, prime_bits=60, scale_bits=59, security="HEStd_128_classic", grid_bits=12, bound=1.0, packing="real",
    decryption="noise_flooding", headroom_bits=7, noise_bits=13,
    about="OpenFHE's provable answer to Li and Micciancio: decryption adds noise that hides the ciphertext's by 30 bits of statistical security, once. "
    "The scale is OpenFHE's (59 bits), so values are divided by 128 first and the grid is coarse.",
)  # fmt: skip

TEXTBOOK = Profile(
    "textbook", ring=16384, prime_bits=60, scale_bits=50, security="HEStd_128_classic", grid_bits=24, bound=1.0, packing="real", depth=1,
    about="What tutorials and most users of CKKS run, for comparison: a multiplication that no aggregation needs, hybrid key switching, real packing.",
)  # fmt: skip

PROFILES = {profile.name: profile for profile in (EXACT, COMPACT, THRESHOLD, NOISE_FLOODING, TEXTBOOK)}


def named(profile: str | Profile) -> Profile:
    """The profile with this name, or the given profile itself.

    Raises:
      UsageError: if there is no profile with this name.
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise UsageError(f"profile={profile!r} is not one of {', '.join(PROFILES)}")
    return PROFILES[profile]


def table() -> list[dict[str, Any]]:
    """One row per profile, as `selgrad profiles` prints it."""
    rows = []
    for profile in PROFILES.values():
        rows.append(
            {
                "profile": profile.name, "security": profile.security.removeprefix("HEStd_"), "ring": profile.ring, "modulus_bits": profile.log_modulus,
                "scale_bits": profile.scale_bits, "packing": profile.packing, "key": profile.key, "decryption": profile.decryption,
                "clients": profile.max_clients, "bytes_per_value": round(profile.bytes_per_value, 1), "largest_error": profile.quantisation_error,
                "margin": round(profile.margin(profile.max_clients), 1),
            }
        )  # fmt: skip
    return rows
