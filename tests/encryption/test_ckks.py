"""Real OpenFHE: exact sums in every profile and at their edges, and every refusal."""

import contextlib
import dataclasses
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad import encryption
from selgrad.encryption import CKKS, PROFILES, Ciphertexts, ZeroPool, decrypt, make_keys, measure, quantise
from selgrad.encryption.context import Context
from selgrad.errors import EncryptionError

# One worker makes the fixtures of this file.
pytestmark = pytest.mark.xdist_group("ckks")

RANDOM = np.random.default_rng(0)
BARE = [name for name in PROFILES if name != "textbook"]


@pytest.fixture(scope="module")
def engine():
    """A factory of engines with three parties' or one holder's keys, one for each profile."""
    if encryption.unavailable():
        pytest.skip(encryption.unavailable())
    made = {}

    def make(name="exact"):
        if name not in made:
            scheme = CKKS(name, num_threads=2)
            made[name] = scheme, make_keys(scheme, 3)
        return made[name]

    return make


@pytest.fixture(scope="module")
def scheme(engine):
    return engine()[0]


@pytest.fixture(scope="module")
def keys(engine):
    return engine()[1][0]


class TestExactness:
    @pytest.mark.parametrize("name", PROFILES)
    @pytest.mark.parametrize("size", [1, 2047, 4095, 4096, 10000])
    def test_the_decrypted_aggregate_is_the_integer_sum(self, engine, name, size):
        scheme, keys = engine(name)
        clients = [RANDOM.normal(scale=10.0 ** RANDOM.integers(-8, 1), size=size) for _ in range(10)]
        cost = measure(scheme, keys, clients, "mask")  # raises if one integer differs
        assert cost.num_ciphertexts == -(-size // scheme.profile.values_per_ciphertext)
        assert cost.ciphertext_bytes <= (scheme.profile.bytes_per_value * scheme.profile.values_per_ciphertext + 1500) * cost.num_ciphertexts + 2000

    @pytest.mark.parametrize("name", [name for name in PROFILES if name != "textbook"])
    @pytest.mark.parametrize("value", [1.0, -1.0, 0.0, "step", 1e9])
    def test_grid_ends_with_the_largest_number_of_clients(self, engine, name, value):
        """Equal values are the worst case: all of a sum lies in one coefficient."""
        scheme, keys = engine(name)
        step = 2.0**-scheme.profile.grid_bits
        clients = [scheme.encrypt(keys[-1], np.full(5000, step if value == "step" else value), "mask", clip=True) for _ in range(scheme.profile.max_clients)]
        total = scheme.add(clients, raw=True)
        expected = quantise(np.full(1, step if value == "step" else value), scheme.profile)[0] * scheme.profile.max_clients
        assert (decrypt(scheme, keys, total, "mask") == expected).all()

    def test_textbook_holds_three_hundred_clients(self, engine):
        scheme, keys = engine("textbook")
        total = scheme.add([scheme.encrypt(keys[0], np.linspace(-1, 1, 100), "mask") for _ in range(300)])
        assert (decrypt(scheme, keys, total, "mask") == 300 * quantise(np.linspace(-1, 1, 100), scheme.profile)).all()

    @pytest.mark.parametrize("bound", [1e-3, 0.1, 50.0])
    def test_another_bound_leaves_room_for_other_numbers_of_clients(self, engine, bound):
        engine()
        scheme = CKKS(dataclasses.replace(PROFILES["exact"], bound=bound))
        keys, values, count = scheme.keygen(), np.linspace(-bound, bound, 50), min(scheme.profile.max_clients, 500)
        total = scheme.add([scheme.encrypt(keys, values, "") for _ in range(count)], raw=True)
        assert (scheme.decrypt(keys, total, "") == count * quantise(values, scheme.profile)).all()

    @pytest.mark.parametrize("name", BARE)
    @pytest.mark.parametrize("num_clients", [10, 90])
    def test_the_noise_is_what_the_profile_says(self, engine, name, num_clients):
        """Clients of equal values under 3 parties' or one key: the spread of what decryption rounds away. Their rounding errors in encoding add up alike."""
        scheme, keys = engine(name)
        profile = scheme.profile
        total = scheme.add([scheme.encrypt(keys[-1], np.zeros(4000), "") for _ in range(num_clients)], raw=True)
        with slots_before_rounding(scheme) as seen:
            decrypt(scheme, keys, total, "")
        noise = np.concatenate([s[:-1] for s in seen]) * 2.0**profile.headroom_bits
        documented = dataclasses.replace(profile, num_parties=3 if profile.decryption == "threshold" else 1).noise_deviation(num_clients)
        assert noise.std() == pytest.approx(documented, rel=0.15)

    @pytest.mark.parametrize("value", [1.0, -1.0, "step", 0.0])
    def test_a_hundred_parties_decrypt_as_many_clients_as_the_profile_holds(self, engine, value):
        """The most parties and clients, all values at an end of the grid; the noise that rounding takes off is what the profile says."""
        scheme, _ = engine("threshold")
        profile, step = scheme.profile, 2.0**-scheme.profile.grid_bits
        keys = make_keys(scheme, 200)
        assert len(keys) == 100
        given = np.full(4000, step if value == "step" else value)
        total = scheme.add([scheme.encrypt(keys[-1], given, "") for _ in range(profile.max_clients)], raw=True)
        with slots_before_rounding(scheme) as seen:
            found = decrypt(scheme, keys, total, "")
        assert (found == profile.max_clients * quantise(given, profile)).all()
        if value == 0.0:
            assert np.concatenate([s[:-1] for s in seen]).std() == pytest.approx(profile.noise_deviation(profile.max_clients), rel=0.15)

    def test_an_empty_selection_costs_nothing(self, scheme, keys):
        assert measure(scheme, [keys], [np.zeros(0)] * 3, "mask").ciphertext_bytes == 0
        encrypted = scheme.encrypt(keys, np.zeros(0), "mask")
        assert scheme.decrypt(keys, scheme.add([encrypted, encrypted]), "mask").size == 0

    def test_clipping_and_rounding_are_within_the_documented_error(self, scheme):
        values = RANDOM.normal(scale=0.3, size=10000)
        error = np.abs(quantise(values, scheme.profile) / 2.0**24 - np.clip(values, -1, 1))
        assert error.max() <= scheme.profile.quantisation_error

    def test_float32_values_are_encrypted_as_they_are(self, scheme, keys):
        values = RANDOM.normal(size=5000).astype(np.float32)
        assert (scheme.decrypt(keys, scheme.encrypt(keys, values, "", clip=True), "") == quantise(values.astype(np.float64), scheme.profile)).all()

    def test_clipped_entries_are_counted(self, scheme, keys):
        assert measure(scheme, [keys], [np.asarray([0.5, 1.0, -1.5]), np.asarray([2.0, 0.0, 3.0])], "mask").num_clipped == 3

    def test_a_larger_ring_holds_the_same(self, engine):
        engine()
        profile = PROFILES["exact"].for_size(10**7)
        assert profile.ring == 16384 and PROFILES["exact"].for_size(10**5).ring == 4096
        scheme = CKKS(profile, num_threads=2)
        measure(scheme, make_keys(scheme, 1), [RANDOM.normal(size=40000) for _ in range(3)], "mask")


def raw_slots(plain, profile):
    plain.SetLength(profile.ring // 2)
    if profile.packing == "real":
        return np.array(plain.GetRealPackedValueArray())
    return np.ascontiguousarray(plain.GetCKKSPackedValueArray()).view(np.float64).copy()


@contextlib.contextmanager
def slots_before_rounding(scheme):
    """Collects what decryptions give before it is rounded to grid points."""
    context = scheme.context
    seen, original = [], context.points
    context.points = lambda plain, count: (seen.append(raw_slots(plain, scheme.profile)), original(plain, count))[1]
    try:
        yield seen
    finally:
        del context.points


class TestResidues:
    @pytest.mark.parametrize("name", BARE)
    def test_sums_of_residues_are_openfhes_sums(self, engine, name):
        scheme, keys = engine(name)
        clients = [scheme.encrypt(keys[-1], RANDOM.normal(size=5000), "m", clip=True) for _ in range(40)]
        raw = scheme.add(clients, raw=True)
        assert (decrypt(scheme, keys, raw, "m") == decrypt(scheme, keys, scheme.add(clients), "m")).all()
        assert len(raw.parts[0]) == len(clients[0].parts[0])

    def test_the_layout_of_several_primes_is_not_claimed(self, engine):
        scheme, keys = engine("textbook")
        assert scheme.layout is None
        one = scheme.encrypt(keys[0], np.ones(3), "m")
        with pytest.raises(EncryptionError, match="self-test did not pass"):
            scheme.add([one, one], raw=True)

    def test_compact_ciphertexts_are_twelve_bytes_a_value(self, engine):
        scheme, keys = engine("compact")
        assert len(scheme.encrypt(keys[0], np.ones(4095), "m").parts[0]) == 12 * 4096

    def test_bare_residues_are_refused_where_the_layout_is_not_understood(self, engine, monkeypatch):
        engine()
        monkeypatch.setattr(Context, "_learn_layout", lambda self: None)
        with pytest.raises(EncryptionError, match="take profile 'exact'"):
            CKKS("compact")


class TestPool:
    def test_values_added_to_zeros_are_encrypted(self, scheme, keys):
        pool, values = ZeroPool(scheme, keys), RANDOM.normal(size=10000)
        pool.fill(10000)
        assert len(pool) == 3
        encrypted = scheme.encrypt(keys, values, "m", pool=pool, clip=True)
        assert len(pool) == 0 and pool.num_taken == 3
        assert (scheme.decrypt(keys, scheme.add([encrypted, encrypted]), "m") == 2 * quantise(values, scheme.profile)).all()

    def test_no_item_is_used_twice(self, scheme, keys):
        """Four threads take what there is; two ciphertexts of one message share no residue."""
        pool = ZeroPool(scheme, keys)
        pool.fill(40 * 4095)
        taken, lock = [], threading.Lock()

        def work():
            for _ in range(10):
                item = pool.take(keys.tag)
                with lock:
                    taken.append(item)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == len({id(item) for item in taken}) == 40 and len(pool) == 0
        parts = {scheme.context.serialise(item) for item in taken}
        assert len(parts) == 40
        with pytest.raises(EncryptionError, match="empty after 40"):
            pool.take(keys.tag)
        pool.fill(2 * 4095)
        a, b = (scheme.encrypt(keys, np.ones(10), "m", pool=pool).parts[0] for _ in range(2))
        assert (scheme.layout.residues(a, keys.tag) != scheme.layout.residues(b, keys.tag)).mean() > 0.99

    def test_another_key_is_refused(self, scheme, keys):
        pool = ZeroPool(scheme, scheme.keygen())
        pool.fill(1)
        with pytest.raises(EncryptionError, match="fill a stock under that key"):
            scheme.encrypt(keys, np.ones(3), "m", pool=pool)


class TestRefusals:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity(self, scheme, keys, bad):
        values = np.zeros(9000)
        values[5001] = bad
        with pytest.raises(EncryptionError, match="value 5001 to encrypt is"):
            scheme.encrypt(keys, values, "mask")

    def test_too_many_clients_before_they_overflow(self, scheme, keys):
        one = scheme.encrypt(keys, np.ones(3), "mask")
        with pytest.raises(EncryptionError, match="num_clients=182 lies outside 1 .. 181"):
            scheme.add([one] * 182)
        with pytest.raises(EncryptionError, match="would overflow silently"):
            scheme.add([scheme.add([one] * 100)] * 2)

    def test_a_wrong_key_by_its_tag_and_by_the_canary(self, scheme, keys):
        other, encrypted = scheme.keygen(), scheme.encrypt(keys, np.ones(3), "mask")
        with pytest.raises(EncryptionError, match="decrypt with the secret key"):
            scheme.decrypt(other, encrypted, "mask")
        residues = scheme.layout.residues(encrypted.parts[0], keys.tag)
        forged = Ciphertexts(dataclasses.replace(encrypted.header, key_tag=other.tag), (scheme.layout.serialise(residues, other.tag),))
        with pytest.raises(EncryptionError, match="wrong or missing secret key"):
            scheme.decrypt(other, forged, "mask")
        with pytest.raises(EncryptionError, match="one public key"):
            scheme.add([encrypted, scheme.encrypt(other, np.ones(3), "mask")])

    def test_another_mask(self, scheme, keys):
        encrypted = scheme.encrypt(keys, np.ones(3), "mask")
        with pytest.raises(EncryptionError, match="the mask that was encrypted"):
            scheme.decrypt(keys, encrypted, "other")
        with pytest.raises(EncryptionError, match="encrypted the same entries"):
            scheme.add([encrypted, scheme.encrypt(keys, np.ones(3), "other")])

    def test_another_profile(self, engine, scheme, keys):
        compact, (secret,) = engine("compact")
        with pytest.raises(EncryptionError, match="must use one profile"):
            scheme.add([scheme.encrypt(keys, np.ones(3), "m"), compact.encrypt(secret, np.ones(3), "m")])

    def test_a_client_with_a_missing_ciphertext(self, scheme, keys):
        whole = scheme.encrypt(keys, np.ones(5000), "mask")
        short = Ciphertexts(dataclasses.replace(whole.header, num_parts=1), whole.parts[:1])
        for refused in (lambda: scheme.add([whole, short]), lambda: scheme.decrypt(keys, short, "mask")):
            with pytest.raises(EncryptionError, match="1 ciphertexts for 5000 values, which fill 2"):
                refused()

    @pytest.mark.parametrize("part", [b"", b"\0" * 1000, b"\x01" * 64])
    def test_foreign_bytes_in_the_place_of_a_ciphertext(self, engine, part):
        for name in ("exact", "compact", "textbook"):
            scheme, keys = engine(name)
            encrypted = dataclasses.replace(scheme.encrypt(keys[0], np.ones(3), "mask"), parts=(part,))
            with pytest.raises(EncryptionError, match="truncated|not a ciphertext"):
                scheme.decrypt(keys[0], encrypted, "mask")

    @pytest.mark.parametrize("name", BARE)
    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def test_damaged_ciphertexts_never_reach_openfhe_as_something_else(self, engine, name, data):
        """Fuzzed bytes behind a valid frame: a clear error, or (a residue changed to another one) an aggregate that the canary or the grid refuses."""
        scheme, keys = engine(name)
        encrypted = scheme.encrypt(keys[-1], np.ones(3), "mask")
        raw = bytearray(encrypted.parts[0])
        for _ in range(data.draw(st.integers(1, 5))):
            kind = data.draw(st.sampled_from(["flip", "cut", "grow", "fill"]))
            at = data.draw(st.integers(0, max(0, len(raw) - 1)))
            if kind == "flip" and raw:
                raw[at] ^= data.draw(st.integers(1, 255))
            elif kind == "cut":
                raw = raw[:at]
            elif kind == "grow":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=16))
            elif raw:
                raw[at : at + 64] = b"\xff" * len(raw[at : at + 64])
        if bytes(raw) == encrypted.parts[0]:
            return
        damaged = Ciphertexts(encrypted.header, (bytes(raw),))
        with pytest.raises(EncryptionError):
            decrypt(scheme, keys, damaged, "mask")

    def test_a_threshold_profile_has_no_single_key_holder(self, engine):
        scheme, keys = engine("threshold")
        with pytest.raises(EncryptionError, match="no single key holder"):
            scheme.keygen()
        total = scheme.encrypt(keys[-1], np.ones(3), "m")
        with pytest.raises(EncryptionError, match="all parties together"):
            scheme.decrypt(keys[0], total, "m")

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_fewer_than_all_parties_decrypt_nothing(self, engine, missing):
        scheme, keys = engine("threshold")
        total = scheme.encrypt(keys[-1], np.ones(3), "m")
        shares = [scheme.share(party, total, "m", lead=i == 0).collect() for i, party in enumerate(keys) if i != missing]
        with pytest.raises(EncryptionError, match="off the grid|are they of all parties"):
            scheme.combine(shares, "m")
        with pytest.raises(EncryptionError, match="no shares"):
            scheme.combine([], "m")

    @pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_process(self, scheme, keys):
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


@pytest.mark.parametrize("change", [
    {"ring": 1024}, {"ring": 2048}, {"security": "none"}, {"prime_bits": 61}, {"bound": 0.0}, {"bound": 1e9}, {"scale_bits": 30}, {"word_bytes": 6},
    {"key": "secret", "decryption": "threshold"}, {"decryption": "noise_flooding"}, {"decryption": "noise_flooding", "packing": "real"}, {"depth": 1},
    {"grid_bits": 36},
])  # fmt: skip
def test_unsafe_and_impossible_profiles_are_refused(change):
    with pytest.raises(EncryptionError, match="profile 'exact': "):
        dataclasses.replace(PROFILES["exact"], **change)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_survive_json(name):
    profile = PROFILES[name]
    assert type(profile).from_json(profile.to_json()) == profile
    with pytest.raises(EncryptionError, match="not a profile"):
        type(profile).from_json('{"name": "x"}')
