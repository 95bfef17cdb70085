"""Processes that exchange bytes only: who may not read cannot, and the sum is exact."""

import multiprocessing
import stat
from pathlib import Path

import numpy as np
import pytest

from selgrad import encryption
from selgrad.encryption import Aggregator, Client, KeyHolder, Party, quantise
from selgrad.errors import EncryptionError

SIZE = 5000


@pytest.fixture(autouse=True)
def openfhe():
    if encryption.unavailable():
        pytest.skip(encryption.unavailable())


def values(index):
    return np.clip(np.random.default_rng(index).normal(scale=0.3, size=SIZE), -1, 1)


def client_process(key, index, mac_key, pipe):
    pipe.send(Client(key, mac_key=mac_key).encrypt(values(index), "mask"))


def aggregator_process(profile, uploads, mac_keys, mac_key, pipe):
    pipe.send(Aggregator(profile).add(uploads, mac_keys=mac_keys, mac_key=mac_key))


def in_process(function, *arguments):
    """Runs in a fresh interpreter; what comes back went through a pipe as bytes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(*arguments, theirs))
    process.start()
    assert ours.poll(120)
    result = ours.recv()
    process.join(60)
    assert process.exitcode == 0 and isinstance(result, bytes)
    return result


@pytest.mark.slow
def test_a_round_between_processes(tmp_path):
    holder = KeyHolder()
    holder.save(tmp_path / "keys")
    macs = [b"client 0" * 4, b"client 1" * 4]
    uploads = [in_process(client_process, holder.client_key(), i, mac) for i, mac in enumerate(macs)]
    total = in_process(aggregator_process, "exact", uploads, macs, b"aggregator" * 2)
    again = KeyHolder.load(tmp_path / "keys")
    expected = sum(quantise(values(i), holder.profile) for i in range(2))
    assert (again.decrypt(total, "mask", mac_key=b"aggregator" * 2) == expected).all()


def test_the_secret_stays_where_it_belongs():
    holder = KeyHolder()
    client, aggregator = Client(holder.client_key()), Aggregator()
    assert client._keys.secret is None and not [k for k in vars(aggregator) if "key" in k]
    upload = client.encrypt(values(0), "mask")
    for party in (client._scheme, aggregator._scheme):
        with pytest.raises(EncryptionError, match="holds no secret key"):
            party.decrypt(client._keys, encryption.Reader(upload), "mask")
    assert (Client(KeyHolder().client_key())._keys.tag) != client._keys.tag


def test_a_client_with_a_secret_key_profile_can_read_the_others_and_the_docs_say_so():
    holder = KeyHolder("compact")
    reader = Client(holder.client_key())
    found = reader._scheme.decrypt(reader._keys, encryption.Reader(Client(holder.client_key()).encrypt(values(1), "m")), "m")
    assert (found == quantise(values(1), holder.profile)).all()
    assert "can read every other's upload" in holder.profile.about


def test_a_hundred_parties_that_exchange_bytes_alone():
    """Each is restored from its own storage before it shares; the joint key is handed from one to the next, and ninety-nine shares decrypt nothing."""
    parties = [Party()]
    while len(parties) < 100:
        parties.append(Party(parties[-1].client_key()))
    joint = parties[-1].client_key()
    total = Aggregator("threshold", raw=True).add([Client(joint).encrypt(values(i), "mask") for i in range(3)])
    shares = [Party.restore(party.secret_key()).share(total, "mask") for party in parties]
    expected = sum(quantise(values(i), encryption.PROFILES["threshold"]) for i in range(3))
    assert (parties[50].combine(shares, "mask") == expected).all()
    for missing in (0, 99):
        with pytest.raises(EncryptionError, match="off the grid|all parties"):
            parties[0].combine(shares[:missing] + shares[missing + 1 :], "mask")


def test_parties_decrypt_together_and_not_alone():
    first = Party()
    second = Party(first.client_key())
    third = Party(second.client_key())
    uploads = [Client(third.client_key()).encrypt(values(i), "mask") for i in range(3)]
    total = Aggregator("threshold", raw=True).add(uploads)
    shares = [party.share(total, "mask") for party in (first, second, third)]
    expected = sum(quantise(values(i), encryption.PROFILES["threshold"]) for i in range(3))
    assert (first.combine(shares, "mask") == expected).all()
    for some in (shares[:1], shares[:2], shares[1:]):
        with pytest.raises(EncryptionError, match="off the grid|all parties"):
            third.combine(some, "mask")
    with pytest.raises(EncryptionError, match="parties need a threshold profile"):
        Party(profile="exact")


def test_forged_and_repeated_uploads():
    holder = KeyHolder()
    client, aggregator = Client(holder.client_key(), mac_key=b"a" * 16), Aggregator()
    upload = client.encrypt(values(0), "mask")
    with pytest.raises(EncryptionError, match="not authentic"):
        aggregator.add([upload[:-1] + bytes([upload[-1] ^ 1])], mac_keys=[b"a" * 16])
    with pytest.raises(EncryptionError, match="not authentic"):
        aggregator.add([upload], mac_keys=[b"b" * 16])
    with pytest.raises(EncryptionError, match="1 authentication keys for 2 clients"):
        aggregator.add([upload, upload], mac_keys=[b"a" * 16])


def test_an_upload_counts_once():
    holder = KeyHolder()
    upload = Client(holder.client_key()).encrypt(values(0), "mask")
    with pytest.raises(EncryptionError, match="upload 1 is the same as upload 0"):
        Aggregator().add([upload, upload])


@pytest.mark.parametrize("tag", ["x" * 33, "x", "", "\ud800"])
def test_a_key_tag_of_another_length_never_reaches_openfhe(tag):
    scheme = encryption.CKKS("exact")
    keys = scheme.keygen()
    part = scheme.encrypt(keys, values(0)[:10], "m").parts[0]
    with pytest.raises(EncryptionError, match="truncated, damaged or of other parameters"):
        scheme.context.load(part.replace(keys.tag.encode(), tag.encode("ascii", "replace")), tag)


def test_files_stream_and_are_private(tmp_path):
    holder = KeyHolder()
    client = Client(holder.client_key())
    for i in range(2):
        client.encrypt_file(tmp_path / f"client-{i}", values(i), "mask")
    Aggregator(raw=True).add_file(tmp_path / "sum", [tmp_path / "client-0", tmp_path / "client-1"])
    expected = sum(quantise(values(i), holder.profile) for i in range(2))
    assert (holder.decrypt(tmp_path / "sum", "mask") == expected).all()
    holder.save(tmp_path / "keys")
    for path in (tmp_path / "sum", tmp_path / "keys" / "secret.key", tmp_path / "keys" / "client.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "keys" / "secret.key").chmod(0o644)
    with pytest.raises(EncryptionError, match="mode 644, so others may read"):
        KeyHolder.load(tmp_path / "keys")
    with pytest.raises(EncryptionError, match="No such file"):
        KeyHolder.load(tmp_path / "none")


@pytest.mark.parametrize("damage", [lambda k: k[:10], lambda k: b"x" + k, lambda k: k[:-500], lambda k: k[:20] + b"\xff" * 20 + k[40:], lambda k: b""])
def test_damaged_keys_are_refused(damage):
    key = KeyHolder().client_key()
    with pytest.raises(EncryptionError):
        Client(damage(key))


def test_a_nan_leaves_no_file(tmp_path):
    client = Client(KeyHolder().client_key())
    bad = values(0)
    bad[4500] = np.nan
    with pytest.raises(EncryptionError, match="value 4500 to encrypt is nan"):
        client.encrypt_file(tmp_path / "upload", bad, "mask")
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_docs_runs():
    text = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], {})
