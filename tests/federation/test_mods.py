"""The client mod, the strategy and the key holder of somebody else's app, where the server deviates or most clients are gone: no upload is opened alone."""

import importlib.util
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from selgrad import encryption
from selgrad.errors import SelgradError, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed (extra federation)"),
    pytest.mark.skipif(bool(encryption.unavailable()), reason=str(encryption.unavailable())),
]
BEFORE = np.zeros(50, np.float32)
AFTER = {client: np.random.default_rng(client).normal(size=50).astype(np.float32) / 10 for client in range(3)}


def enrolled(folder, **terms):
    from selgrad.federation.terms import Terms, enrol

    return enrol(Terms(**{"clients": 3, "max_examples": 10, "ratio": 0.4, **terms}), folder)


@pytest.fixture
def keys(tmp_path):
    return enrolled(tmp_path / "keys")


def node(number):
    from flwr.app import Context, RecordDict

    return Context(run_id=1, node_id=100 + number, node_config={"partition-id": number, "num-partitions": 3}, state=RecordDict(), run_config={})


def training(client, arrays=None, calls=None):
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    after = {"w": AFTER[client]} if arrays is None else arrays

    def call(message, context):
        if calls is not None:
            calls.append(client)
        content = {"arrays": ArrayRecord({name: Array(value) for name, value in after.items()}), "metrics": MetricRecord({"num-examples": 10, "loss": 0.5})}
        return Message(RecordDict(content), reply_to=message)

    return call


class Server:
    """One that sends what it likes, with a link to the key holder."""

    def __init__(self, keys, before=None):
        from flwr.app import Array, ArrayRecord

        from selgrad.federation.key_holder import key_holder_here
        from selgrad.federation.mods import SelectiveFedAvg, selective_encryption

        self.before = {"w": BEFORE} if before is None else before
        self.arrays = ArrayRecord({name: Array(value) for name, value in self.before.items()})
        self.mod, self.link = selective_encryption(keys), key_holder_here(keys)
        self.strategy = SelectiveFedAvg(key_holder=self.link)
        self.strategy._current = self.arrays
        floats = sum(array.size for array in self.before.values() if array.dtype.kind == "f")
        self.strategy._mask = self.mask = self.link.terms.fixed_mask(floats)

    def message(self, number=1, mask=None, settings=None, **change):
        from flwr.app import ConfigRecord, Message, RecordDict

        from selgrad.federation.mods import _ASKED

        indices = encryption.encode_indices(self.mask if mask is None else mask)
        record = ConfigRecord({"what": "train", "indices": indices, "round": number, **change})
        content = {"arrays": self.arrays, "config": ConfigRecord({"learning-rate": 0.1, **(settings or {})}), _ASKED: record}
        return Message(RecordDict(content), dst_node_id=1, message_type="train")

    def asks(self, client, number=1, mask=None, call=None, mod=None, **change):
        from flwr.app import Message

        from selgrad.federation.mods import _SEALED

        reply = (mod or self.mod)(self.message(number, mask, **change), node(client), call or training(client))
        if isinstance(reply, Message) and reply.has_content() and _SEALED in reply.content:
            self.asked = reply.content[_SEALED]["asked"]
        return reply

    def uploads(self, replies):
        from selgrad.federation.mods import _SEALED

        return [(reply.content[_SEALED]["client"], reply.content[_SEALED]["sealed"], reply.content[_SEALED]["word"]) for reply in replies]

    def opens(self, replies, number=1, uploads=None):
        from selgrad.federation.enrolment import digest_of_weights
        from selgrad.federation.messages import mask_digest
        from selgrad.federation.mods import _flat

        weights = digest_of_weights(_flat(self.arrays))
        return self.link.opened(number, mask_digest(self.mask), weights, self.asked, self.uploads(replies) if uploads is None else uploads)


def test_a_mask_that_hides_too_little_or_is_another_one_is_refused(keys):
    server = Server(keys)
    least = np.zeros(50, bool)
    least[np.flatnonzero(server.mask)[:-1]] = True
    for mask, said in (
        (np.zeros(50, bool), "names 0 of 50 float entries and this client encrypts 20"),
        (least, "names 19 of 50"),
        (~server.mask, "not the fixed"),
    ):
        with pytest.raises(SelgradError, match=said):
            server.asks(0, mask=mask)
    with pytest.raises(SelgradError, match="agreed to the mask 'fixed'"):
        server.asks(0, what="propose")


def test_a_server_that_asks_for_no_encryption_gets_nothing(keys):
    from flwr.app import Message, RecordDict

    server = Server(keys)
    with pytest.raises(SelgradError, match="sent no mask"):
        server.mod(Message(RecordDict({"arrays": server.arrays}), dst_node_id=1, message_type="train"), node(0), training(0))


def test_a_round_is_trained_and_answered_once(keys):
    from selgrad.federation.mods import _SEALED

    server, calls = Server(keys), []
    first = server.asks(0, call=training(0, calls=calls))
    again = server.asks(0, call=training(0, calls=calls))
    assert calls == [0] and dict(first.content[_SEALED]) == dict(again.content[_SEALED]) and again.content["metrics"]["loss"] == 0.5
    with pytest.raises(SelgradError, match="answered once"):
        server.asks(0, settings={"learning-rate": 0.2})
    server.asks(0, number=2)
    with pytest.raises(SelgradError, match="answered once"):
        server.asks(0, number=1)


def test_the_key_holder_opens_one_sum_of_a_round_and_none_that_the_server_made(keys):
    server = Server(keys)
    replies = [server.asks(client) for client in range(3)]
    points = server.opens(replies)
    each = [encryption.quantise(-AFTER[client][server.mask].astype(np.float32).astype(float), server.link.terms.encryption) for client in range(3)]
    np.testing.assert_array_equal(points, sum(each))
    np.testing.assert_array_equal(server.opens(replies), points)
    with pytest.raises(SelgradError, match="each is answered once"):
        server.opens(replies[:2])
    with pytest.raises(SelgradError, match="a sum over 1 clients"):
        server.opens(replies[:1], number=2)
    later = [server.asks(client, number=2) for client in range(3)]
    with pytest.raises(SelgradError, match="difference of two"):
        server.opens(later[:2], number=2)
    uploads = server.uploads(later)
    (one, raw, word), (other, _, _) = uploads[:2]
    total = encryption.CKKS(server.link.terms.encryption).add([encryption.Reader(raw)]).to_bytes()
    for forged in ((one, total[:-1] + bytes([total[-1] ^ 1]), word), (other, raw, word), (one, raw, bytes(32))):
        with pytest.raises(SelgradError, match=r"does not vouch|ciphertext|damaged"):
            server.opens([], number=3, uploads=[forged, uploads[2]])


@pytest.mark.parametrize("agreement", ["fixed", "encrypted_sensitivity"])
def test_clients_of_one_sum_were_asked_the_same(tmp_path, agreement):
    """A server that has one client train and the others stand still reads the one in the sum; no setting of a message or of the run may differ."""
    from flwr.app import Context, RecordDict

    from selgrad.federation.enrolment import digest_of_weights
    from selgrad.federation.mods import _SEALED, _flat

    server = Server(enrolled(tmp_path / "keys", agreement=agreement))
    still = training(1, {"w": BEFORE})
    what = {"what": "train" if agreement == "fixed" else "propose"}
    elsewhere = Context(run_id=1, node_id=7, node_config={"partition-id": 2, "num-partitions": 3}, state=RecordDict(), run_config={"learning-rate": 0.0})
    assert (
        len({server.asks(2, number=7 + i, settings={"seed": raw}, **what).content[_SEALED]["asked"] for i, raw in enumerate((b"a", b"b", [b"a", b"b"]))}) == 3
    )
    server = Server(enrolled(tmp_path / "again", agreement=agreement))
    replies = [
        server.asks(1, settings={"learning-rate": 0.0}, call=still, **what), server.mod(server.message(**what), elsewhere, still), server.asks(0, **what),
    ]  # fmt: skip
    assert len({reply.content[_SEALED]["asked"] for reply in replies}) == 3
    if agreement == "fixed":
        open_them = lambda: server.opens(replies)
    else:
        read = lambda record: (record["client"], record["proposal"], record["word"])
        maps = [read(reply.content[_SEALED]) for reply in replies]
        open_them = lambda: server.link.chosen(1, digest_of_weights(_flat(server.arrays)), server.asked, maps, 50)
    for asked in [reply.content[_SEALED]["asked"] for reply in replies]:
        server.asked = asked
        with pytest.raises(SelgradError, match="does not vouch"):
            open_them()


def test_the_server_does_not_choose_how_clients_are_weighted(keys):
    """It could take a scale at which all updates but that of the client with the most examples round to nothing, or a measure that is zero for most."""
    from flwr.app import ArrayRecord

    from selgrad.federation.mods import _SEALED, SelectiveFedAvg

    server = Server(keys)
    usual = server.asks(0)
    other = Server(enrolled(keys.parent / "others"))
    changed = other.asks(0, scale=1e30, weigh="loss", max_examples=1e30)
    assert usual.content[_SEALED]["weight"] == changed.content[_SEALED]["weight"] == 1.0
    with pytest.raises(UsageError, match="weighted_by_key='loss' is not what clients were enrolled with"):
        SelectiveFedAvg(key_holder=server.link, weighted_by_key="loss")
    many = enrolled(keys.parent / "many", max_examples=5)
    with pytest.raises(SelgradError, match=r"\(0, 5\]; return it once, or enrol with a larger max_examples"):
        Server(many).asks(0)
    assert isinstance(server.arrays, ArrayRecord)


@pytest.mark.parametrize("agreement", ["fixed", "vote"])
def test_one_mask_is_used_in_a_run(tmp_path, agreement):
    """What one mask hides another would show, of the same weights."""
    keys = enrolled(tmp_path / "keys", agreement=agreement)
    server = Server(keys)
    other = ~server.mask
    server.asks(0)
    with pytest.raises(SelgradError, match=r"not the one that participant 0 began|not the fixed one"):
        server.asks(0, number=2, mask=other)
    with pytest.raises(SelgradError, match=r"not the one that participant 0 began|not the fixed one"):
        server.asks(0, number=1, mask=other)


def test_equal_weights_are_the_same_weights_and_score_maps_are_no_updates(keys):
    from flwr.app import Array, ArrayRecord

    from selgrad.federation.enrolment import Enrolment, Seat
    from selgrad.federation.key_holder import respond

    server = Server(keys)
    replies = [server.asks(client) for client in range(3)]
    server.opens(replies)
    server.arrays = ArrayRecord({"w": Array(-BEFORE)})
    assert np.signbit(server.arrays["w"].numpy()).all()
    with pytest.raises(SelgradError, match="difference of two"):
        server.opens([server.asks(client, number=2) for client in range(2)], number=2)
    clients, raws, tags = (list(column) for column in zip(*server.uploads(replies), strict=True))
    seat = Seat(Enrolment.load(keys / "key-holder"), keys / "key-holder")
    asked = {"kind": "decrypt", "round": 1, "clients": clients, "uploads": raws, "tags": tags, "weights": "0" * 64, "mask_hash": "0" * 64}
    asked["asked"] = server.asked
    for name, value in (("asked", "x"), ("weights", b"0" * 64), ("weights", "A" * 64), ("mask_hash", "scores"), ("mask_hash", b"0" * 64)):
        with pytest.raises(SelgradError, match=f"{name} is not a SHA-256"):
            respond(seat, {**asked, name: value})


def test_arrays_are_what_the_server_sent_and_the_training_returns(keys):
    """A server that calls floats integers would have them sent in the clear; an app that returns others, or in another order, would be averaged wrongly."""
    server = Server(keys, {"w": np.zeros(49, np.int64), "b": np.zeros(1, np.float32)})
    with pytest.raises(SelgradError, match="other names, shapes, types or order"):
        server.asks(0, call=training(0, {"w": AFTER[0][:49], "b": AFTER[0][49:]}))
    server = Server(keys, {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(SelgradError, match="other names, shapes, types or order"):
        server.asks(1, call=training(1, {"b": np.ones(3, np.float32), "a": np.ones(3, np.float32)}))
    server = Server(keys, {"w": np.zeros(3, np.float32), "on": np.zeros(3, bool)})
    with pytest.raises(SelgradError, match="array 'on' has type bool"):
        server.asks(2)
    for number in (1.5, float("nan"), -1, True):
        with pytest.raises(SelgradError, match="is none"):
            Server(keys).asks(0, number=number)


def test_a_client_that_lies_silences_nobody_and_ends_no_run(keys, caplog):
    from flwr.app import ConfigRecord

    from selgrad.federation.mods import _SEALED

    server = Server(keys)
    replies = [server.asks(client) for client in range(3)]
    posed = server.asks(0)
    posed.content[_SEALED] = ConfigRecord({**dict(posed.content[_SEALED].items()), "client": 2, "said": "nothing"})
    bare = server.asks(1)
    del bare.content["metrics"]
    with caplog.at_level(logging.WARNING, logger="flwr"):
        arrays, metrics = server.strategy.aggregate_train(1, [posed, bare, *replies])
    assert metrics["loss"] == 0.5 and "client 2 is left out: it is not authentic" in caplog.text and "client 1 is left out: it does not say" in caplog.text
    np.testing.assert_allclose(next(iter(arrays.values())).numpy(), np.mean([AFTER[client] for client in range(3)], axis=0), atol=2**-23)


def test_a_key_holder_that_cannot_be_reached_ends_the_run(keys):
    """It may have opened the sum: going on with these weights would be refused for good."""
    from selgrad.federation.key_holder import UnreachableError

    server = Server(keys)
    replies, ask = [server.asks(client) for client in range(3)], server.link._ask

    def lost(raw, tag):
        ask(raw, tag)
        raise UnreachableError("the answer was lost")

    server.link._ask = lost
    with pytest.raises(UnreachableError):
        server.strategy.aggregate_train(1, replies)
    server.link._ask = ask
    assert server.strategy.aggregate_train(1, replies)[0] is not None, "the same request gets the same answer"


def test_an_interrupted_enrolment_is_made_again(tmp_path):
    folder = enrolled(tmp_path / "keys")
    (folder / "public.json").unlink()
    (folder / "server" / "participant.json").unlink()
    enrolled(tmp_path / "keys")
    assert (folder / "server" / "participant.json").exists()


def test_the_key_holder_answers_to_its_own_server_alone(keys, tmp_path):
    from selgrad.federation.enrolment import Enrolment
    from selgrad.federation.key_holder import KeyHolderLink

    server = Server(keys)
    replies = [server.asks(client) for client in range(3)]
    ask = server.link._ask
    server.link = KeyHolderLink(Enrolment.load(enrolled(tmp_path / "others") / "server"), ask)
    with pytest.raises(SelgradError, match="not from the server that this key holder was enrolled with"):
        server.opens(replies)
    # Nor does the server believe just anybody.
    server.link = KeyHolderLink(Enrolment.load(keys / "server"), lambda raw, tag: ask(raw, tag)[:-1] + b"\0")
    with pytest.raises(SelgradError, match=r"not authentic|damaged"):
        server.opens(replies)


def test_counters_are_never_encrypted_and_large_moves_name_their_array(keys, caplog):
    from selgrad.federation.mods import selective_encryption

    server = Server(keys, {"steps": np.full(3, 2**30, np.int64), "w": np.zeros(4, np.float32)})
    assert server.mask.size == 4
    far = {"steps": np.full(3, 2**30 + 7, np.int64), "w": np.where(server.mask, np.float32(4), np.float32(0))}
    with pytest.raises(SelgradError, match=r"public bound 1 in this round") as stop, caplog.at_level(logging.ERROR, logger="flwr"):
        server.asks(0, call=training(0, far))
    # What the server reads holds no number of what it is not to see.
    assert "in w (4)" in caplog.text and "4" not in str(stop.value)
    clipping = selective_encryption(keys, clip=True)
    arrays, _ = server.strategy.aggregate_train(1, [server.asks(client, call=training(client, far), mod=clipping) for client in range(3)])
    steps, weights = (array.numpy() for array in arrays.values())
    assert steps.tolist() == [2**30 + 7] * 3, "float32 has no such integer"
    np.testing.assert_array_equal(weights, np.where(server.mask, 1.0, 0.0))
    with pytest.raises(SelgradError, match="not finite"):
        server.asks(0, number=2, call=training(0, {**far, "w": np.full(4, np.nan, np.float32)}))


def test_one_good_reply_is_not_opened(keys, caplog):
    from selgrad.federation.mods import _SEALED

    server, opened = Server(keys), []
    ask = server.link._ask
    server.link._ask = lambda raw, tag: opened.append(raw) or ask(raw, tag)
    replies = [server.asks(client) for client in range(3)]
    whole = [reply.content[_SEALED]["sealed"] for reply in replies]
    for client in (0, 2):
        replies[client].content[_SEALED]["sealed"] = whole[client][:-3]
    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert server.strategy.aggregate_train(1, replies) == (None, None) and not opened
        # One client that answers twice is one client.
        assert server.strategy.aggregate_train(1, [replies[1], replies[1]]) == (None, None) and not opened
        # What another client said is not this one's.
        replies[0].content[_SEALED]["sealed"] = whole[0]
        replies[0].content[_SEALED]["weight"] = 0.5
        assert server.strategy.aggregate_train(1, replies) == (None, None) and not opened
    assert "authentic" in caplog.text and "min_clients is 2" in caplog.text
    arrays, metrics = server.strategy.aggregate_train(1, [server.asks(client) for client in range(3)])
    np.testing.assert_allclose(next(iter(arrays.values())).numpy(), np.mean([AFTER[client] for client in range(3)], axis=0), atol=2**-23)
    assert len(opened) == 1 and metrics["loss"] == 0.5


@pytest.mark.parametrize("agreement", ["vote", "union", "interleaved", "encrypted_sensitivity"])
def test_masks_follow_the_significance_of_clients_own_updates(tmp_path, agreement):
    from selgrad.federation.mods import selective_encryption

    keys = enrolled(tmp_path / "keys", agreement=agreement, ratio=0.2)
    server = Server(keys)
    server.strategy._mask = None

    class Grid:
        def get_node_ids(self):
            return [0, 1, 2]

        def send_and_receive(self, messages, timeout=None):
            return [
                mods[message.metadata.dst_node_id](message, node(message.metadata.dst_node_id), training(message.metadata.dst_node_id)) for message in messages
            ]

    def mask_of(scores):
        from flwr.app import ConfigRecord

        mods.update({client: selective_encryption(keys, **scores) for client in range(3)})
        list(server.strategy.configure_train(1, server.arrays, ConfigRecord({}), Grid()))
        return server.strategy.mask

    mods = {}
    found = mask_of({})
    if agreement == "encrypted_sensitivity":
        grid = [np.abs(AFTER[client]) / np.abs(AFTER[client]).max() for client in range(3)]
        assert set(np.flatnonzero(found)) == set(np.argsort(-sum(grid), kind="stable")[:10])
    else:
        own = [set(np.argsort(-np.abs(AFTER[client]), kind="stable")[:10]) for client in range(3)]
        assert set(np.flatnonzero(found)) <= set.union(*own)
        if agreement == "union":
            assert set(np.flatnonzero(found)) == set.union(*own)
    assert found.sum() >= 10
    # A significance of the client's own: the last entries, whatever moved.
    server = Server(enrolled(tmp_path / "other", agreement=agreement, ratio=0.2))
    server.strategy._mask, keys = None, tmp_path / "other"
    assert np.flatnonzero(mask_of({"scores": lambda update: {"w": np.arange(50.0)}})).tolist() == list(range(40, 50))


def test_terms_name_what_cannot_be(tmp_path):
    from selgrad.federation.terms import Terms

    wrong = [
        ({"clients": 1}, "min_clients=2"), ({"clients": 3, "min_clients": 1}, "min_clients=1"), ({"clients": 3, "max_examples": 0}, "max_examples=0"), ({"clients": 3, "ratio": 1.5}, "ratio"),
        ({"clients": 3, "agreement": "votes"}, "vote"), ({"clients": 3, "profile": "threshold"}, "no key holder"), ({"clients": 3, "seed": -1}, "seed=-1"),
        ({"clients": 3, "bound": -1.0}, "bound"),
    ]  # fmt: skip
    for terms, said in wrong:
        with pytest.raises(UsageError, match=said):
            Terms(**{"max_examples": 10, **terms})
    folder = enrolled(tmp_path / "keys")
    tag = json.loads((folder / "public.json").read_text())["key_tag"]
    enrolled(tmp_path / "keys")
    assert json.loads((folder / "public.json").read_text())["key_tag"] == tag, "the keys of a run are made once"
    with pytest.raises(UsageError, match=r"ratio=0.4 and not 0.5"):
        enrolled(tmp_path / "keys", ratio=0.5)


@pytest.mark.slow
def test_the_service_opens_sums_over_tls_and_goes_on_after_a_kill(keys):
    from selgrad.federation.key_holder import connect

    from .test_flower import certificate

    key, pem = certificate(keys)

    def started(port):
        command = ["key-holder", str(keys), "--address", f"127.0.0.1:{port}", "--ssl-certfile", pem, "--ssl-keyfile", key]
        process = subprocess.Popen([sys.executable, "-m", "selgrad.cli", *command], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().partition("127.0.0.1:")[2].partition(";")[0]

    processes: list[subprocess.Popen] = []
    server = Server(keys)
    replies = [server.asks(client) for client in range(3)]
    server.link = connect(keys / "server", "127.0.0.1:1", root_certificates=pem)
    with pytest.raises(SelgradError, match="does not answer"):
        server.opens(replies)
    service, port = started(0)
    try:
        server.link = connect(keys / "server", f"127.0.0.1:{port}", root_certificates=pem)
        points = server.opens(replies)
        with pytest.raises(SelgradError, match="refuses: 'decrypt' of round 1 was answered to another request"):
            server.opens(replies[:2])
        stranger = Server(enrolled(keys / "others"))
        stranger.link = connect(keys / "others" / "server", f"127.0.0.1:{port}", root_certificates=pem)
        with pytest.raises(SelgradError, match="enrolled with another server"):
            stranger.opens([stranger.asks(client) for client in range(3)])
        service.kill()
        service.wait()
        service, _ = started(port)
        np.testing.assert_array_equal(server.opens(replies), points)
        with pytest.raises(SelgradError, match="was answered to another request"):
            server.opens(replies[:2])
    finally:
        service.terminate()
        assert service.wait(30) == 143
        for process in processes:
            process.stdout.close()
