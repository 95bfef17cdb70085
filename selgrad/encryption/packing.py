"""Packing: selected entries in index order, clipped to a public bound, rounded to a public grid and packed into slots, and back; and the index list itself.

Everything is NumPy on the host, in float64 and int64; nothing here depends on keys.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from selgrad import trees
from selgrad.base import Grads, Mask
from selgrad.encryption.profiles import Profile
from selgrad.errors import EncryptionError

Floats = npt.NDArray[np.floating[Any]]
_BITMAP, _DELTAS = b"B", b"D"
_CANARY = 0.75


def select(grads: Grads, mask: Mask) -> npt.NDArray[np.float64]:
    """The encrypted entries of a client update, shape (num_selected,), in flattening order.

    Raises:
      GradientError: if the mask is of another tree.
      EncryptionError: if a selected entry is NaN or infinite.
    """
    trees.require_same_tree(mask, grads)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(mask), strict=True)
    values = np.concatenate([np.asarray(leaf)[np.asarray(m)] for leaf, m in pairs]).astype(np.float64)
    require_finite(values)
    return values


def require_finite(values: Floats, start: int = 0) -> None:
    """Raises EncryptionError for NaN or infinity, since a single one silently destroys the whole ciphertext.

    Args:
      values: to check.
      start: index of the first value, for the error message.
    """
    finite = np.isfinite(values)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise EncryptionError(f"value {start + bad} to encrypt is {values[bad]}; it would destroy its whole ciphertext, check the client update")


def as_vector(values: Any) -> npt.NDArray[np.floating[Any]]:
    """Returns the values to encrypt as a vector.

    Raises:
      EncryptionError: if they are not a vector of floats.
    """
    vector = np.asarray(values)
    if vector.dtype == object or not np.issubdtype(vector.dtype, np.floating):
        raise EncryptionError(f"values of type {vector.dtype} are not floats; give a float array, and selgrad.encrypt a whole pytree")
    if vector.ndim != 1:
        raise EncryptionError(f"values of shape {vector.shape} are not a vector; give those that a mask selects, and selgrad.encrypt a whole pytree")
    return vector


def require_within(values: npt.NDArray[np.floating[Any]], profile: Profile, start: int = 0) -> None:
    """Raises EncryptionError for a value beyond the profile's bound, which would be clipped and silently make the sum wrong.

    Args:
      values: to check.
      profile: whose bound applies.
      start: index of the first value, for the error message.
    """
    require_finite(values, start)
    beyond = np.abs(values) > profile.bound
    if beyond.any():
        bad = int(np.flatnonzero(beyond)[0])
        raise EncryptionError(
            f"value {start + bad} to encrypt is {values[bad]:g} and {int(beyond.sum())} lie beyond the public bound {profile.bound:g}; "
            "scale the update, take a larger bound, or pass clip=True and count what is clipped"
        )


def quantise(values: npt.NDArray[np.float64], profile: Profile) -> npt.NDArray[np.int64]:
    """Grid points of clipped values: round(clip(v, -bound, bound) * 2^grid_bits), ties to even."""
    require_finite(values)
    return np.rint(np.clip(np.asarray(values, np.float64), -profile.bound, profile.bound) * 2.0**profile.grid_bits).astype(np.int64)


def fill_slots(chunk: Floats, profile: Profile, start: int = 0) -> npt.NDArray[np.float64]:
    """All slots of one plaintext: grid points of at most `values_per_ciphertext` values, zeros and the canary, scaled as the profile encodes them.

    Args:
      chunk: values; clipped to the bound.
      profile: of the encryption.
      start: index of the first value, for the error message.

    Raises:
      EncryptionError: for NaN or infinity.
    """
    require_finite(chunk, start)
    slots = np.zeros(profile.slots)
    view = slots[: chunk.size]
    view[:] = chunk
    np.clip(view, -profile.bound, profile.bound, out=view)
    view *= 2.0**profile.grid_bits
    np.rint(view, out=view)
    slots[-1] = _canary(profile)
    slots *= 2.0 ** -(profile.grid_bits + profile.headroom_bits)
    return slots


def read_slots(slots: npt.NDArray[np.float64], profile: Profile, num_clients: int) -> npt.NDArray[np.int64]:
    """Grid points of a decrypted sum, without the canary; the slots are overwritten.

    Raises:
      EncryptionError: if a value is off the grid, or the canary is not the sum over `num_clients`.
    """
    slots *= 2.0 ** (profile.grid_bits + profile.headroom_bits)
    rounded = np.rint(slots)
    slots -= rounded
    # Seven standard deviations of the noise, which is a quarter of a step or less in most profiles.
    allowed = min(0.49, max(0.25, 3.5 / profile.margin(num_clients)))
    if rounded[-1] != num_clients * _canary(profile) or not np.abs(slots).max() <= allowed:
        raise EncryptionError("a decrypted ciphertext is off the grid: wrong or missing secret key, damaged ciphertext or overflow")
    return rounded[:-1].astype(np.int64)


def _canary(profile: Profile) -> float:
    """The known value in the last slot, in grid units: three quarters of the bound."""
    return max(1.0, float(np.floor(_CANARY * profile.bound * 2.0**profile.grid_bits)))


def mask_bits(mask: Mask) -> npt.NDArray[np.bool_]:
    """The mask as one vector of bool in flattening order."""
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(mask)])


def mask_hash(mask: Mask) -> str:
    """SHA-256 over leaf paths, shapes and bits, so that sums of different selections are refused."""
    digest = hashlib.sha256()
    for name, leaf in zip(trees.paths(mask), jax.tree.leaves(mask), strict=True):
        digest.update(f"{name}{leaf.shape}".encode() + np.packbits(np.asarray(leaf)).tobytes())
    return digest.hexdigest()


def encode_indices(bits: npt.NDArray[np.bool_]) -> bytes:
    """Encodes the index list that is sent once per mask: a tag byte, then a bitmap or gaps as base-128 varints, whichever is smaller."""
    bitmap = np.packbits(bits).tobytes()
    gaps = np.diff(np.flatnonzero(bits), prepend=-1) - 1
    lengths = np.maximum(1, -(-np.frexp(gaps.astype(np.float64))[1] // 7))
    if int(lengths.sum()) >= len(bitmap):
        return _BITMAP + bitmap
    out = np.zeros(int(lengths.sum()), np.uint8)
    ends = np.cumsum(lengths)
    for position in range(int(lengths.max(initial=1))):
        long_enough = lengths > position
        more = lengths[long_enough] > position + 1
        part = (gaps[long_enough] >> (7 * position)) & 0x7F
        out[(ends - lengths)[long_enough] + position] = part | np.where(more, 0x80, 0)
    return _DELTAS + out.tobytes()


def decode_indices(encoded: bytes, num_total: int) -> npt.NDArray[np.bool_]:
    """Decodes what `encode_indices` encoded.

    Raises:
      EncryptionError: if the bytes are not an index list over `num_total` entries.
    """
    tag, body = encoded[:1], np.frombuffer(encoded[1:], np.uint8)
    if tag == _BITMAP and body.size == -(-num_total // 8):
        bits: npt.NDArray[np.bool_] = np.unpackbits(body, count=num_total).astype(bool)
        return bits
    if tag != _DELTAS:
        raise EncryptionError(f"the index list of {len(encoded)} bytes is not a list over {num_total} entries; it was damaged or is of another model")
    last = (body & 0x80) == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]])) if body.size else np.zeros(0, np.int64)
    shifts = np.arange(body.size) - np.repeat(starts, np.diff(np.append(starts, body.size)))
    if body.size and (not last[-1] or shifts.max() > 8):
        raise EncryptionError(f"the index list of {len(encoded)} bytes is truncated or damaged; send it again")
    gaps = np.add.reduceat((body & 0x7F).astype(np.int64) << (7 * shifts), starts) if body.size else np.zeros(0, np.int64)
    if gaps.size and not (gaps.min() >= 0 and gaps.max() < num_total):
        raise EncryptionError(f"the index list of {len(encoded)} bytes names entries beyond {num_total}; it was damaged or is of another model")
    indices = np.cumsum(gaps + 1) - 1
    if indices.size and indices[-1] >= num_total:
        raise EncryptionError(f"the index list names entry {indices[-1]} of {num_total}; it is of another model")
    result = np.zeros(num_total, bool)
    result[indices] = True
    return result


def scatter(points: npt.NDArray[np.float64], mask: Mask, plain: Grads) -> Any:
    """Puts decrypted values back into the tree: `plain` where exposed, `points` where encrypted."""
    trees.require_same_tree(mask, plain)
    vector = np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(plain)])
    bits = mask_bits(mask)
    if points.size != int(bits.sum()):
        raise EncryptionError(f"{points.size} decrypted values for a mask of {int(bits.sum())} entries; decrypt with the mask that was encrypted")
    vector[bits] = points
    leaves, treedef = jax.tree.flatten(plain)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return jax.tree.unflatten(treedef, [p.reshape(leaf.shape) for p, leaf in zip(np.split(vector, ends), leaves, strict=True)])
