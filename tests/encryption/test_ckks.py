"""Real OpenFHE: exact sums at the edges of the profile, and every refusal."""

import dataclasses
import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad import encryption
from selgrad.encryption import CKKS, Ciphertexts, measure
from selgrad.encryption.packing import quantise
from selgrad.errors import EncryptionError

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def scheme():
    if encryption.unavailable():
        pytest.skip(encryption.unavailable())
    return CKKS("exact")


@pytest.fixture(scope="module")
def keys(scheme):
    return scheme.keygen()


@pytest.mark.parametrize("num_clients", [1, 10, 100, 181])
@pytest.mark.parametrize("size", [1, 4095, 4096, 10000])
def test_the_decrypted_aggregate_is_the_integer_sum(scheme, keys, num_clients, size):
    clients = [RANDOM.normal(scale=10.0 ** RANDOM.integers(-8, 1), size=size) for _ in range(num_clients)]
    cost = measure(scheme, keys, clients, "mask")  # raises if one integer differs
    assert cost.num_ciphertexts == -(-size // 4095)
    assert cost.ciphertext_bytes < 16.3 * 4095 * cost.num_ciphertexts + 2000


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, 2.0**-24, -(2.0**-24), 1e9, 1 - 2.0**-24])
def test_grid_ends_with_the_largest_number_of_clients(scheme, keys, value):
    measure(scheme, keys, [np.full(5000, value)] * scheme.profile.max_clients, "mask")


def test_an_empty_selection_costs_nothing(scheme, keys):
    assert measure(scheme, keys, [np.zeros(0)] * 3, "mask").ciphertext_bytes == 0
    encrypted = scheme.encrypt(keys, np.zeros(0), "mask")
    assert scheme.decrypt(keys, scheme.add([encrypted, encrypted]), "mask").size == 0


def test_clipping_and_rounding_are_within_the_documented_error(scheme):
    values = RANDOM.normal(scale=0.3, size=10000)
    error = np.abs(quantise(values, scheme.profile) / 2.0**24 - np.clip(values, -1, 1))
    assert error.max() <= scheme.profile.quantisation_error


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(scheme, keys, bad):
    with pytest.raises(EncryptionError, match="value 1 of 3 to encrypt is"):
        scheme.encrypt(keys, np.asarray([0.1, bad, 0.2]), "mask")


def test_too_many_clients_are_refused_before_they_overflow(scheme, keys):
    one = scheme.encrypt(keys, np.ones(3), "mask")
    with pytest.raises(EncryptionError, match="num_clients=182 lies outside 1 .. 181"):
        scheme.add([one] * 182)
    with pytest.raises(EncryptionError, match="would overflow silently"):
        scheme.add([scheme.add([one] * 100)] * 2)


def test_a_wrong_key_is_refused_by_its_tag_and_by_the_canary(scheme, keys):
    other, encrypted = scheme.keygen(), scheme.encrypt(keys, np.ones(3), "mask")
    with pytest.raises(EncryptionError, match="decrypt with the secret key"):
        scheme.decrypt(other, encrypted, "mask")
    forged = dataclasses.replace(encrypted, key_tag=other.tag)
    with pytest.raises(EncryptionError, match="wrong secret key"):
        scheme.decrypt(other, forged, "mask")
    with pytest.raises(EncryptionError, match="one public key"):
        scheme.add([encrypted, scheme.encrypt(other, np.ones(3), "mask")])


def test_another_mask_is_refused(scheme, keys):
    encrypted = scheme.encrypt(keys, np.ones(3), "mask")
    with pytest.raises(EncryptionError, match="the mask that was encrypted"):
        scheme.decrypt(keys, encrypted, "other")
    with pytest.raises(EncryptionError, match="encrypted the same entries"):
        scheme.add([encrypted, scheme.encrypt(keys, np.ones(3), "other")])


def test_bytes_round_trip(scheme, keys):
    encrypted = scheme.encrypt(keys, np.linspace(-1, 1, 5000), "mask")
    assert Ciphertexts.from_bytes(encrypted.to_bytes()) == encrypted


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_truncated_and_damaged_bytes_are_refused(scheme, keys, data):
    raw = bytearray(scheme.encrypt(keys, np.ones(10), "mask").to_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EncryptionError, match=r"truncated or damaged|no selgrad ciphertexts"):
        Ciphertexts.from_bytes(bytes(raw))


def test_a_client_with_a_missing_ciphertext_is_refused(scheme, keys):
    whole = scheme.encrypt(keys, np.ones(5000), "mask")
    short = dataclasses.replace(whole, parts=whole.parts[:1])
    for refused in (lambda: scheme.add([whole, short]), lambda: scheme.decrypt(keys, short, "mask")):
        with pytest.raises(EncryptionError, match="1 ciphertexts for 5000 values, which fill 2"):
            refused()


@pytest.mark.parametrize("header", [b"", b"[]", b"{}", b'{"lengths": 3}', b'{"lengths": [], "zzz": 1}', b"\xff\xfe"])
def test_a_malformed_header_with_a_right_checksum_is_refused(header):
    rest = len(header).to_bytes(4, "big") + header
    with pytest.raises(EncryptionError, match="malformed"):
        Ciphertexts.from_bytes(b"selgrad-ckks\x00\x01" + hashlib.sha256(rest).digest() + rest)


def test_clipped_entries_are_counted(scheme, keys):
    assert measure(scheme, keys, [np.asarray([0.5, 1.0, -1.5]), np.asarray([2.0, 0.0, 3.0])], "mask").num_clipped == 3


@pytest.mark.parametrize("part", [b"", b"\0" * 1000, b"\x01" * 64])
def test_foreign_ciphertexts_inside_a_valid_frame_are_refused(scheme, keys, part):
    encrypted = dataclasses.replace(scheme.encrypt(keys, np.ones(3), "mask"), parts=(part,))
    with pytest.raises(EncryptionError, match="truncated or damaged|no ciphertext"):
        scheme.decrypt(keys, encrypted, "mask")


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused(scheme, keys):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            scheme.encrypt(keys, np.ones(3), "mask")
            os.write(write, b"encrypted")
        except EncryptionError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"start it with spawn" in os.read(read, 1000)
    scheme.encrypt(keys, np.ones(3), "mask")  # the parent goes on


def test_two_encryptions_of_one_value_differ(scheme, keys):
    a, b = (scheme.encrypt(keys, np.ones(3), "mask").parts[0] for _ in range(2))
    assert a != b


def test_where_openfhe_does_not_load_the_reason_is_one_line():
    from selgrad.encryption.ckks import unavailable_because

    line = unavailable_because(ImportError("version `GLIBC_2.38' not found\nmore"))
    assert "GLIBC_2.38" in line and "uv run --python 3.10" in line and "\n" not in line
