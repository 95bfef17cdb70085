"""A server that deviates: what it can make participants do, message by message, through nothing but what they answer.

Each test is an attack that a review carried out on an earlier protocol; in all of them a participant now refuses.
"""

import multiprocessing
import threading
import time

import numpy as np
import pytest

from selgrad import encryption
from selgrad.encryption.wire import Header
from selgrad.errors import EncryptionError, SelgradError
from selgrad.federation.client import respond
from selgrad.federation.config import parse
from selgrad.federation.enrolment import Enrolment, Seat, digest, digest_of_weights, enrol, read_public, write
from selgrad.federation.learning import task_of
from selgrad.federation.messages import context_of, mask_digest

pytestmark = pytest.mark.skipif(bool(encryption.unavailable()), reason=str(encryption.unavailable()))
SMALL = {
    "dataset": {"name": "digits", "count": 300}, "model": {"name": "mlp", "width": 8}, "clients": {"count": 3, "alpha": 0.0}, "rounds": 3,
    "local": {"num_steps": 2, "batch_size": 8, "learning_rate": 0.5}, "agreement": "vote", "ratio": 0.3, "min_clients": 2,
}  # fmt: skip


class Hostile:
    """The messages of a server, whatever it likes to send."""

    def __init__(self, folder=None, **change):
        self.config = parse({**SMALL, **change})
        self.task = task_of(self.config.text)
        enrolments = enrol(self.config)
        self.folder = folder
        if folder is not None:
            write(enrolments, folder)
        self.seats = {one.number: Seat(one, None if folder is None else folder / str(one.number)) for one in enrolments}
        self.run = enrolments[0].public.run
        self.bits = np.random.default_rng(0).permutation(self.task.num_total) < round(0.3 * self.task.num_total)
        self.weights = self.task.initial
        for party in self.seats:
            self.ask(party, "hello", 0)

    def restarted(self):
        """Every participant as a new process finds itself."""
        self.seats = {number: Seat(Enrolment.load(self.folder / str(number)), self.folder / str(number)) for number in self.seats}
        for party in self.seats:
            self.ask(party, "hello", 0)

    def ask(self, party, kind, number=1, **more):
        request = {"kind": kind, "round": number, "ticket": 1, "config": self.config.fingerprint, **more}
        return respond(self.seats[party], request)

    def train(self, client, number=1, bits=None, weights=None, **more):
        bits = self.bits if bits is None else bits
        weights = self.weights if weights is None else weights
        common = {"weights": weights.tobytes(), "mask_hash": mask_digest(bits), "mask": encryption.encode_indices(bits)}
        return self.ask(client, "train", number, **{**common, **more})

    def decrypt(self, replies, number=1, weights=None, kind="decrypt", to=3, tag_at=0, **more):
        weights = self.weights if weights is None else weights
        asked = {
            "clients": list(replies), "uploads": [reply["sealed"] for reply in replies.values()],
            "tags": [reply["tags"][32 * tag_at : 32 * tag_at + 32] for reply in replies.values()], "weights": digest_of_weights(weights),
            "mask_hash": mask_digest(self.bits),
        }  # fmt: skip
        return self.ask(to, kind, number, **{**asked, **more})

    def request(self, replies):
        """What `decrypt` asks the key holder, for another process to answer."""
        asked = {}
        self.ask = lambda to, kind, number, **more: asked.update({"kind": kind, "round": number, "ticket": 1, "config": self.config.fingerprint, **more})
        self.decrypt(replies)
        del self.ask
        return asked

    def truth(self, clients, number=1, weights=None):
        weights = self.weights if weights is None else weights
        each = [np.float32(self.task.weight(c)) * self.task.update(weights, c, number) for c in clients]
        return sum(encryption.quantise(one.astype(np.float32)[self.bits].astype(float), self.task.profile) for one in each)


@pytest.fixture
def server(tmp_path):
    return Hostile(tmp_path)


def test_an_honest_round_is_decrypted_exactly(server):
    replies = {client: server.train(client) for client in range(3)}
    points = np.frombuffer(server.decrypt(replies)["points"], np.int64)
    np.testing.assert_array_equal(points, server.truth(range(3)))


def test_the_smallest_number_of_clients_is_the_participants_own(server):
    replies = {client: server.train(client) for client in range(3)}
    with pytest.raises(SelgradError, match="a sum over 1 clients is not decrypted"):
        server.decrypt({2: replies[2]})
    lie = parse({**SMALL, "clients": {"count": 1, "alpha": 0.0}, "min_clients": 1})
    with pytest.raises(SelgradError, match="another configuration"):
        server.decrypt({2: replies[2]}, config=lie.fingerprint)
    with pytest.raises(SelgradError, match="not one of each client"):
        server.decrypt({2: replies[2]}, clients=[2, 2], uploads=[replies[2]["sealed"]] * 2, tags=[replies[2]["tags"]] * 2)


def test_the_key_holder_opens_nothing_that_clients_do_not_vouch_for(server):
    """A ciphertext that the server made: of chosen residues, whose decryption would be the key; or an upload moved to another client's name."""
    replies = {client: server.train(client) for client in range(3)}
    scheme = encryption.CKKS(server.task.profile)
    sealed = encryption.Ciphertexts.from_bytes(replies[0]["sealed"])
    chosen = np.zeros((2, scheme.layout.ring), np.uint64)
    chosen[1, 0] = 2**20
    made = encryption.Ciphertexts(sealed.header, (scheme.layout.serialise(chosen, sealed.header.key_tag),) * len(sealed.parts)).to_bytes()
    for forged in ({**replies[0], "sealed": made}, {**replies[1], "tags": replies[0]["tags"]}):
        with pytest.raises(SelgradError, match="client 0 does not vouch"):
            server.decrypt({**replies, 0: forged})
    other = {**replies, 0: replies[1], 1: replies[0]}
    with pytest.raises(SelgradError, match="does not vouch"):
        server.decrypt(other)


def test_one_set_of_uploads_is_decrypted_in_a_round(server):
    replies = {client: server.train(client) for client in range(3)}
    first = server.decrypt(replies)["points"]
    with pytest.raises(SelgradError, match="each is answered once"):
        server.decrypt({client: replies[client] for client in (0, 1)})
    # The same again for a server that lost it, also of processes that were started anew.
    assert server.decrypt(replies)["points"] == first
    server.restarted()
    assert server.decrypt(replies)["points"] == first
    with pytest.raises(SelgradError, match="each is answered once"):
        server.decrypt({client: replies[client] for client in (0, 1)})


def test_one_set_of_weights_is_decrypted_in_one_round(server):
    server.decrypt({client: server.train(client) for client in range(3)})
    again = {client: server.train(client, 2) for client in (0, 1)}
    with pytest.raises(SelgradError, match="of these weights was decrypted in another round"):
        server.decrypt(again, 2)
    # Not under another name of theirs either, nor what is not an update at all.
    later = {client: server.train(client, 2, weights=np.where(server.weights == 0, -server.weights, server.weights)) for client in range(2)}
    with pytest.raises(SelgradError, match="of these weights was decrypted in another round"):
        server.decrypt(later, 2)
    with pytest.raises(SelgradError, match="mask_hash is not a SHA-256"):
        server.decrypt(later, 2, mask_hash="scores")
    moved = server.weights + np.float32(0.01)
    server.decrypt({client: server.train(client, 3, weights=moved) for client in range(3)}, 3, weights=moved)


def test_a_client_answers_a_round_once_and_to_the_same_request_the_same(server):
    first = server.train(0)
    server.restarted()
    again = server.train(0)
    assert (again["plain"], again["sealed"], again["tags"]) == (first["plain"], first["sealed"], first["tags"]) and again["mac"] != first["mac"]
    for change in ({"weights": server.weights + np.float32(1e-3)}, {"bits": np.ones(server.task.num_total, bool)}):
        with pytest.raises(SelgradError, match="each is answered once|not the one that participant 0 began"):
            server.train(0, **change)
    server.train(0, 3)
    with pytest.raises(SelgradError, match="each is answered once"):
        server.train(0, 2)
    for number in (0.5, -1, 4, "1"):
        with pytest.raises(SelgradError, match="not one of the 3 rounds"):
            server.train(0, number)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 8, b"\xff" * 100])
def test_who_does_not_know_what_it_answered_answers_nothing(server, damage):
    server.train(0)
    file = server.folder / "0" / "answered-train"
    content = file.read_bytes()
    for changed in (damage, content[:-1], content + b"x"):
        file.write_bytes(changed)
        server.restarted()
        with pytest.raises(SelgradError, match="cannot know what to answer once"):
            server.train(0)


def test_noise_is_drawn_once():
    """Two draws of it could be averaged."""
    server = Hostile(protection={"name": "dp_gaussian", "clip": 1.0, "noise": 0.5}, min_clients=1)
    assert server.train(0, mask=b"")["plain"] == server.train(0, mask=b"")["plain"]


def test_an_upload_of_another_round_or_run_is_refused(server):
    replies = {client: server.train(client) for client in range(3)}
    moved = server.weights + np.float32(0.01)
    later = {client: server.train(client, 2, weights=moved) for client in range(3)}
    with pytest.raises(SelgradError, match="does not vouch"):
        server.decrypt({**later, 0: replies[0]}, 2, weights=moved)
    other = Hostile()
    with pytest.raises(SelgradError, match="does not vouch"):
        server.decrypt({**replies, 0: other.train(0)})


def test_a_client_encrypts_under_the_key_it_was_enrolled_with(server):
    evil = encryption.KeyHolder(server.task.profile)
    reply = server.train(1, client_key=evil.client_key())
    assert encryption.Reader(reply["sealed"]).header.key_tag == server.seats[3].enrolment.public.key_tag != evil.tag


@pytest.mark.parametrize("count", [0, 1, -1])
def test_a_client_hides_as_much_as_was_agreed(server, count):
    bits = server.bits.copy()
    bits[np.flatnonzero(bits)[count if count >= 0 else bits.sum() - 1 :]] = False
    with pytest.raises(SelgradError, match="at least are encrypted; nothing is sent"):
        server.train(0, bits=bits)


def test_no_configuration_comes_from_the_network(server):
    for change in ({"protection": "none"}, {"ratio": 0.01}, {"dataset": {"name": "image_folder", "path": "/anywhere"}}):
        with pytest.raises(SelgradError, match="another configuration"):
            server.train(0, config=parse({**SMALL, **change}).fingerprint)


def test_the_fixed_mask_is_the_fixed_one():
    server = Hostile(agreement="fixed")
    with pytest.raises(SelgradError, match="not the fixed one"):
        server.train(0)


def test_keys_are_not_made_on_a_servers_word(server):
    for party in (0, 3):
        with pytest.raises(SelgradError, match="when a run is set up"):
            server.ask(party, "make_key", 0, previous=b"")


def beyond(server, client, value):
    """What a client sends that has changed its program: a value beyond the bound, encrypted under the run's key."""
    scheme, seat = encryption.CKKS(server.task.profile), server.seats[client]
    keys = scheme.load_public(encryption.roles._unpack(seat.kept("joint") or seat.enrolment.client_key)[2])
    count, context = int(server.bits.sum()), context_of(mask_digest(server.bits), 1, server.run)
    slots = encryption.packing.fill_slots(np.zeros(count), server.task.profile, 0)
    slots[0] = value
    part = scheme.context.to_wire(scheme.context.encrypt(keys, scheme.context.pack(slots)), keys.tag)
    raw = encryption.Ciphertexts(Header(server.task.profile.parameter_hash, keys.tag, context, count, 1, server.task.profile.grid_bits, 1), (part,)).to_bytes()
    said = ("upload", client, context, digest_of_weights(server.weights), digest(raw))
    return {"sealed": raw, "tags": seat.enrolment.tags(*said)}


def test_a_client_beyond_the_bound_or_off_the_grid_is_named(server):
    replies = {client: server.train(client) for client in range(3)}
    for value, said in ((100.0, "beyond the bound"), (2.0**-25, "off the grid")):
        with pytest.raises(SelgradError, match=f"client 1 sent what cannot be summed: .*{said}"):
            server.decrypt({**replies, 1: beyond(server, 1, value)})
    # Nothing was answered, so the others' sum still can be.
    assert server.decrypt({client: replies[client] for client in (0, 2)})["points"]


class TestParties:
    @pytest.fixture
    def server(self, tmp_path):
        server = Hostile(tmp_path, encryption={"profile": "threshold"})
        self.confirm(server)
        return server

    @staticmethod
    def chain(server):
        key, parties, before, after, tags = b"", sorted(server.seats), [], [], {}
        for party in parties:
            before.append(digest(key))
            reply = server.ask(party, "make_key", 0, previous=key)
            key, tags[party] = reply["client_key"], reply["tags"]
            after.append(digest(key))
        mine = lambda to: [b"" if party == to else tags[party][32 * (at := [p for p in parties if p != party].index(to)) : 32 * at + 32] for party in parties]
        return {to: {"client_key": key, "parties": parties, "before": before, "after": after, "tags": mine(to)} for to in parties}

    @classmethod
    def confirm(cls, server):
        for party, chain in cls.chain(server).items():
            server.ask(party, "confirm", 0, **chain)

    def shares(self, server, replies, to):
        others = lambda client: [party for party in range(3) if party != client]
        tags = [b"" if client == to else reply["tags"][32 * others(client).index(to) :][:32] for client, reply in replies.items()]
        return server.decrypt(replies, kind="share", to=to, tags=tags)

    def test_an_honest_round_is_decrypted_exactly_and_once(self, server):
        replies = {client: server.train(client) for client in range(3)}
        shares = [encryption.Ciphertexts.from_bytes(self.shares(server, replies, party)["share"]) for party in range(3)]
        points = encryption.CKKS(server.task.profile).combine(shares, context_of(mask_digest(server.bits), 1, server.run))
        np.testing.assert_array_equal(points, server.truth(range(3)))
        with pytest.raises(SelgradError, match="each is answered once"):
            self.shares(server, {client: replies[client] for client in (0, 1)}, 0)
        assert self.shares(server, replies, 0)["share"] == shares[0].to_bytes()
        again = {client: server.train(client, 2) for client in (0, 1)}
        others = lambda client: [party for party in range(3) if party != client]
        tags = [b"" if client == 0 else reply["tags"][32 * others(client).index(0) :][:32] for client, reply in again.items()]
        with pytest.raises(SelgradError, match="of these weights was decrypted in another round"):
            server.decrypt(again, 2, kind="share", to=0, tags=tags)

    def test_a_share_is_of_what_clients_vouch_for(self, server):
        """One crafted request would give the party's whole share of the secret."""
        replies = {client: server.train(client) for client in range(3)}
        scheme = encryption.CKKS(server.task.profile)
        sealed = encryption.Ciphertexts.from_bytes(replies[1]["sealed"])
        chosen = np.zeros((2, scheme.layout.ring), np.uint64)
        chosen[1, 0] = 2**40
        made = encryption.Ciphertexts(sealed.header, (scheme.layout.serialise(chosen, sealed.header.key_tag),) * len(sealed.parts)).to_bytes()
        for party in (0, 1):
            with pytest.raises(SelgradError, match="client 1 does not vouch"):
                self.shares(server, {**replies, 1: {**replies[1], "sealed": made}}, party)

    @pytest.mark.parametrize(("value", "said"), [(50.0, "beyond the bound 1 of 3 clients"), (2.0**-20, "off the grid")])
    def test_what_no_client_can_have_sent_is_no_sum(self, server, value, said):
        """No party can open a single upload, so nobody is named; but the sum is refused."""
        from selgrad.federation.client import _party
        from selgrad.federation.sums import added

        replies = {**{client: server.train(client) for client in (0, 2)}, 1: beyond(server, 1, value)}
        replies = {client: replies[client] for client in range(3)}
        context = context_of(mask_digest(server.bits), 1, server.run)
        shares = {party: self.shares(server, replies, party)["share"] for party in (0, 2)}
        total, _ = added(server.task.profile, [encryption.Reader(reply["sealed"]) for reply in replies.values()])
        shares[1] = _party(server.seats[1].kept("secret")).share(total, context)
        parts = [encryption.Ciphertexts.from_bytes(shares[party]) for party in range(3)]
        with pytest.raises(EncryptionError, match=said):
            encryption.CKKS(server.task.profile).combine(parts, context)

    def test_a_key_of_the_servers_own_is_not_used(self, tmp_path):
        server = Hostile(tmp_path, encryption={"profile": "threshold"})
        with pytest.raises(SelgradError, match="no key that it was given"):
            server.train(0)
        chain = self.chain(server)[0]
        evil = encryption.Party().client_key()
        for change in (
            {"client_key": evil}, {"client_key": evil, "after": [*chain["after"][:-1], digest(evil)]}, {"parties": [0], "before": chain["before"][:1], "after": chain["after"][:1], "tags": [b""]},
            {"tags": [b"", bytes(32), bytes(32)]}, {"parties": [0, 1, 1]},
        ):  # fmt: skip
            with pytest.raises(SelgradError, match="nothing is encrypted under it|is not used"):
                server.ask(0, "confirm", 0, **{**chain, **change})
        with pytest.raises(SelgradError, match="no key that it was given"):
            server.train(0)


class TestEnrolment:
    def test_each_participant_has_its_own_and_no_more(self, tmp_path):
        write(enrol(parse(SMALL)), tmp_path)
        seats = {number: Enrolment.load(tmp_path / str(number)) for number in range(4)}
        assert [bool(one.secret) for one in seats.values()] == [False, False, False, True]
        assert [sorted(one.shared) for one in seats.values()] == [[3], [3], [3], [0, 1, 2]] and len({one.shared[3] for one in list(seats.values())[:3]}) == 3
        assert read_public(tmp_path) == seats[0].public and seats[2].shared[3] == seats[3].shared[2]
        for number in range(4):
            assert (tmp_path / str(number) / "participant.json").stat().st_mode & 0o77 == 0
        text = (tmp_path / "public.json").read_text()
        assert "shared" not in text and "secret" not in text

    def test_a_tag_is_of_one_list(self):
        a, b = enrol(parse({**SMALL, "clients": {"count": 2}}))[:2]
        holder = enrol(parse(SMALL))[3]
        assert a.shared.keys() == b.shared.keys() and not holder.knows(0, a.tag(2, "x"), "x")
        assert a.tag(2, "ab", "c") != a.tag(2, "a", "bc") != a.tag(2, "abc")

    @pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\x00"])
    def test_a_damaged_one_is_named(self, tmp_path, damage):
        write(enrol(parse(SMALL)), tmp_path)
        (tmp_path / "0" / "participant.json").write_bytes(damage)
        with pytest.raises(SelgradError, match=r"participant.json"):
            Enrolment.load(tmp_path / "0")


def _asked_at_once(folder, request, answers, together):
    """One of two processes that answer for a participant."""
    from selgrad.federation.client import respond, task_of

    seat = Seat(Enrolment.load(folder), folder)
    task_of(seat.enrolment.text)
    encryption.KeyHolder.restore(seat.enrolment.secret, seat.enrolment.client_key)
    together.wait()
    try:
        answers.put(("answered", respond(seat, request)["points"]))
    except SelgradError as error:
        answers.put(("refused", str(error)))


@pytest.mark.slow
def test_of_two_requests_at_once_one_is_answered(tmp_path):
    """Flower may start a process for each message: each would find that no sum was decrypted yet, and the difference of the two is one client's update."""
    server = Hostile(tmp_path)
    replies = {client: server.train(client) for client in range(3)}
    subsets = [replies, {client: replies[client] for client in (0, 1)}]
    context = multiprocessing.get_context("spawn")
    answers, together = context.Queue(), context.Barrier(2)
    processes = [context.Process(target=_asked_at_once, args=(tmp_path / "3", server.request(subset), answers, together)) for subset in subsets]
    for process in processes:
        process.start()
    found = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(kind for kind, _ in found) == ["answered", "refused"], found
    assert next(said for kind, said in found if kind == "refused").endswith("each is answered once")


def test_a_seat_is_held_while_a_request_is_answered(tmp_path):
    """Two objects for one folder stand for two processes: the second waits, and then sees what the first answered."""
    enrolment = Hostile(tmp_path).seats[0].enrolment
    seats, order = [Seat(enrolment, tmp_path / "0") for _ in range(2)], []

    def slowly():
        order.append("begun")
        time.sleep(0.5)
        order.append("done")
        return {"x": b"first"}

    threads = [threading.Thread(target=lambda: seats[0].once("train", 1, "a", slowly))]
    threads[0].start()
    while not order:
        time.sleep(0.01)
    with pytest.raises(SelgradError, match="each is answered once"):
        seats[1].once("train", 1, "b", lambda: {"x": b"second"})
    threads[0].join()
    assert order == ["begun", "done"] and seats[1].once("train", 1, "a", slowly) == {"x": b"first"} and order == ["begun", "done"]
