"""Encryption of the selected entries: CKKS through OpenFHE, packing, aggregation, cost.

Host-side work on NumPy float64. It never changes what an attacker sees of the exposed entries, so no accelerator waits for it.
"""

from selgrad.encryption.ckks import CKKS, Ciphertexts, Keys, unavailable
from selgrad.encryption.cost import Cost, measure
from selgrad.encryption.packing import decode_indices, encode_indices, mask_bits, mask_hash, scatter, select
from selgrad.encryption.profiles import PROFILES, Profile

__all__ = [
    "CKKS",
    "PROFILES",
    "Ciphertexts",
    "Cost",
    "Keys",
    "Profile",
    "decode_indices",
    "encode_indices",
    "mask_bits",
    "mask_hash",
    "measure",
    "scatter",
    "select",
    "unavailable",
]
