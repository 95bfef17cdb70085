"""Li and Micciancio 2021: a decrypted sum that is published unrounded gives the secret key away; grid points do not."""

import numpy as np
import pytest

from selgrad import encryption
from selgrad.encryption import CKKS, quantise


def key_from(scheme, total, published, tag):
    """s = (m - c0) / c1 modulo q at every place, were the published values the message and its noise together.

    Residues are values at roots of unity, so the division is one of numbers. Those of the message come from a ciphertext that it is added to.
    """
    modulus, context = scheme.layout.modulus, scheme.context.native
    ciphertext = scheme.context.deserialise(total)
    before = scheme.layout.residues(total, tag)
    context.EvalAddInPlace(ciphertext, context.MakeCKKSPackedPlaintext(published))
    after = scheme.layout.residues(scheme.context.serialise(ciphertext), tag)
    message = [(int(a) - int(b)) % modulus for a, b in zip(after[0], before[0], strict=True)]
    return np.array([(m - int(c0)) * pow(int(c1), -1, modulus) % modulus for m, c0, c1 in zip(message, *before, strict=True)], np.uint64)


@pytest.fixture(scope="module")
def aggregate():
    """A sum of ten clients, what its key holder sees, and the secret key's bytes."""
    if encryption.unavailable():
        pytest.skip(encryption.unavailable())
    scheme = CKKS("exact")
    keys, generator = scheme.keygen(), np.random.default_rng(0)
    clients = [generator.normal(scale=1e-2, size=4095) for _ in range(10)]
    total = scheme.add([scheme.encrypt(keys, values, "") for values in clients])
    plain = scheme.context.native.Decrypt(scheme.context.deserialise(total.parts[0]), keys.secret)
    plain.SetLength(2048)
    return scheme, keys, total.parts[0], np.ascontiguousarray(plain.GetCKKSPackedValueArray()), sum(quantise(v, scheme.profile) for v in clients)


def test_one_unrounded_sum_gives_the_whole_key(aggregate):
    scheme, keys, total, unrounded, _ = aggregate
    found = key_from(scheme, total, unrounded, keys.tag)
    assert found.tobytes() in scheme.secret_bytes(keys)


def test_the_same_sum_on_its_grid_gives_none_of_it(aggregate):
    scheme, keys, total, unrounded, expected = aggregate
    points = np.append(expected, np.rint(unrounded.view(np.float64)[-1] * 2.0**24)) / 2.0**24
    found = key_from(scheme, total, points.view(np.complex128), keys.tag)
    secret = scheme.secret_bytes(keys)
    assert found.tobytes() not in secret
    at = secret.find(key_from(scheme, total, unrounded, keys.tag).tobytes())
    true = np.frombuffer(secret, np.uint64, 4096, at)
    assert (found == true).mean() < 0.001
