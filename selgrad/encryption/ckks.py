"""CKKS through OpenFHE: keys, encryption of selected entries, sum over clients, decryption to exact integers.

The only module that imports openfhe. Ciphertexts travel as bytes with a header, and everything that does not fit is refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad.encryption.packing import quantise
from selgrad.encryption.profiles import PROFILES, Profile
from selgrad.errors import EncryptionError

_MAGIC = b"selgrad-ckks\x00\x01"
_CANARY = 0.75
_state = {"forked": False}


def _mark_fork() -> None:
    _state["forked"] = True


def require_unforked() -> None:
    """Raises EncryptionError in a process made by fork from one that had loaded OpenFHE: the two share a random generator.

    Two such processes make identical ciphertexts, whose difference decrypts under any key.
    """
    if _state["forked"]:
        raise EncryptionError("this process was forked after OpenFHE was loaded and would repeat its parent's randomness; start it with spawn")


@functools.cache
def _openfhe() -> Any:
    try:
        module = importlib.import_module("openfhe")
    except ImportError as error:
        raise EncryptionError(unavailable_because(error)) from None
    os.register_at_fork(after_in_child=_mark_fork)
    return module


def unavailable_because(error: ImportError) -> str:
    """One line on why OpenFHE does not load here, with the remedy."""
    version = platform.python_version()
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"OpenFHE does not load on Python {version} ({reason}); its wheels hold CPython 3.10 (glibc >= 2.35) and 3.12 (glibc >= 2.38) "
        "extensions for x86-64 Linux: run with `uv run --python 3.10`"
    )


def unavailable() -> str | None:
    """None where encryption works, else one line that says why it does not."""
    try:
        _openfhe()
    except EncryptionError as error:
        return str(error)
    return None


@dataclasses.dataclass(frozen=True)
class Keys:
    """A key pair and its tag; `secret` stays with the key holder."""

    public: Any
    secret: Any = dataclasses.field(repr=False)
    tag: str


@dataclasses.dataclass(frozen=True)
class Ciphertexts:
    """Encrypted entries of one client, or a sum over clients.

    Attributes:
      parameter_hash, key_tag, mask_hash: of the profile, the key and the selection; sums of unequal ones are refused.
      num_values: entries held.
      num_clients: summed so far.
      parts: one serialised ciphertext per `values_per_ciphertext` entries.
    """

    parameter_hash: str
    key_tag: str
    mask_hash: str
    num_values: int
    num_clients: int
    parts: tuple[bytes, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes on the wire, header included."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Magic, SHA-256 of the rest, header length, header, ciphertexts. The checksum finds damage; it authenticates nobody."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "parts"}
        header = json.dumps(fields | {"lengths": [len(p) for p in self.parts]}, sort_keys=True).encode()
        rest = len(header).to_bytes(4, "big") + header + b"".join(self.parts)
        return _MAGIC + hashlib.sha256(rest).digest() + rest

    @classmethod
    def from_bytes(cls, raw: bytes) -> Ciphertexts:
        """The inverse of `to_bytes`.

        Raises:
          EncryptionError: if the bytes are truncated, damaged or no ciphertexts of this version.
        """
        start = len(_MAGIC)
        if raw[:start] != _MAGIC:
            raise EncryptionError(f"these {len(raw)} bytes are no selgrad ciphertexts (they begin {raw[:8].hex() or 'empty'})")
        digest, rest = raw[start : start + 32], raw[start + 32 :]
        if hashlib.sha256(rest).digest() != digest:
            raise EncryptionError(f"the ciphertexts of {len(raw)} bytes are truncated or damaged (checksum); ask the client to send them again")
        header_end = 4 + int.from_bytes(rest[:4], "big")
        try:
            fields = json.loads(rest[4:header_end])
            ends = np.cumsum([0, *fields.pop("lengths")])
            body = rest[header_end:]
            return cls(parts=tuple(body[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)), **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncryptionError(
                f"the header of {len(raw)} bytes of ciphertexts is malformed ({type(error).__name__}); ask the client to send them again"
            ) from None


class CKKS:
    """One profile's crypto context with its four operations; host side, safe to use from threads, refused after fork.

    Args:
      profile: a name in `PROFILES`, or a profile.
      num_threads: worker threads; OpenFHE releases the interpreter lock.

    Raises:
      EncryptionError: if OpenFHE does not load here.
    """

    def __init__(self, profile: str | Profile = "exact", *, num_threads: int | None = None) -> None:
        self.profile = PROFILES[profile] if isinstance(profile, str) else profile
        self._fhe = fhe = _openfhe()
        require_unforked()
        parameters = fhe.CCParamsCKKSRNS()
        parameters.SetSecurityLevel(getattr(fhe.SecurityLevel, self.profile.security))
        parameters.SetRingDim(self.profile.ring)
        parameters.SetBatchSize(self.profile.ring // 2)
        parameters.SetMultiplicativeDepth(0)
        parameters.SetFirstModSize(self.profile.prime_bits)
        parameters.SetScalingModSize(self.profile.scale_bits)
        parameters.SetScalingTechnique(fhe.ScalingTechnique.FIXEDMANUAL)
        # Hybrid key switching doubles the ring even where no switch happens.
        parameters.SetKeySwitchTechnique(fhe.KeySwitchTechnique.BV)
        parameters.SetCKKSDataType(fhe.CKKSDataType.COMPLEX)
        self._context = fhe.GenCryptoContext(parameters)
        self._context.Enable(fhe.PKESchemeFeature.PKE)
        self._context.Enable(fhe.PKESchemeFeature.LEVELEDSHE)
        # OpenFHE fills its tables of roots when they are first used, without a lock: two threads that come first together can crash the process.
        # One round in one thread fills them.
        self._threads = 1
        keys = self.keygen()
        once = self.encrypt(keys, np.zeros(1), "")
        self.decrypt(keys, self.add([once, once]), "")
        self._threads = num_threads or min(8, os.cpu_count() or 1)

    def _map(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(function, *items))

    def keygen(self) -> Keys:
        """A fresh key pair."""
        require_unforked()
        pair = self._context.KeyGen()
        return Keys(pair.publicKey, pair.secretKey, pair.publicKey.GetKeyTag())

    def encrypt(self, keys: Keys, values: npt.NDArray[np.float64], mask_hash: str) -> Ciphertexts:
        """Quantises and encrypts one client's selected entries under the public key.

        Args:
          keys: only the public one is used.
          values: (n,) float64, aggregation weights already applied (depth 0 has no multiplication).
          mask_hash: of the selection.

        Raises:
          EncryptionError: for NaN or infinity, or in a forked process.
        """
        require_unforked()
        points, profile = quantise(values, self.profile), self.profile
        per = profile.values_per_ciphertext

        def one(start: int) -> bytes:
            slots = np.zeros(profile.ring)
            chunk = points[start : start + per]
            slots[: chunk.size] = chunk / 2.0**profile.grid_bits
            slots[-1] = _CANARY
            packed = self._context.MakeCKKSPackedPlaintext(slots.view(np.complex128))
            serialised: bytes = self._fhe.Serialize(self._context.Encrypt(keys.public, packed), self._fhe.BINARY)
            return serialised

        parts = self._map(one, range(0, points.size, per))
        return Ciphertexts(profile.parameter_hash, keys.tag, mask_hash, points.size, 1, tuple(parts))

    def _load(self, part: bytes) -> Any:
        try:
            loaded = self._fhe.DeserializeCiphertextString(part, self._fhe.BINARY)
        except (RuntimeError, ValueError) as error:
            raise EncryptionError(f"a ciphertext of {len(part)} bytes is truncated or damaged ({str(error).splitlines()[0]})") from None
        if loaded is None:
            raise EncryptionError(f"{len(part)} bytes are no ciphertext; ask the client to send them again")
        return loaded

    def _require_same(self, what: str, asked: Any, found: Any, remedy: str) -> None:
        if asked != found:
            raise EncryptionError(f"{what} {found!s:.16} does not match {asked!s:.16}; {remedy}")

    def _require_whole(self, ciphertexts: Ciphertexts) -> None:
        expected = self.profile.num_ciphertexts(ciphertexts.num_values)
        if len(ciphertexts.parts) != expected:
            raise EncryptionError(
                f"{len(ciphertexts.parts)} ciphertexts for {ciphertexts.num_values} values, which fill {expected}; ask the client to send them again"
            )

    def add(self, clients: Sequence[Ciphertexts]) -> Ciphertexts:
        """The encrypted sum over clients; needs no key.

        Raises:
          EncryptionError: if keys, masks, profiles or lengths differ, or the sum could overflow.
        """
        require_unforked()
        if not clients:
            raise EncryptionError("there are no ciphertexts to add; wait for at least one client")
        first = clients[0]
        for other in clients:
            self._require_same("profile", self.profile.parameter_hash, other.parameter_hash, "all clients must use one profile")
            self._require_same("key", first.key_tag, other.key_tag, "all clients must encrypt under one public key")
            self._require_same("mask", first.mask_hash, other.mask_hash, "sum only clients that encrypted the same entries")
            self._require_same("number of values", first.num_values, other.num_values, "sum only clients of one model")
            self._require_whole(other)
        total = sum(c.num_clients for c in clients)
        self.profile.require_clients(total)

        def one(*parts: bytes) -> bytes:
            result = self._load(parts[0])
            for part in parts[1:]:
                try:
                    self._context.EvalAddInPlace(result, self._load(part))
                except RuntimeError as error:
                    raise EncryptionError(f"OpenFHE refuses to add: {str(error).splitlines()[0]}; are both under one key?") from None
            serialised: bytes = self._fhe.Serialize(result, self._fhe.BINARY)
            return serialised

        parts = self._map(one, *(c.parts for c in clients))
        return dataclasses.replace(first, num_clients=total, parts=tuple(parts))

    def decrypt(self, keys: Keys, ciphertexts: Ciphertexts, mask_hash: str) -> npt.NDArray[np.int64]:
        """The exact integer sum in grid units, shape (n,); publish this and nothing finer.

        Raises:
          EncryptionError: for another key, mask or profile, or a decrypted value off the grid.
        """
        require_unforked()
        profile = self.profile
        self._require_same("profile", profile.parameter_hash, ciphertexts.parameter_hash, "decrypt with the profile that encrypted")
        self._require_same("key", keys.tag, ciphertexts.key_tag, "decrypt with the secret key of the public key that encrypted")
        self._require_same("mask", mask_hash, ciphertexts.mask_hash, "decrypt with the mask that was encrypted")
        self._require_whole(ciphertexts)

        def one(part: bytes) -> npt.NDArray[np.int64]:
            try:
                plain = self._context.Decrypt(self._load(part), keys.secret)
            except RuntimeError as error:
                raise EncryptionError(f"OpenFHE refuses to decrypt: {str(error).splitlines()[0]}; is this the right key?") from None
            plain.SetLength(profile.ring // 2)
            slots = np.ascontiguousarray(plain.GetCKKSPackedValueArray()).view(np.float64)
            points = slots * 2.0**profile.grid_bits
            rounded = np.rint(points)
            canary = ciphertexts.num_clients * _CANARY * 2.0**profile.grid_bits
            if rounded[-1] != canary or np.abs(points - rounded).max() > 0.25:
                raise EncryptionError("a decrypted ciphertext is off the grid: wrong secret key, damaged ciphertext or overflow")
            return rounded[:-1].astype(np.int64)

        if not ciphertexts.parts:
            return np.zeros(0, np.int64)
        return np.concatenate(self._map(one, ciphertexts.parts))[: ciphertexts.num_values]
