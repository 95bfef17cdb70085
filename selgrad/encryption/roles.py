"""The roles: a client, an aggregator and a key holder, or parties that decrypt together; they exchange bytes and nothing else.

An aggregator holds no key, so it cannot read what it adds. Keys and ciphertexts are written to files that only their owner may read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad.encryption import wire
from selgrad.encryption.ciphertexts import Ciphertexts
from selgrad.encryption.ckks import CKKS
from selgrad.encryption.context import Keys
from selgrad.encryption.pool import ZeroPool
from selgrad.encryption.profiles import Profile, named
from selgrad.errors import EncryptionError

_MATERIAL = b"selgrad-key\x00\x02"
_CHECKSUM = 32


def _write_private(path: Path, content: bytes) -> None:
    """Writes a key file with mode 0600, and makes its folder if necessary.

    Raises:
      EncryptionError: if the disk is full or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EncryptionError(f"{path.parent} cannot be made ({error.strerror}); choose another folder") from None
    with wire.private_file(path) as stream:
        stream.write(content)


def read_private(path: Path) -> bytes:
    """Reads a key file.

    Raises:
      EncryptionError: if it is missing, or anybody but its owner may read it.
    """
    try:
        # One descriptor for checking and reading, which does not follow a link that somebody put in place of the file.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode & 0o777
            content = stream.read()
    except OSError as error:
        raise EncryptionError(f"{path} cannot be read ({error.strerror}); is this the folder of the keys?") from None
    if mode & 0o077:
        raise EncryptionError(f"{path} has mode {mode:o}, so others may read the key; make it private with chmod 600 {path}, and make new keys if they did")
    return content


def _pack(profile: Profile, kind: str, key: bytes) -> bytes:
    text = json.dumps({"profile": profile.to_json(), "kind": kind}).encode()
    content = _MATERIAL + len(text).to_bytes(4, "big") + text + key
    return content + hashlib.sha256(content).digest()


def _unpack(raw: bytes) -> tuple[Profile, str, bytes]:
    start = len(_MATERIAL) + 4
    length = int.from_bytes(raw[len(_MATERIAL) : start], "big")
    if raw[: len(_MATERIAL)] != _MATERIAL or len(raw) < start + length + _CHECKSUM:
        raise EncryptionError(f"these {len(raw)} bytes are not a key of this version of selgrad (they begin {raw[:12].hex() or 'empty'}); make new keys")
    raw, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
    if hashlib.sha256(raw).digest() != checksum:
        raise EncryptionError(f"the key of {len(raw)} bytes is damaged: its checksum is another; fetch it again")
    try:
        fields = json.loads(raw[start : start + length])
        return Profile.from_json(fields["profile"]), str(fields["kind"]), raw[start + length :]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EncryptionError(f"these {len(raw)} bytes are not a key of selgrad ({type(error).__name__}); fetch it again") from None


class KeyHolder:
    """Makes the keys and decrypts sums.

    Args:
      profile: a name in `PROFILES`, or a profile; not a threshold one.
      keys: to hold; None makes fresh ones.
      num_threads: of the engine.
      scheme: an existing engine to use; None makes one.
    """

    def __init__(self, profile: str | Profile = "exact", *, keys: Keys | None = None, num_threads: int | None = None, scheme: CKKS | None = None) -> None:
        self._scheme = scheme or CKKS(profile, num_threads=num_threads)
        self._keys = self._scheme.keygen() if keys is None else keys

    @property
    def profile(self) -> Profile:
        """The profile of the keys."""
        return self._scheme.profile

    @property
    def tag(self) -> str:
        """The tag that identifies the key; uploads under different keys cannot be added."""
        return self._keys.tag

    def client_key(self) -> bytes:
        """The key that a client encrypts with: the public key, or where the profile says so the secret key, to be sent over a private channel."""
        if self.profile.key == "secret":
            return _pack(self.profile, "secret", self._scheme.secret_bytes(self._keys))
        return _pack(self.profile, "public", self._scheme.public_bytes(self._keys))

    def secret_key(self) -> bytes:
        """The secret key, for the holder's own storage."""
        return _pack(self.profile, "secret", self._scheme.secret_bytes(self._keys))

    @classmethod
    def restore(cls, secret: bytes, client: bytes, *, num_threads: int | None = None) -> KeyHolder:
        """Restores the holder of keys that `secret_key` and `client_key` returned.

        Raises:
          EncryptionError: if they are damaged, or do not belong to one pair.
        """
        profile, _, raw = _unpack(secret)
        scheme = CKKS(profile, num_threads=num_threads)
        keys = scheme.load_secret(raw)
        _, kind, other = _unpack(client)
        public = scheme.load_public(other) if kind == "public" else None
        if public is not None and public.tag != keys.tag:
            raise EncryptionError(f"the secret key {keys.tag:.16} and the public key {public.tag:.16} are not one pair; fetch both from one place")
        return cls(profile, keys=Keys(None if public is None else public.public, keys.secret, keys.tag), num_threads=num_threads, scheme=scheme)

    def save(self, folder: str | Path) -> None:
        """Writes `secret.key` and `client.key`, both with mode 0600.

        Raises:
          EncryptionError: if the folder cannot be written to.
        """
        _write_private(Path(folder) / "secret.key", self.secret_key())
        _write_private(Path(folder) / "client.key", self.client_key())

    @classmethod
    def load(cls, folder: str | Path, *, num_threads: int | None = None) -> KeyHolder:
        """Loads the holder of saved keys.

        Raises:
          EncryptionError: if a file is missing, damaged, or readable by others.
        """
        return cls.restore(read_private(Path(folder) / "secret.key"), read_private(Path(folder) / "client.key"), num_threads=num_threads)

    def decrypt(self, total: bytes | str | Path, mask_hash: str, *, mac_key: bytes | None = None) -> npt.NDArray[np.int64]:
        """Decrypts the integer sum in grid units (n,), from bytes or a file.

        Args:
          total: the aggregator's sum.
          mask_hash: of the selection.
          mac_key: shared with the aggregator.

        Raises:
          EncryptionError: if the sum is not authentic, or of another key, mask or profile.
        """
        return self._scheme.decrypt(self._keys, wire.Reader(total, mac_key), mask_hash)


class Client:
    """Encrypts its own values; with a public key it cannot decrypt anything, not even its own values.

    Args:
      key: as `KeyHolder.client_key` or `Party.client_key` made it.
      mac_key: shared with the aggregator, so that it accepts uploads from nobody else.
      num_threads: of the engine.
    """

    def __init__(self, key: bytes, *, mac_key: bytes | None = None, num_threads: int | None = None) -> None:
        profile, kind, raw = _unpack(key)
        self._scheme, self._mac_key = CKKS(profile, num_threads=num_threads), mac_key
        self._keys = self._scheme.load_public(raw) if kind == "public" else self._scheme.load_secret(raw)

    @property
    def profile(self) -> Profile:
        """The profile of the key."""
        return self._scheme.profile

    def pool(self, num_values: int) -> ZeroPool:
        """Makes encryptions of zero for `num_values` values, to be prepared ahead of time."""
        pool = ZeroPool(self._scheme, self._keys)
        pool.fill(num_values)
        return pool

    def encrypt(self, values: Any, mask_hash: str, *, pool: ZeroPool | None = None, clip: bool = False) -> bytes:
        """Encrypts values into bytes for the aggregator.

        Args:
          values: (n,) floats, each within `profile.bound`.
          mask_hash: of the selection.
          pool: ready encryptions of zero.
          clip: whether values beyond the bound are clipped to it; otherwise they are refused.

        Raises:
          EncryptionError: for NaN, infinity, or a value beyond the bound.
        """
        return self._scheme.encrypt(self._keys, values, mask_hash, pool=pool, clip=clip).to_bytes(self._mac_key)

    def encrypt_file(self, path: str | Path, values: Any, mask_hash: str, *, pool: ZeroPool | None = None, clip: bool = False) -> int:
        """Encrypts values into a file for the aggregator, in constant memory; returns the number of bytes.

        Raises:
          EncryptionError: for NaN, infinity, a value beyond the bound where `clip` is False, or a full disk; no file is left in that case.
        """
        header, parts = self._scheme.encrypt_stream(self._keys, values, mask_hash, pool=pool, clip=clip)
        return wire.write_file(path, header, parts, self._mac_key)


class Aggregator:
    """Adds clients' ciphertexts without any key.

    Args:
      profile: of the clients.
      num_threads: of the engine.
      raw: whether to add residues without OpenFHE.
    """

    def __init__(self, profile: str | Profile = "exact", *, num_threads: int | None = None, raw: bool = False) -> None:
        self._scheme, self._raw = CKKS(profile, num_threads=num_threads), raw

    def add(self, clients: Sequence[bytes | str | Path], *, mac_keys: Sequence[bytes | None] | None = None, mac_key: bytes | None = None) -> bytes:
        """Adds uploads into bytes for the key holder.

        Args:
          clients: bytes or files.
          mac_keys: shared with each client.
          mac_key: shared with the key holder.

        Raises:
          EncryptionError: if an upload is not authentic, damaged, repeated, or of another mask, key or profile. An upload from an earlier round is
            authentic too, so include the round in `mask_hash`.
        """
        return self._scheme.add(self._read(clients, mac_keys), raw=self._raw).to_bytes(mac_key)

    def add_file(
        self, path: str | Path, clients: Sequence[bytes | str | Path], *, mac_keys: Sequence[bytes | None] | None = None, mac_key: bytes | None = None
    ) -> int:
        """Adds uploads into a file, in constant memory; returns the number of bytes."""
        header, parts = self._scheme.add_stream(self._read(clients, mac_keys), raw=self._raw)
        return wire.write_file(path, header, parts, mac_key)

    def _read(self, clients: Sequence[bytes | str | Path], mac_keys: Sequence[bytes | None] | None) -> list[wire.Reader]:
        keys: list[bytes | None] = list(mac_keys) if mac_keys is not None else [None for _ in clients]
        if len(keys) != len(clients):
            raise EncryptionError(f"{len(keys)} authentication keys for {len(clients)} clients; give one for each")
        readers = [wire.Reader(client, key) for client, key in zip(clients, keys, strict=True)]
        wire.require_different(readers)
        return readers


class Party:
    """One of several parties that hold the secret key jointly: only all of them together can decrypt.

    Args:
      previous: the previous party's `client_key`; None for the first party. The last party's `client_key` is the joint key.
      profile: of the first party.
      num_threads: of the engine.
    """

    def __init__(self, previous: bytes | None = None, *, profile: str | Profile = "threshold", num_threads: int | None = None) -> None:
        raw = None
        if previous is not None:
            profile, _, raw = _unpack(previous)
        if named(profile).decryption != "threshold":
            raise EncryptionError(f"profile {named(profile).name!r} has one key holder; parties need a threshold profile")
        self._scheme = CKKS(profile, num_threads=num_threads)
        self._lead = previous is None
        self._keys = self._scheme.share_keys(None if raw is None else self._scheme.load_public(raw).public)

    def client_key(self) -> bytes:
        """The joint public key of all parties so far."""
        return _pack(self._scheme.profile, "public", self._scheme.public_bytes(self._keys))

    @property
    def tag(self) -> str:
        """The tag that identifies the joint public key of all parties so far."""
        return self._keys.tag

    def secret_key(self) -> bytes:
        """This party's share of the secret key, for its own storage."""
        return _pack(self._scheme.profile, "lead" if self._lead else "main", self._scheme.secret_bytes(self._keys))

    @classmethod
    def restore(cls, secret: bytes, *, num_threads: int | None = None) -> Party:
        """Restores the party whose share `secret_key` returned.

        Raises:
          EncryptionError: if it is damaged.
        """
        profile, kind, raw = _unpack(secret)
        party = cls.__new__(cls)
        party._scheme, party._lead = CKKS(profile, num_threads=num_threads), kind == "lead"
        party._keys = party._scheme.load_secret(raw)
        return party

    def share(self, total: bytes | str | Path, mask_hash: str, *, mac_key: bytes | None = None, share_key: bytes | None = None) -> bytes:
        """This party's decryption share of a sum, for `combine`; give it only for sums over enough clients.

        Args:
          total: the aggregator's sum.
          mask_hash: of the selection.
          mac_key: shared with the aggregator, for the sum.
          share_key: shared with whoever combines, for the share.
        """
        return self._scheme.share(self._keys, wire.Reader(total, mac_key), mask_hash, lead=self._lead).collect().to_bytes(share_key)

    def combine(self, shares: Sequence[bytes], mask_hash: str, *, mac_key: bytes | None = None) -> npt.NDArray[np.int64]:
        """The integer sum in grid units (n,) from the shares of all parties; anyone with all shares can compute it.

        Raises:
          EncryptionError: if a share is missing, belongs to another sum, or is not authentic.
        """
        return self._scheme.combine([Ciphertexts.from_bytes(share, mac_key) for share in shares], mask_hash)
