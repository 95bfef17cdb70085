"""CKKS through OpenFHE: keys, encryption of selected entries, sum over clients, decryption to exact integers.

The only module that imports openfhe. Values stream through a bounded window of threads, and everything that does not fit is refused by name.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import io
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from selgrad.encryption import wire
from selgrad.encryption.layout import Layout
from selgrad.encryption.packing import require_finite
from selgrad.encryption.profiles import Profile, named
from selgrad.encryption.wire import Header
from selgrad.errors import EncryptionError

if TYPE_CHECKING:
    from selgrad.encryption.pool import ZeroPool

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Floats = npt.NDArray[np.floating[Any]]
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
    """Keys of one tag; who may not decrypt holds no secret, and who may not encrypt no public key.

    Attributes:
      public, secret: OpenFHE's; None where the holder has none.
      tag: names them.
    """

    public: Any
    secret: Any = dataclasses.field(repr=False)
    tag: str


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


class CKKS:
    """One profile's crypto context with its operations; host side, safe to use from threads, refused after fork.

    Args:
      profile: a name in `PROFILES`, or a profile.
      num_threads: worker threads; OpenFHE releases the interpreter lock.

    Attributes:
      layout: of this context's ciphertexts; None where it was not understood, or a modulus has several primes.

    Raises:
      EncryptionError: if OpenFHE does not load here, or gives other parameters than were asked for.
    """

    def __init__(self, profile: str | Profile = "exact", *, num_threads: int | None = None) -> None:
        self.profile = named(profile)
        self._fhe = _openfhe()
        require_unforked()
        self._context = self._make_context()
        # OpenFHE fills its tables of roots when they are first used, without a lock: two threads that come first together can crash the process.
        # One round in one thread fills them.
        self._threads = 1
        self.layout: Layout | None = None
        self.layout = self._learn_layout()
        if self.profile.word_bytes < 8 and self.layout is None:
            raise EncryptionError(f"profile {self.profile.name!r} sends bare residues, and this OpenFHE writes them in no known place; take profile 'exact'")
        self._threads = num_threads or min(8, len(os.sched_getaffinity(0)))

    def _make_context(self) -> Any:
        fhe, profile, parameters = self._fhe, self.profile, self._fhe.CCParamsCKKSRNS()
        parameters.SetSecurityLevel(getattr(fhe.SecurityLevel, profile.security))
        parameters.SetRingDim(profile.ring)
        parameters.SetBatchSize(profile.ring // 2)
        parameters.SetMultiplicativeDepth(profile.depth)
        parameters.SetFirstModSize(profile.prime_bits)
        parameters.SetScalingModSize(profile.scale_bits)
        # Hybrid key switching doubles the ring even where no switch happens.
        technique, switch = ("FLEXIBLEAUTO", "HYBRID") if profile.depth else ("FIXEDMANUAL", "BV")
        parameters.SetScalingTechnique(getattr(fhe.ScalingTechnique, technique))
        parameters.SetKeySwitchTechnique(getattr(fhe.KeySwitchTechnique, switch))
        parameters.SetCKKSDataType(getattr(fhe.CKKSDataType, profile.packing.upper()))
        if profile.decryption == "noise_flooding":
            parameters.SetDecryptionNoiseMode(fhe.DecryptionNoiseMode.NOISE_FLOODING_DECRYPT)
            parameters.SetExecutionMode(fhe.ExecutionMode.EXEC_EVALUATION)
            parameters.SetNoiseEstimate(profile.noise_bits)
        try:
            context = fhe.GenCryptoContext(parameters)
        except RuntimeError as error:
            raise EncryptionError(f"OpenFHE refuses profile {profile.name!r}: {_first_line(error)}") from None
        for feature in ("PKE", "LEVELEDSHE", *(["MULTIPARTY"] if profile.decryption == "threshold" else [])):
            context.Enable(getattr(fhe.PKESchemeFeature, feature))
        bits = int(context.GetModulusCKKS()).bit_length()
        if context.GetRingDimension() != profile.ring or bits > profile.prime_bits + 1:
            raise EncryptionError(
                f"OpenFHE gives ring {context.GetRingDimension()} and a prime of {bits} bits for profile {profile.name!r}, which asks for {profile.ring} and "
                f"{profile.prime_bits}; its security or its room for clients would not be what it says"
            )
        return context

    def _learn_layout(self) -> Layout | None:
        """One round of everything, which fills OpenFHE's tables; and where residues lie, if sums of residues are OpenFHE's own sums."""
        keys, values = self._first_keys(), np.zeros(1)
        fresh = [self._serialise(self._encrypt_one(keys, values, 0, None)) for _ in range(4)]
        loaded = [self._deserialise(part) for part in fresh]
        again = [self._serialise(one) for one in loaded]
        self._context.EvalAddInPlace(loaded[0], loaded[1])
        self._points(self._context.Decrypt(loaded[0], keys.secret), 2)
        if self.profile.depth:
            return None
        try:
            layout = Layout.learn([fresh, again], keys.tag, self.profile.ring, int(self._context.GetModulusCKKS()))
            total = layout.add([layout.residues(part, keys.tag) for part in fresh[:2]])
            if not np.array_equal(total, layout.residues(self._serialise(loaded[0]), keys.tag)):
                return None
            whole = self._points(self._context.Decrypt(self._deserialise(layout.serialise(total, keys.tag)), keys.secret), 2)
            return layout if not whole.any() else None
        except EncryptionError:
            return None

    def _adopt(self, keys: Keys) -> Keys:
        """Learns the form of ciphertexts under a loaded key: OpenFHE writes parameters again that are not the very same object."""
        if self.layout is not None and self.profile.key == "public":
            samples = [self._serialise(self._encrypt_one(keys, np.zeros(1), 0, None)) for _ in range(4)]
            self.layout = self.layout.extended(samples, keys.tag)
        return keys

    # Keys

    def keygen(self) -> Keys:
        """A fresh key pair.

        Raises:
          EncryptionError: for a threshold profile, whose secret nobody may hold; see `roles.Party`.
        """
        if self.profile.decryption == "threshold":
            raise EncryptionError(f"profile {self.profile.name!r} has no single key holder; make a key with its parties")
        return self._first_keys()

    def _first_keys(self) -> Keys:
        require_unforked()
        pair = self._context.KeyGen()
        return Keys(pair.publicKey, pair.secretKey, pair.publicKey.GetKeyTag())

    def share_keys(self, previous: Any = None) -> Keys:
        """One party's share of a joint secret, and the public key of all parties so far.

        Args:
          previous: the public key of the parties before; None for the first.
        """
        require_unforked()
        if previous is None:
            return self._first_keys()
        pair = self._context.MultipartyKeyGen(previous)
        return self._adopt(Keys(pair.publicKey, pair.secretKey, pair.publicKey.GetKeyTag()))

    def public_bytes(self, keys: Keys) -> bytes:
        """The public key, to send to clients."""
        raw: bytes = self._fhe.Serialize(keys.public, self._fhe.BINARY)
        return raw

    def secret_bytes(self, keys: Keys) -> bytes:
        """The secret key, to keep."""
        if keys.secret is None:
            raise EncryptionError("this party holds no secret key")
        raw: bytes = self._fhe.Serialize(keys.secret, self._fhe.BINARY)
        return raw

    def load_public(self, raw: bytes) -> Keys:
        """The inverse of `public_bytes`.

        Raises:
          EncryptionError: if the bytes are no public key of this profile.
        """
        key = self._load_key(self._fhe.DeserializePublicKeyString, raw, "public")
        return self._adopt(Keys(key, None, key.GetKeyTag()))

    def load_secret(self, raw: bytes) -> Keys:
        """The inverse of `secret_bytes`.

        Raises:
          EncryptionError: if the bytes are no secret key of this profile.
        """
        key = self._load_key(self._fhe.DeserializePrivateKeyString, raw, "secret")
        return Keys(None, key, key.GetKeyTag())

    def _load_key(self, load: Callable[[bytes, Any], Any], raw: bytes, kind: str) -> Any:
        require_unforked()
        try:
            key = load(raw, self._fhe.BINARY)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EncryptionError(f"{len(raw)} bytes are no {kind} key ({_first_line(error)}); fetch it again") from None
        if key is None or key.GetCryptoContext() != self._context:
            raise EncryptionError(f"{len(raw)} bytes are no {kind} key of profile {self.profile.name!r}; fetch it again")
        return key

    # Encryption

    def encrypt(self, keys: Keys, values: Floats, mask_hash: str, *, pool: ZeroPool | None = None) -> Ciphertexts:
        """Quantises and encrypts one client's selected entries; `encrypt_stream` in memory."""
        return self.encrypt_stream(keys, values, mask_hash, pool=pool).collect()

    def encrypt_stream(self, keys: Keys, values: Floats, mask_hash: str, *, pool: ZeroPool | None = None) -> Stream:
        """Quantises and encrypts one client's selected entries, a few ciphertexts at a time: memory does not grow with their number.

        Args:
          keys: the public one is used, or the secret one where the profile says so.
          values: (n,) float32 or float64, aggregation weights already applied (depth 0 has no multiplication); clipped to the bound.
          mask_hash: of the selection.
          pool: ready encryptions of zero to add the values to.

        Raises:
          EncryptionError: for NaN or infinity (when that part of the stream is read), a missing key, or in a forked process.
        """
        require_unforked()
        profile, per = self.profile, self.profile.values_per_ciphertext
        if self._key_that_encrypts(keys) is None:
            raise EncryptionError(f"profile {profile.name!r} encrypts under the {profile.key} key, and this party has none")
        header = Header(
            profile.parameter_hash, keys.tag, mask_hash, values.size, 1, profile.grid_bits, num_parts=profile.num_ciphertexts(values.size)
        )  # fmt: skip

        def one(start: int) -> bytes:
            return self._to_wire(self._encrypt_one(keys, values[start : start + per], start, pool), keys.tag)

        return Stream(header, self._stream(one, range(0, values.size, per)))

    def _encrypt_one(self, keys: Keys, chunk: Floats, start: int, pool: ZeroPool | None) -> Any:
        profile = self.profile
        require_finite(chunk, start)
        slots = np.zeros(profile.slots)
        view = slots[: chunk.size]
        view[:] = chunk
        np.clip(view, -profile.bound, profile.bound, out=view)
        view *= 2.0**profile.grid_bits
        np.rint(view, out=view)
        slots[-1] = self._canary
        slots *= 2.0 ** -(profile.grid_bits + profile.headroom_bits)
        packed = self._pack(slots)
        if pool is None:
            return self._context.Encrypt(self._key_that_encrypts(keys), packed)
        zero = pool.take(keys.tag)
        self._context.EvalAddInPlace(zero, packed)
        return zero

    @property
    def _canary(self) -> float:
        """A known value in the last slot, in grid units: three quarters of the bound."""
        return max(1.0, float(np.floor(_CANARY * self.profile.bound * 2.0**self.profile.grid_bits)))

    def encrypt_zero(self, keys: Keys) -> Any:
        """A fresh encryption of zero for a pool, without a canary: adding values brings it."""
        require_unforked()
        return self._context.Encrypt(self._key_that_encrypts(keys), self._pack(np.zeros(self.profile.slots)))

    def _key_that_encrypts(self, keys: Keys) -> Any:
        return keys.secret if self.profile.key == "secret" else keys.public

    def _pack(self, slots: npt.NDArray[np.float64]) -> Any:
        return self._context.MakeCKKSPackedPlaintext(slots.view(np.complex128) if self.profile.packing == "complex" else slots)

    # The aggregator

    def add(self, clients: Sequence[Source], *, raw: bool = False) -> Ciphertexts:
        """The encrypted sum over clients; `add_stream` in memory."""
        return self.add_stream(clients, raw=raw).collect()

    def add_stream(self, clients: Sequence[Source], *, raw: bool = False) -> Stream:
        """The encrypted sum over clients; needs no key.

        Args:
          clients: ciphertexts of one selection, one profile and one key.
          raw: adds residues without OpenFHE, many times faster; profiles that send bare residues always do.

        Raises:
          EncryptionError: if keys, masks, profiles or lengths differ, the sum could overflow, a ciphertext is damaged (when that part of the stream is
            read), or `raw` is asked for and the self-test of the layout did not pass.
        """
        require_unforked()
        if not clients:
            raise EncryptionError("there are no ciphertexts to add; wait for at least one client")
        first = clients[0].header
        for other in (client.header for client in clients):
            self._require_profile(other)
            _require_same("key", first.key_tag, other.key_tag, "all clients must encrypt under one public key")
            _require_same("mask", first.mask_hash, other.mask_hash, "sum only clients that encrypted the same entries")
            _require_same("number of values", first.num_values, other.num_values, "sum only clients of one model")
        total = sum(client.header.num_clients for client in clients)
        self.profile.require_clients(total)
        if raw and self.layout is None:
            raise EncryptionError("raw=True needs the layout of OpenFHE's ciphertexts, and its self-test did not pass here; leave raw out")

        def by_residues(parts: Sequence[bytes]) -> bytes:
            assert self.layout is not None
            return self._from_residues(self.layout.add([self._residues(part, first.key_tag) for part in parts]), first.key_tag)

        def by_openfhe(parts: Sequence[bytes]) -> bytes:
            result = self._load(parts[0], first.key_tag)
            for part in parts[1:]:
                try:
                    self._context.EvalAddInPlace(result, self._load(part, first.key_tag))
                except RuntimeError as error:
                    raise EncryptionError(f"OpenFHE refuses to add: {_first_line(error)}; are both under one key?") from None
            return self._to_wire(result, first.key_tag)

        one = by_residues if raw or self.profile.word_bytes < 8 else by_openfhe
        together = zip(*clients, strict=True)
        return Stream(dataclasses.replace(first, num_clients=total), self._stream(one, together))

    def check(self, ciphertexts: Source) -> None:
        """Looks at every ciphertext of an upload without adding it, so that one that is damaged can be told from the others.

        Raises:
          EncryptionError: if one is damaged, or the header does not fit the profile.
        """
        self._require_profile(ciphertexts.header)
        for part in ciphertexts:
            if self.layout is None:
                self._deserialise(part)
            else:
                self._residues(part, ciphertexts.header.key_tag)

    # The key holder

    def decrypt(self, keys: Keys, ciphertexts: Source, mask_hash: str) -> npt.NDArray[np.int64]:
        """The exact integer sum in grid units, shape (n,); publish this and nothing finer.

        Raises:
          EncryptionError: for another key, mask or profile, a threshold profile, or a decrypted value off the grid.
        """
        if self.profile.decryption == "threshold":
            raise EncryptionError(f"profile {self.profile.name!r} is decrypted by all parties together; collect their shares")
        self._require_whole(ciphertexts.header, keys, mask_hash)
        if keys.secret is None:
            raise EncryptionError("this party holds no secret key and cannot decrypt; send the sum to the key holder")

        def one(part: bytes) -> npt.NDArray[np.int64]:
            try:
                plain = self._context.Decrypt(self._load(part, keys.tag), keys.secret)
            except RuntimeError as error:
                raise EncryptionError(f"OpenFHE refuses to decrypt: {_first_line(error)}; is this the right key?") from None
            return self._points(plain, ciphertexts.header.num_clients)

        return self._gather(ciphertexts.header, self._stream(one, ciphertexts))

    def share(self, keys: Keys, ciphertexts: Source, mask_hash: str, *, lead: bool) -> Stream:
        """One party's share of a decryption; all parties' together give the sum, and any fewer give nothing.

        Args:
          keys: of the party.
          ciphertexts: the sum; its key is the joint one.
          mask_hash: of the selection.
          lead: for exactly one party.
        """
        self._require_profile(ciphertexts.header)
        _require_same("mask", mask_hash, ciphertexts.header.mask_hash, "decrypt with the mask that was encrypted")
        decrypt = self._context.MultipartyDecryptLead if lead else self._context.MultipartyDecryptMain

        def one(part: bytes) -> bytes:
            return self._serialise(decrypt([self._load(part, ciphertexts.header.key_tag)], keys.secret)[0])

        return Stream(ciphertexts.header, self._stream(one, ciphertexts))

    def combine(self, shares: Sequence[Source], mask_hash: str) -> npt.NDArray[np.int64]:
        """The exact integer sum in grid units from the shares of all parties.

        Raises:
          EncryptionError: if the shares are of different sums, or are not of all parties.
        """
        if not shares:
            raise EncryptionError("there are no shares to combine; wait for all parties")
        first = shares[0].header
        for other in (share.header for share in shares):
            self._require_profile(other)
            if other != first:
                raise EncryptionError("the shares are of different sums; ask all parties for shares of one")
        _require_same("mask", mask_hash, first.mask_hash, "combine with the mask that was encrypted")

        def one(parts: Sequence[bytes]) -> npt.NDArray[np.int64]:
            try:
                plain = self._context.MultipartyDecryptFusion([self._deserialise(part) for part in parts])
            except RuntimeError as error:
                raise EncryptionError(f"OpenFHE refuses to combine {len(shares)} shares: {_first_line(error)}; are they of all parties?") from None
            return self._points(plain, first.num_clients)

        return self._gather(first, self._stream(one, zip(*shares, strict=True)))

    def _gather(self, header: Header, chunks: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        result, at = np.empty(header.num_values, np.int64), 0
        for chunk in chunks:
            part = chunk[: header.num_values - at]
            result[at : at + part.size] = part
            at += part.size
        return result

    def _points(self, plain: Any, num_clients: int) -> npt.NDArray[np.int64]:
        """Grid points of one decrypted ciphertext, without the canary."""
        profile = self.profile
        plain.SetLength(profile.ring // 2)
        if profile.packing == "complex":
            slots = np.ascontiguousarray(plain.GetCKKSPackedValueArray()).view(np.float64)
        else:
            slots = np.array(plain.GetRealPackedValueArray())
        slots *= 2.0 ** (profile.grid_bits + profile.headroom_bits)
        rounded = np.rint(slots)
        slots -= rounded
        # Seven standard deviations of the noise, which are a quarter of a step or less in most profiles.
        allowed = min(0.49, max(0.25, 3.5 / profile.margin(num_clients)))
        if rounded[-1] != num_clients * self._canary or not np.abs(slots).max() <= allowed:
            raise EncryptionError("a decrypted ciphertext is off the grid: wrong or missing secret key, damaged ciphertext or overflow")
        return rounded[:-1].astype(np.int64)

    # Bytes

    def _serialise(self, ciphertext: Any) -> bytes:
        raw: bytes = self._fhe.Serialize(ciphertext, self._fhe.BINARY)
        return raw

    def _deserialise(self, part: bytes) -> Any:
        try:
            loaded = self._fhe.DeserializeCiphertextString(part, self._fhe.BINARY)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EncryptionError(f"a ciphertext of {len(part)} bytes is truncated or damaged ({_first_line(error)})") from None
        if loaded is None:
            raise EncryptionError(f"{len(part)} bytes are no ciphertext; ask the client to send them again")
        return loaded

    def _to_wire(self, ciphertext: Any, tag: str) -> bytes:
        part = self._serialise(ciphertext)
        return part if self.layout is None else self._from_residues(self.layout.residues(part, tag), tag)

    def _residues(self, part: bytes, tag: str) -> Any:
        assert self.layout is not None
        return self.layout.unpack(part, self.profile.word_bytes) if self.profile.word_bytes < 8 else self.layout.residues(part, tag)

    def _from_residues(self, residues: Any, tag: str) -> bytes:
        assert self.layout is not None
        return self.layout.pack(residues, self.profile.word_bytes) if self.profile.word_bytes < 8 else self.layout.serialise(residues, tag)

    def _load(self, part: bytes, tag: str) -> Any:
        """OpenFHE's ciphertext; it never sees bytes that are none, which could crash it."""
        if self.layout is None:
            return self._deserialise(part)
        residues = self._residues(part, tag)
        return self._deserialise(self.layout.serialise(residues, tag) if self.profile.word_bytes < 8 else part)

    def _require_profile(self, header: Header) -> None:
        _require_same("profile", self.profile.parameter_hash, header.parameter_hash, "all parties must use one profile")
        _require_same("grid", self.profile.grid_bits, header.grid_bits, "all parties must use one grid")
        expected = self.profile.num_ciphertexts(header.num_values)
        if header.num_parts != expected:
            raise EncryptionError(f"{header.num_parts} ciphertexts for {header.num_values} values, which fill {expected}; ask the client to send them again")
        self.profile.require_clients(header.num_clients)

    def _require_whole(self, header: Header, keys: Keys, mask_hash: str) -> None:
        require_unforked()
        self._require_profile(header)
        _require_same("key", keys.tag, header.key_tag, "decrypt with the secret key of the public key that encrypted")
        _require_same("mask", mask_hash, header.mask_hash, "decrypt with the mask that was encrypted")

    def _stream(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Results in order, from a window of a few items per thread."""
        if self._threads == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            window: collections.deque[Any] = collections.deque()
            try:
                for item in items:
                    window.append(pool.submit(function, item))
                    if len(window) > 4 * self._threads:
                        yield window.popleft().result()
                while window:
                    yield window.popleft().result()
            finally:
                for future in window:
                    future.cancel()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _require_same(what: str, asked: Any, found: Any, remedy: str) -> None:
    if asked != found:
        raise EncryptionError(f"{what} {found!s:.16} does not match {asked!s:.16}; {remedy}")
