"""CKKS: keys, encryption of selected entries, sums over clients, and decryption to exact integers.

Values stream through a bounded window of threads, and an error names whatever does not match; operations on a single ciphertext are in `context`.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from selgrad.encryption.ciphertexts import Ciphertexts, Source, Stream
from selgrad.encryption.context import Context, Keys
from selgrad.encryption.layout import Layout
from selgrad.encryption.openfhe import require_unforked
from selgrad.encryption.packing import Floats, as_vector, require_within
from selgrad.encryption.profiles import Profile, named
from selgrad.encryption.wire import Header
from selgrad.errors import EncryptionError, first_line

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@runtime_checkable
class Zeros(Protocol):
    """A stock of ready encryptions of zero: `pool.ZeroPool`."""

    def take(self, tag: str) -> Any:
        """Takes one under the key with this tag; it is never given out again."""
        ...


class CKKS:
    """The operations of one profile, on the host; safe to use from threads, refused after a fork.

    Args:
      profile: a name in `PROFILES`, or a profile.
      num_threads: worker threads; OpenFHE releases the interpreter lock.

    Attributes:
      context: handles single ciphertexts and keys with OpenFHE.

    Raises:
      EncryptionError: if OpenFHE does not load here, or gives other parameters than those requested.
    """

    def __init__(self, profile: str | Profile = "exact", *, num_threads: int | None = None) -> None:
        self.profile = named(profile)
        self.context = Context(self.profile)
        self._threads = num_threads or min(8, len(os.sched_getaffinity(0)))

    @property
    def layout(self) -> Layout | None:
        """The layout of this context's ciphertexts; None where it was not understood, or the modulus has several primes."""
        return self.context.layout

    # Keys

    def keygen(self) -> Keys:
        """A fresh key pair.

        Raises:
          EncryptionError: for a threshold profile, whose secret no single party may hold; see `roles.Party`.
        """
        if self.profile.decryption == "threshold":
            raise EncryptionError(f"profile {self.profile.name!r} has no single key holder; make a key with its parties")
        return self.context.fresh_keys()

    def share_keys(self, previous: Any = None) -> Keys:
        """One party's share of a joint secret, and the public key of all parties so far.

        Args:
          previous: the public key of the previous parties; None for the first.
        """
        require_unforked()
        if previous is None:
            return self.context.fresh_keys()
        return self.context.adopt(Keys.of(self.context.native.MultipartyKeyGen(previous)))

    def public_bytes(self, keys: Keys) -> bytes:
        """The public key, to send to clients."""
        return self.context.serialise(keys.public)

    def secret_bytes(self, keys: Keys) -> bytes:
        """The secret key, to keep."""
        if keys.secret is None:
            raise EncryptionError("this party holds no secret key")
        return self.context.serialise(keys.secret)

    def load_public(self, raw: bytes) -> Keys:
        """The inverse of `public_bytes`.

        Raises:
          EncryptionError: if the bytes are not a public key of this profile.
        """
        key = self.context.load_key(raw, "public")
        return self.context.adopt(Keys(key, None, key.GetKeyTag()))

    def load_secret(self, raw: bytes) -> Keys:
        """The inverse of `secret_bytes`.

        Raises:
          EncryptionError: if the bytes are not a secret key of this profile.
        """
        key = self.context.load_key(raw, "secret")
        return Keys(None, key, key.GetKeyTag())

    # Encryption

    def encrypt(self, keys: Keys, values: Any, mask_hash: str, *, pool: Zeros | None = None, clip: bool = False) -> Ciphertexts:
        """Quantises and encrypts one client's selected entries: `encrypt_stream`, collected in memory."""
        return self.encrypt_stream(keys, values, mask_hash, pool=pool, clip=clip).collect()

    def encrypt_stream(self, keys: Keys, values: Any, mask_hash: str, *, pool: Zeros | None = None, clip: bool = False) -> Stream:
        """Quantises and encrypts one client's selected entries, a few ciphertexts at a time: memory does not grow with their number.

        Args:
          keys: the public key is used, or the secret key where the profile says so.
          values: (n,) float32 or float64 with aggregation weights already applied (depth 0 has no multiplication); each within the
            profile's bound, which is 1 unless it was replaced.
          mask_hash: of the selection.
          pool: ready encryptions of zero to add the values to.
          clip: whether values beyond the bound are clipped to it, which the caller then counts; otherwise they are refused.

        Raises:
          EncryptionError: for NaN, infinity or a value beyond the bound (raised when that part of the stream is read), for values that are not a vector of
            floats, for a missing key, or in a forked process.
        """
        require_unforked()
        values = as_vector(values)
        profile, per = self.profile, self.profile.values_per_ciphertext
        if self.context.key_that_encrypts(keys) is None:
            raise EncryptionError(f"profile {profile.name!r} encrypts under the {profile.key} key, and this party has none")
        header = Header(
            profile.parameter_hash, keys.tag, mask_hash, values.size, 1, profile.grid_bits, num_parts=profile.num_ciphertexts(values.size)
        )  # fmt: skip

        def encrypt_part(start: int) -> bytes:
            chunk = values[start : start + per]
            if not clip:
                require_within(chunk, profile, start)
            return self.context.to_wire(self._encrypt_one(keys, chunk, start, pool), keys.tag)

        return Stream(header, self.in_order(encrypt_part, range(0, values.size, per)))

    def _encrypt_one(self, keys: Keys, chunk: Floats, start: int, pool: Zeros | None) -> Any:
        plain = self.context.encode(chunk, start)
        if pool is None:
            return self.context.encrypt(keys, plain)
        zero = pool.take(keys.tag)
        self.context.native.EvalAddInPlace(zero, plain)
        return zero

    def encrypt_zero(self, keys: Keys) -> Any:
        """A fresh encryption of zero for a pool, without a canary, which comes with the values that are added."""
        require_unforked()
        return self.context.encrypt(keys, self.context.pack(np.zeros(self.profile.slots)))

    # The aggregator

    def add(self, clients: Sequence[Source], *, raw: bool = False) -> Ciphertexts:
        """The encrypted sum over clients: `add_stream`, collected in memory."""
        return self.add_stream(clients, raw=raw).collect()

    def add_stream(self, clients: Sequence[Source], *, raw: bool = False) -> Stream:
        """The encrypted sum over clients, computed without any key.

        Args:
          clients: ciphertexts of one selection, one profile and one key.
          raw: whether to add residues without OpenFHE, which is many times faster; profiles that send bare residues always do.

        Raises:
          EncryptionError: if keys, masks, profiles or lengths differ, the sum could overflow, a ciphertext is damaged (raised when that part of the stream is
            read), or `raw` is set and the self-test of the layout did not pass.
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
        context = self.context

        def by_residues(parts: Sequence[bytes]) -> bytes:
            assert self.layout is not None
            return context.from_residues(self.layout.add([context.residues(part, first.key_tag) for part in parts]), first.key_tag)

        def by_openfhe(parts: Sequence[bytes]) -> bytes:
            result = context.load(parts[0], first.key_tag)
            for part in parts[1:]:
                try:
                    context.native.EvalAddInPlace(result, context.load(part, first.key_tag))
                except RuntimeError as error:
                    raise EncryptionError(f"OpenFHE refuses to add: {first_line(error)}; are both under one key?") from None
            return context.to_wire(result, first.key_tag)

        add_parts = by_residues if raw or self.profile.word_bytes < 8 else by_openfhe
        grouped = zip(*clients, strict=True)
        return Stream(dataclasses.replace(first, num_clients=total), self.in_order(add_parts, grouped))

    def check(self, ciphertexts: Source) -> None:
        """Validates every ciphertext of an upload without adding it, so that a damaged upload can be identified.

        Raises:
          EncryptionError: if one is damaged, or the header does not match the profile.
        """
        self._require_profile(ciphertexts.header)
        for part in ciphertexts:
            if self.layout is None:
                self.context.load(part, ciphertexts.header.key_tag)
            else:
                self.context.residues(part, ciphertexts.header.key_tag)

    # The key holder

    def decrypt(self, keys: Keys, ciphertexts: Source, mask_hash: str) -> npt.NDArray[np.int64]:
        """The exact integer sum in grid units, shape (n,); never publish anything finer.

        Raises:
          EncryptionError: for another key, mask or profile, a threshold profile, or a decrypted value that is off the grid or beyond the bound of all clients.
        """
        if self.profile.decryption == "threshold":
            raise EncryptionError(f"profile {self.profile.name!r} is decrypted by all parties together; collect their shares")
        self._require_whole(ciphertexts.header, keys, mask_hash)
        if keys.secret is None:
            raise EncryptionError("this party holds no secret key and cannot decrypt; send the sum to the key holder")

        def decrypt_part(part: bytes) -> npt.NDArray[np.int64]:
            try:
                plain = self.context.native.Decrypt(self.context.load(part, keys.tag), keys.secret)
            except RuntimeError as error:
                raise EncryptionError(f"OpenFHE refuses to decrypt: {first_line(error)}; is this the right key?") from None
            return self.context.points(plain, ciphertexts.header.num_clients)

        return self._gather(ciphertexts.header, self.in_order(decrypt_part, ciphertexts))

    def share(self, keys: Keys, ciphertexts: Source, mask_hash: str, *, lead: bool) -> Stream:
        """One party's decryption share; the shares of all parties together give the sum, and fewer reveal nothing.

        Args:
          keys: of the party.
          ciphertexts: the sum, under the joint key.
          mask_hash: of the selection.
          lead: True for exactly one party.

        Raises:
          EncryptionError: for another profile or mask, or in a forked process, which would add the same smudging noise as its parent.
        """
        require_unforked()
        self._require_profile(ciphertexts.header)
        _require_same("mask", mask_hash, ciphertexts.header.mask_hash, "decrypt with the mask that was encrypted")
        native = self.context.native
        decrypt = native.MultipartyDecryptLead if lead else native.MultipartyDecryptMain

        def share_part(part: bytes) -> bytes:
            return self.context.serialise(decrypt([self.context.load(part, ciphertexts.header.key_tag)], keys.secret)[0])

        return Stream(ciphertexts.header, self.in_order(share_part, ciphertexts))

    def combine(self, shares: Sequence[Source], mask_hash: str) -> npt.NDArray[np.int64]:
        """The exact integer sum in grid units from the shares of all parties.

        Raises:
          EncryptionError: if the shares belong to different sums, or are not from all parties, or a value is off the grid or beyond the bound of all clients.
        """
        if not shares:
            raise EncryptionError("there are no shares to combine; wait for all parties")
        first = shares[0].header
        for other in (share.header for share in shares):
            self._require_profile(other)
            if other != first:
                raise EncryptionError("the shares are of different sums; ask all parties for shares of one")
        _require_same("mask", mask_hash, first.mask_hash, "combine with the mask that was encrypted")

        def combine_parts(parts: Sequence[bytes]) -> npt.NDArray[np.int64]:
            try:
                plain = self.context.native.MultipartyDecryptFusion([self.context.load_share(part) for part in parts])
            except RuntimeError as error:
                raise EncryptionError(f"OpenFHE refuses to combine {len(shares)} shares: {first_line(error)}; are they of all parties?") from None
            return self.context.points(plain, first.num_clients)

        return self._gather(first, self.in_order(combine_parts, zip(*shares, strict=True)))

    def _gather(self, header: Header, chunks: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        # Memory for what a header announces is not allocated before the values arrive.
        parts, remaining = [], header.num_values
        for chunk in chunks:
            parts.append(chunk[:remaining])
            remaining -= parts[-1].size
        if remaining:
            raise EncryptionError(f"the ciphertexts end {remaining} values before the {header.num_values} that their header announces; ask for them again")
        points = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        if np.abs(points).max(initial=0) > header.num_clients * round(self.profile.bound * 2.0**self.profile.grid_bits):
            raise EncryptionError(f"a decrypted value lies beyond the bound {self.profile.bound:g} of {header.num_clients} clients; one of them lied")
        return points

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

    def in_order(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Maps a function over items on threads and yields results in order, lazily with a window of a few per thread, so that neither must fit in memory."""
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


def _require_same(name: str, expected: Any, actual: Any, remedy: str) -> None:
    if expected != actual:
        raise EncryptionError(f"{name} {actual!s:.16} does not match {expected!s:.16}; {remedy}")
