"""Index lists and packing: inverse functions, honest sizes, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selgrad.encryption import decode_indices, encode_indices, mask_bits, mask_hash, scatter, select
from selgrad.errors import EncryptionError, GradientError


@settings(deadline=None)
@given(hnp.arrays(bool, st.integers(1, 400)))
def test_index_lists_round_trip_and_are_never_larger_than_a_bitmap(bits):
    encoded = encode_indices(bits)
    np.testing.assert_array_equal(decode_indices(encoded, bits.size), bits)
    assert len(encoded) <= 1 + -(-bits.size // 8)


def test_sparse_lists_are_much_smaller_than_a_bitmap():
    bits = np.zeros(100_000, bool)
    bits[::1000] = True
    assert len(encode_indices(bits)) < 250
    np.testing.assert_array_equal(decode_indices(encode_indices(bits), bits.size), bits)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 300))
def test_foreign_bytes_are_refused_or_decode_to_the_right_length(raw, size):
    try:
        assert decode_indices(raw, size).size == size
    except EncryptionError as error:
        assert "\n" not in str(error)


TREE = {"a": jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.asarray([5.0, 6.0])}
MASK = {"a": jnp.asarray([[True, False], [False, True]]), "b": jnp.asarray([False, True])}


def test_select_and_scatter_are_inverse():
    values = select(TREE, MASK)
    np.testing.assert_array_equal(values, [1, 4, 6])
    back = scatter(values * 10, MASK, TREE)
    np.testing.assert_array_equal(back["a"], [[10, 2], [3, 40]])
    np.testing.assert_array_equal(back["b"], [5, 60])
    np.testing.assert_array_equal(mask_bits(MASK), [1, 0, 0, 1, 0, 1])


def test_wrong_masks_and_lengths_are_refused():
    with pytest.raises(GradientError, match="another tree"):
        select(TREE, {"a": MASK["a"]})
    with pytest.raises(EncryptionError, match="2 decrypted values for a mask of 3"):
        scatter(np.ones(2), MASK, TREE)
    with pytest.raises(EncryptionError, match="is nan"):
        select({**TREE, "b": jnp.asarray([0.0, jnp.nan])}, MASK)


def test_the_hash_tells_masks_apart():
    other = {**MASK, "b": jnp.asarray([True, False])}
    assert mask_hash(MASK) == mask_hash({**MASK}) != mask_hash(other)
