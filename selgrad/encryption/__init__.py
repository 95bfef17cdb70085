"""Encryption of the selected entries: CKKS through OpenFHE, packing, aggregation, cost.

Host-side work on NumPy float64. It never changes what an attacker sees of the exposed entries, so no accelerator waits for it.
"""

from selgrad.encryption.ciphertexts import Ciphertexts
from selgrad.encryption.ckks import CKKS
from selgrad.encryption.context import Keys
from selgrad.encryption.cost import Cost, decrypt, make_keys, measure
from selgrad.encryption.openfhe import unavailable
from selgrad.encryption.packing import decode_indices, encode_indices, mask_bits, mask_hash, quantise, scatter, select
from selgrad.encryption.pool import ZeroPool
from selgrad.encryption.profiles import PROFILES, Profile
from selgrad.encryption.roles import Aggregator, Client, KeyHolder, Party
from selgrad.encryption.wire import Header, Reader

__all__ = [
    "CKKS",
    "PROFILES",
    "Aggregator",
    "Ciphertexts",
    "Client",
    "Cost",
    "Header",
    "KeyHolder",
    "Keys",
    "Party",
    "Profile",
    "Reader",
    "ZeroPool",
    "decode_indices",
    "decrypt",
    "encode_indices",
    "make_keys",
    "mask_bits",
    "mask_hash",
    "measure",
    "quantise",
    "scatter",
    "select",
    "unavailable",
]
