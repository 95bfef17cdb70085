"""What others send or put in our place: damaged keys never reach OpenFHE, private files follow no link, and what was verified is what is read."""

import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad import encryption
from selgrad.encryption import wire
from selgrad.encryption.ckks import CKKS
from selgrad.encryption.profiles import PROFILES
from selgrad.encryption.roles import Aggregator, Client, KeyHolder, Party, read_private
from selgrad.encryption.wire import Header, Reader, private_file, write_file
from selgrad.errors import EncryptionError

pytestmark = pytest.mark.skipif(encryption.unavailable() is not None, reason=str(encryption.unavailable()))


@pytest.fixture(scope="module")
def holder():
    return KeyHolder()


def mutated(raw, draw):
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(out) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "length"]))
        if kind == "flip":
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[at:]
            out = out or bytearray(1)
        elif kind == "insert":
            out[at:at] = bytes(draw(st.integers(1, 9)))
        else:
            out[at : at + 8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(out)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["client", "secret"]))
def test_a_damaged_key_is_refused(holder, data, kind):
    raw = holder.client_key() if kind == "client" else holder.secret_key()
    damaged = mutated(raw, data.draw)
    if damaged != raw:
        with pytest.raises(EncryptionError, match="key") as caught:
            Client(damaged) if kind == "client" else KeyHolder.restore(damaged, holder.client_key())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PROFILES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_openfhe_never_reads_a_key_of_another_form(name, data):
    """With a checksum that is right again: where only residues differ it is another key, and anything else is refused before OpenFHE reads it."""
    scheme = SCHEMES.setdefault(name, CKKS(name))
    keys = KEYS.setdefault(name, scheme.context.fresh_keys())
    for kind, key in (("public", keys.public), ("secret", keys.secret)):
        raw = scheme.context.serialise(key)
        try:
            scheme.context.load_key(mutated(raw, data.draw), kind)
        except EncryptionError as error:
            assert "\n" not in str(error)


SCHEMES: dict = {}
KEYS: dict = {}


def test_every_kind_of_bytes_has_a_known_form():
    """Else OpenFHE reads foreign bytes unlooked-at; a new version of it has to be looked at again."""
    for name in PROFILES:
        scheme = SCHEMES.setdefault(name, CKKS(name))
        kinds = {"public", "secret", *(["share"] if name == "threshold" else []), *(["ciphertext"] if scheme.layout is None else [])}
        assert set(scheme.context._known) == kinds


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_share_does_not_end_the_process(data):
    if not PARTIES:
        first = Party()
        second = Party(first.client_key())
        upload = Client(second.client_key()).encrypt(np.array([0.5, 0.25]), "m")
        PARTIES.extend([first, second, [party.share(upload, "m") for party in (first, second)]])
    first, _, shares = PARTIES
    with pytest.raises(EncryptionError) as caught:
        first.combine([shares[0], framed(shares[1], lambda part: mutated(part, data.draw))], "m")
    assert "\n" not in str(caught.value)


PARTIES: list = []


def framed(raw, change):
    """Bytes with every part changed and a checksum that is right again."""
    reader = Reader(raw)
    parts = [change(part) for part in reader]
    stream = wire.io.BytesIO()
    wire.write(stream, reader.header, parts)
    # A change that changes nothing would be no damage.
    return stream.getvalue() if parts != list(reader) else raw[:-1]


def test_a_textbook_ciphertext_is_looked_at_too():
    holder = KeyHolder("textbook")
    upload = Client(holder.client_key()).encrypt(np.array([0.5]), "m")
    assert holder.decrypt(Aggregator("textbook").add([upload]), "m").tolist() == [2**23]
    with pytest.raises(EncryptionError, match="not a ciphertext of this profile"):
        holder.decrypt(framed(upload, lambda part: part[:-1]), "m")


def test_a_header_allocates_nothing():
    holder, per = KeyHolder(), PROFILES["exact"].values_per_ciphertext
    stream = wire.io.BytesIO()
    count = 1_000_000
    header = Header(PROFILES["exact"].parameter_hash, holder.tag, "m", count * per, 1, 24, num_parts=count)
    wire.write(stream, header, iter([b""] * count))
    with pytest.raises(EncryptionError, match="truncated|damaged"):
        holder.decrypt(stream.getvalue(), "m")


def test_a_fork_gives_no_share():
    """Two children would smudge alike, and the difference of their shares of two sums is the secret."""
    code = (
        "import os, sys; import numpy as np; from selgrad.encryption.roles import Client, Party\n"
        "party = Party(); other = Party(party.client_key()); upload = Client(other.client_key()).encrypt(np.array([0.5]), 'm')\n"
        "if os.fork() == 0:\n"
        "    try: party.share(upload, 'm'); print('given')\n"
        "    except Exception as error: print(error)\n"
        "    sys.stdout.flush(); os._exit(0)\n"
        "os.wait()"
    )
    assert "was forked" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_private_files_are_new_files(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    (tmp_path / "secret.key").symlink_to(victim)
    with private_file(tmp_path / "secret.key") as stream:
        # Whatever the mask of new files' modes is.
        stream.write(b"key")
    assert victim.read_text() == "theirs" and not (tmp_path / "secret.key").is_symlink()
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    (tmp_path / "link.key").symlink_to(tmp_path / "secret.key")
    with pytest.raises(EncryptionError, match="cannot be read"):
        read_private(tmp_path / "link.key")
    before = set(os.listdir(tmp_path))
    with pytest.raises(RuntimeError), private_file(tmp_path / "other.key"):
        raise RuntimeError
    assert set(os.listdir(tmp_path)) == before


def test_nobody_foresees_where_a_private_file_is_written(tmp_path, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or real(path, *rest, **more))
    for _ in range(2):
        with private_file(tmp_path / "secret.key") as stream:
            stream.write(b"key")
    assert len(set(opened)) == 2


def test_what_was_verified_is_what_is_added(holder, tmp_path):
    client = Client(holder.client_key())
    path = tmp_path / "upload"
    client.encrypt_file(path, np.array([0.5]), "m")
    reader = Reader(path)
    client.encrypt_file(path, np.array([-0.25]), "m")
    with pytest.raises(EncryptionError, match="have changed since they were verified"):
        list(reader)


def test_one_upload_in_two_frames_counts_once(holder):
    upload = Client(holder.client_key()).encrypt(np.array([0.5]), "m")
    with pytest.raises(EncryptionError, match="add each client once"):
        Aggregator().add([upload, framed_alike(upload)])


def framed_alike(raw):
    """The same ciphertexts under a header that is written with one space more."""
    import hashlib

    start = len(wire._MAGIC)
    length = int.from_bytes(raw[start : start + 4], "big")
    text = raw[start + 4 : start + 4 + length].replace(b", ", b",  ", 1)
    content = raw[:start] + len(text).to_bytes(4, "big") + text + raw[start + 4 + length : -32]
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("key", [b"", b"x", b"fifteen bytes..", None])
def test_what_authenticates_nobody_is_refused(holder, tmp_path, key):
    client = Client(holder.client_key())
    if key is None:
        assert Reader(client.encrypt(np.array([0.5]), "m")).header.num_values == 1
        with pytest.raises(EncryptionError, match="authentication key is bytes"):
            wire.require_mac_key("a text that is long enough")
        return
    with pytest.raises(EncryptionError, match="authentication key"):
        write_file(tmp_path / "x", Header("a", "b", "c", 0, 1, 24, 0), [], key)
    with pytest.raises(EncryptionError, match="authentication key"):
        Client(holder.client_key(), mac_key=key).encrypt(np.array([0.5]), "m")
