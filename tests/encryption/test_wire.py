"""Bytes between processes: what was written is what is read, and nothing else is."""

import dataclasses
import hashlib
import io
import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad.encryption.wire import Header, Reader, write, write_file
from selgrad.errors import EncryptionError

HEADER = Header("profile", "key", "mask", num_values=10, num_clients=1, grid_bits=24, num_parts=3)
PARTS = [b"one", b"", b"three" * 100]


def written(header=HEADER, parts=PARTS, key=None):
    stream = io.BytesIO()
    count = write(stream, header, parts, key)
    assert count == len(stream.getvalue())
    return stream.getvalue()


@given(parts=st.lists(st.binary(max_size=200), max_size=5), key=st.none() | st.binary(min_size=16, max_size=40))
def test_what_was_written_is_read(parts, key):
    header = dataclasses.replace(HEADER, num_parts=len(parts))
    reader = Reader(written(header, parts, key), key)
    assert reader.header == header and list(reader) == parts == list(reader)


@settings(max_examples=300)
@given(data=st.data())
def test_truncated_and_damaged_bytes_are_refused(data):
    key = data.draw(st.none() | st.just(b"sixteen secret b"))
    raw = bytearray(written(key=key))
    kind = data.draw(st.sampled_from(["cut", "flip", "grow", "any"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    elif kind == "flip":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "grow":
        raw += data.draw(st.binary(min_size=1, max_size=50))
    else:
        raw = bytearray(data.draw(st.binary(max_size=300)))
    with pytest.raises(EncryptionError):
        Reader(bytes(raw), key)


def test_only_the_holder_of_the_key_can_write():
    with pytest.raises(EncryptionError, match="not authentic"):
        Reader(written(key=b"a key of mine 16"), b"a key of theirs 16")
    with pytest.raises(EncryptionError, match="carry no authentication"):
        Reader(written(), b"a key of mine 16")
    with pytest.raises(EncryptionError, match="no key was given"):
        Reader(written(key=b"a key of mine 16"))


@pytest.mark.parametrize("header", [b"", b"[]", b"{}", b'{"authenticated": 3}', b"\xff\xfe", b"[" * 3000, b'{"authenticated": false, "num_values": -1}'])
def test_a_malformed_header_with_a_right_checksum_is_refused(header):
    rest = b"selgrad-ckks\x00\x02" + len(header).to_bytes(4, "big") + header
    with pytest.raises(EncryptionError, match="malformed"):
        Reader(rest + hashlib.sha256(rest).digest())


@pytest.mark.parametrize(
    "change", [{"num_parts": 2**40}, {"num_parts": -1}, {"num_values": "ten"}, {"num_clients": True}, {"key_tag": "x" * 200}, {"key_tag": 3}]
)
def test_a_header_that_lies_is_refused_without_waiting_for_what_it_announces(change):
    text = json.dumps({**dataclasses.asdict(HEADER), "authenticated": False, **change}).encode()
    raw = b"selgrad-ckks\x00\x02" + len(text).to_bytes(4, "big") + text + b"".join(len(part).to_bytes(4, "big") + part for part in PARTS)
    with pytest.raises(EncryptionError, match="damaged"):
        Reader(raw + hashlib.sha256(raw).digest())


def test_more_or_fewer_parts_than_announced_are_an_error():
    with pytest.raises(EncryptionError, match="2 ciphertexts were written and the header says 3"):
        write(io.BytesIO(), HEADER, PARTS[:2])


def test_files_are_private_and_appear_whole(tmp_path):
    path = tmp_path / "upload"
    write_file(path, HEADER, PARTS, b"a key of 16 byte")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(Reader(path, b"a key of 16 byte")) == PARTS

    def failing():
        yield PARTS[0]
        raise EncryptionError("value 7 to encrypt is nan")

    with pytest.raises(EncryptionError, match="value 7"):
        write_file(tmp_path / "other", HEADER, failing())
    assert os.listdir(tmp_path) == ["upload"]
    with pytest.raises(EncryptionError, match="cannot be read"):
        Reader(tmp_path / "none")
    with pytest.raises(EncryptionError, match="cannot be written"):
        write_file(tmp_path / "no" / "folder", HEADER, PARTS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here that is always full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *rest: real("/dev/full" if str(path).endswith(".part") else path, os.O_WRONLY))
    with pytest.raises(EncryptionError, match="No space left"):
        write_file(tmp_path / "upload", HEADER, PARTS)
