"""The cost of encrypting a selection, measured on real entries, with a check that the aggregate is exact.

In one round every client encrypts its own selected entries, the server adds them, the key holder decrypts, and the integers are compared.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from selgrad.encryption.ciphertexts import Source
from selgrad.encryption.ckks import CKKS
from selgrad.encryption.context import Keys
from selgrad.encryption.packing import quantise
from selgrad.errors import EncryptionError


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one round for one selection; bytes, slots and encrypt seconds are per client, add and decrypt seconds and clipped entries per round.

    `num_slots` of the ciphertexts hold values or padding: the last ciphertext is sent whole, and more entries up to that number cost nothing.
    """

    num_ciphertexts: int
    ciphertext_bytes: int
    encrypt_seconds: float
    add_seconds: float
    decrypt_seconds: float
    num_clipped: int = 0
    num_slots: int = 0


def make_keys(scheme: CKKS, num_parties: int) -> tuple[Keys, ...]:
    """Makes one key pair, or for a threshold profile the key shares of `num_parties` parties; the last one's public key is the joint key."""
    if scheme.profile.decryption != "threshold":
        return (scheme.keygen(),)
    parties = [scheme.share_keys()]
    while len(parties) < min(num_parties, scheme.profile.num_parties):
        parties.append(scheme.share_keys(parties[-1].public))
    return tuple(parties)


def decrypt(scheme: CKKS, keys: Sequence[Keys], total: Source, mask_hash: str) -> npt.NDArray[np.int64]:
    """Decrypts the integer sum, by one key holder or by all parties together."""
    if scheme.profile.decryption != "threshold":
        return scheme.decrypt(keys[0], total, mask_hash)
    return scheme.combine([scheme.share(party, total, mask_hash, lead=i == 0).collect() for i, party in enumerate(keys)], mask_hash)


def measure(scheme: CKKS, keys: Sequence[Keys], clients: Sequence[npt.NDArray[np.float64]], mask_hash: str) -> Cost:
    """Runs one round and checks that the decrypted aggregate equals the integer NumPy sum of the quantised entries.

    Entries beyond the profile's bound are clipped first, as a client would do; `num_clipped` counts them.

    Args:
      scheme: to measure.
      keys: as `make_keys` returns them.
      clients: each client's selected entries, (n,) float64 each, all for one mask.
      mask_hash: of the mask.

    Raises:
      EncryptionError: if a single integer differs, or there are more clients than the profile can hold.
    """
    scheme.profile.require_clients(len(clients))
    if clients[0].size == 0:
        return Cost(0, 0, 0.0, 0.0, 0.0)
    times = [time.perf_counter()]
    encrypted = [scheme.encrypt(keys[-1], values, mask_hash, clip=True) for values in clients]
    times.append(time.perf_counter())
    total = scheme.add(encrypted)
    times.append(time.perf_counter())
    decrypted = decrypt(scheme, keys, total, mask_hash)
    times.append(time.perf_counter())
    expected = np.sum([quantise(values, scheme.profile) for values in clients], axis=0, dtype=np.int64)
    wrong = int((decrypted != expected).sum())
    if wrong:
        raise EncryptionError(f"{wrong} of {expected.size} decrypted integers differ from the plain sum of {len(clients)} clients")
    seconds = np.diff(times)
    return Cost(
        num_ciphertexts=len(total.parts),
        ciphertext_bytes=encrypted[0].num_bytes,
        encrypt_seconds=float(seconds[0]) / len(clients),
        add_seconds=float(seconds[1]),
        decrypt_seconds=float(seconds[2]),
        num_slots=len(total.parts) * scheme.profile.values_per_ciphertext,
        num_clipped=sum(int((np.abs(values) > scheme.profile.bound).sum()) for values in clients),
    )
