"""The client mod and the strategy where the server asks for too little, or most clients are gone: nothing leaves in the clear, and no upload is decrypted alone."""

import importlib.util
import logging

import numpy as np
import pytest

from selgrad import encryption
from selgrad.errors import EncryptionError, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed (extra federation)"),
    pytest.mark.skipif(bool(encryption.unavailable()), reason=str(encryption.unavailable())),
]
BEFORE = np.zeros(50, np.float32)
AFTER = {client: np.random.default_rng(client).normal(size=50).astype(np.float32) / 10 for client in range(3)}


@pytest.fixture(scope="module")
def holder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    made = encryption.KeyHolder()
    made.save(folder)
    return folder, made


def train(client, arrays=None):
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    after = {"w": AFTER[client]} if arrays is None else arrays

    def call(message, context):
        content = {"arrays": ArrayRecord({name: Array(value) for name, value in after.items()}), "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    return call


def ask(mask, arrays=None):
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    from selgrad.federation.mods import _MASK

    before = {"w": BEFORE} if arrays is None else arrays
    record = ConfigRecord({"indices": encryption.encode_indices(mask), "scale": 10.0, "weigh": "num-examples", "round": 1})
    content = {"arrays": ArrayRecord({name: Array(value) for name, value in before.items()}), _MASK: record}
    return Message(RecordDict(content), dst_node_id=1, message_type="train")


def mask_of(count, size=50):
    mask = np.zeros(size, bool)
    mask[:count] = True
    return mask


def test_a_mask_that_hides_too_little_is_refused(holder):
    from selgrad.federation.mods import _SEALED, selective_encryption

    folder, _ = holder
    mod = selective_encryption(folder / "client.key")
    with pytest.raises(EncryptionError, match="nothing is sent"):
        mod(ask(mask_of(0)), None, train(0))
    half = selective_encryption(folder / "client.key", min_ratio=0.5)
    with pytest.raises(EncryptionError, match="24 of 50 float entries and this client encrypts 25"):
        half(ask(mask_of(24)), None, train(0))
    assert len(half(ask(mask_of(25)), None, train(0)).content[_SEALED]["plain"]) == 4 * 25
    with pytest.raises(UsageError, match="ratio"):
        selective_encryption(folder / "client.key", min_ratio=2.0)
    with pytest.raises(EncryptionError, match="can be guessed"):
        selective_encryption(folder / "client.key", mac_key=b"short")


def test_counters_are_never_encrypted_and_large_moves_name_their_array(holder):
    from selgrad.federation.mods import selective_encryption

    mod = selective_encryption(holder[0] / "client.key")
    before = {"steps": np.zeros(3, np.int64), "w": np.zeros(4, np.float32)}
    with pytest.raises(EncryptionError, match="integer arrays"):
        mod(ask(mask_of(5, 7), before), None, train(0, before))
    after = {"steps": np.full(3, 9, np.int64), "w": np.array([0, 0, 0, 4], np.float32)}
    with pytest.raises(EncryptionError, match=r"in w \(4\)"):
        mod(ask(~mask_of(3, 7), before), None, train(0, after))


def test_one_good_reply_is_not_decrypted(holder, caplog):
    from flwr.app import Array, ArrayRecord

    from selgrad.federation.mods import _SEALED, SelectiveFedAvg, selective_encryption

    folder, keys = holder
    mod, mask, asked = selective_encryption(folder / "client.key"), mask_of(20), []

    def decrypt(total, digest):
        asked.append(encryption.Reader(total).header.num_clients)
        return keys.decrypt(total, digest)

    strategy = SelectiveFedAvg(ratio=0.4, decrypt=decrypt, max_examples=10, mask=mask)
    strategy._current = ArrayRecord({"w": Array(BEFORE)})
    replies = [mod(ask(mask), None, train(client)) for client in range(3)]
    for client in (0, 2):
        replies[client].content[_SEALED]["sealed"] = replies[client].content[_SEALED]["sealed"][:-3]
    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert strategy.aggregate_train(1, replies) == (None, None) and not asked
        # One upload under two names is one upload.
        assert strategy.aggregate_train(1, [replies[1], replies[1]]) == (None, None) and not asked
    whole = [mod(ask(mask), None, train(client)) for client in range(3)]
    arrays, _ = strategy.aggregate_train(1, whole)
    np.testing.assert_allclose(next(iter(arrays.values())).numpy(), np.mean([AFTER[client] for client in range(3)], axis=0), atol=2**-23)
    assert asked == [3]
    with pytest.raises(UsageError, match="min_clients=1"):
        SelectiveFedAvg(ratio=0.4, decrypt=decrypt, max_examples=10, min_clients=1)
