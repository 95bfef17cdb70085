"""A whole federated run without Flower: what clients answer, what the server makes of it, and every way in which a client can fail.

Messages are carried by a dictionary here; `test_flower.py` carries the same ones with Flower.
"""

import jax
import numpy as np
import pandas as pd
import pytest

from selgrad import encryption, trees
from selgrad.errors import SelgradError, UsageError
from selgrad.federation.client import FaultError, respond
from selgrad.federation.config import parse
from selgrad.federation.enrolment import Seat, digest, digest_of_weights, enrol
from selgrad.federation.journal import adopt
from selgrad.federation.learning import Task, dirichlet_split
from selgrad.federation.messages import Event, context_of, reply_mac
from selgrad.federation.server import Server

SMALL = {
    "dataset": {"name": "digits", "count": 300}, "test": {"name": "digits", "count": 200, "offset": 300}, "model": {"name": "mlp", "width": 16},
    "clients": {"count": 3, "alpha": 0.5}, "rounds": 2, "local": {"num_steps": 5, "batch_size": 16, "learning_rate": 0.5}, "timeout": 5.0,
}  # fmt: skip


@pytest.fixture
def openfhe():
    if encryption.unavailable():
        pytest.skip(encryption.unavailable())


class InProcess:
    """Carries messages by calling; whoever died stays dead for a round, late answers come with the next exchange, and answers given twice are told."""

    def __init__(self, dead=()):
        self.seats, self.late, self.dead, self.seen, self.replies = {}, [], set(dead), [], []

    def enrol(self, config):
        """What everybody may know of the run; participants keep what they have."""
        if not self.seats:
            self.seats = {one.number: Seat(one) for one in enrol(config)}
        return self.seats[0].enrolment.public

    def exchange(self, requests, timeout):
        replies, events = {}, [Event(party, "late", "answered an earlier message") for party in self.late]
        self.late = []
        for party, request in requests.items():
            self.seen.append((party, request))
            if party in self.dead:
                events.append(Event(party, "died", "the process ended"))
                continue
            try:
                replies[party] = respond(self.seats[party], request)
            except FaultError as fault:
                if fault.kind == "late":
                    self.late.append(party)
                elif fault.kind == "die":
                    events.append(Event(party, "died", "the process ended"))
                else:
                    replies[party] = respond(self.seats[party], request, faults=False)
                    events.append(Event(party, "twice", "the second answer was left out"))
            except SelgradError as error:
                replies[party] = {"error": str(error)}
        self.replies += replies.values()
        return replies, events


def run(tmp_path, transport=None, **change):
    config = parse({**SMALL, **change})
    transport = transport or InProcess()
    server = Server(config, transport.enrol(config), tmp_path)
    adopt(config, tmp_path)
    return server.run(transport), server


def signed(seat, request, reply):
    """A reply whose client has changed it: with its word on what it sends now."""
    context = context_of(request["mask_hash"], request["round"], seat.enrolment.public.run)
    said = ("upload", seat.enrolment.number, context, digest_of_weights(np.frombuffer(request["weights"], np.float32)), digest(reply["sealed"]))
    reply["tags"] = b"".join(seat.enrolment.tag(other, *said) for other in sorted(seat.enrolment.shared))
    reply["mac"] = reply_mac(seat.kept("mac"), request["round"], request["mask_hash"], reply["plain"], reply["sealed"])


class TestSameAsPlain:
    @pytest.mark.parametrize("agreement", ["fixed", "vote", "union", "interleaved", "encrypted_sensitivity"])
    def test_whatever_the_agreement(self, openfhe, tmp_path, agreement):
        records, _ = run(tmp_path, agreement=agreement, ratio=0.2)
        assert records["verified"].all() and (records["num_clients"] == 3).all()
        assert (records["difference"] <= records["difference_bound"]).all() and (records["difference"] > 0).all()
        assert (records["num_selected"] >= round(0.2 * records["num_total"])).all()
        plain, _ = run(tmp_path / "plain", protection="none")
        assert (plain["difference"] == 0).all()
        np.testing.assert_allclose(records["accuracy"], plain["accuracy"], atol=0.011)

    @pytest.mark.parametrize("profile", ["threshold", "compact", "noise_flooding", "textbook"])
    def test_whatever_the_profile(self, openfhe, tmp_path, profile):
        records, _ = run(tmp_path / "out", encryption={"profile": profile}, rounds=1, ratio=0.1)
        assert records["verified"].all() and records["sealed_bytes"].iloc[0] > 0

    def test_full_encryption_leaves_nothing_in_the_clear(self, openfhe, tmp_path):
        transport = InProcess()
        records, _ = run(tmp_path, transport, protection="full", rounds=1)
        assert records["plain_bytes"].iloc[0] == 0 and records["num_selected"].iloc[0] == records["num_total"].iloc[0] and records["verified"].all()

    def test_the_server_never_sees_a_secret(self, openfhe, tmp_path):
        transport = InProcess()
        _, server = run(tmp_path, transport, rounds=1)
        secret = transport.seats[3].enrolment.secret[-2032:-32]
        assert len(transport.seats[3].enrolment.secret) > 10000 and secret not in transport.seats[0].enrolment.client_key
        for message in [*(request for _, request in transport.seen), *transport.replies]:
            assert all(secret not in value for value in message.values() if isinstance(value, bytes))
        assert not [name for name, value in vars(server).items() if isinstance(value, bytes) and secret in value]


@pytest.mark.parametrize(
    ("change", "ring"), [({"ratio": 0.5}, 4096), ({"protection": "full"}, 16384), ({"agreement": "encrypted_sensitivity", "ratio": 0.1}, 16384)]
)
def test_the_ring_is_that_for_what_a_client_encrypts_at_once(change, ring):
    task = Task(parse({**SMALL, "model": {"name": "mlp", "width": 970}, **change}))
    assert task.num_total > 10**6 and task.profile.ring == ring


def test_protections_without_encryption_cost_accuracy_as_they_are_strong(tmp_path):
    """Plain FedAvg, 16-bit rounding and little noise end alike; noise of the size of the update learns nothing."""
    found = {}
    given = {"plain": "none", "rounded": {"name": "quantised", "bits": 16}, "little": {"name": "dp_gaussian", "clip": 100.0, "noise": 1e-7},
             "much": {"name": "dp_gaussian", "clip": 1.0, "noise": 1.0}, "pruned": {"name": "pruning", "ratio": 0.5}}  # fmt: skip
    for name, protection in given.items():
        records, _ = run(tmp_path / name, protection=protection, rounds=4, local={"num_steps": 20, "learning_rate": 0.1}, ratio=0.5)
        found[name] = records["accuracy"].iloc[-1]
        assert (records["sealed_bytes"] == 0).all() and ((records["plain_bytes"] < 4 * records["num_total"]).all() == (name in ("rounded", "pruned")))
    assert found["plain"] > 0.6 and found["plain"] == pytest.approx(found["rounded"], abs=0.02) == pytest.approx(found["little"], abs=0.02)
    assert found["much"] < 0.3


def test_noise_falls_on_what_is_exposed_and_encrypted_entries_stay_exact(openfhe, tmp_path):
    """SelectiveShield and FAS: clipping holds for the whole update, the noise is of the exposed entries alone, and clients' noise is their own."""
    std, ended, records = 0.001, [], []
    for noise in (0.002, 0.0):
        transport, exposed = InProcess(), {"name": "dp_gaussian", "clip": 0.5, "noise": noise}
        given = {
            "rounds": 1,
            "ratio": 0.5,
            "agreement": "fixed",
            "clients": {"count": 3, "alpha": 0.0},
            "protection": {"name": "selective", "exposed": exposed},
        }
        table, server = run(tmp_path / str(noise), transport, **given)
        ended.append(Server(server.config, transport.enrol(server.config), tmp_path / str(noise)))
        records.append(table)
    server, silent = ended
    mask, weights, reference = server._mask, server._weights, silent._weights
    updates = np.stack([server._task.weight(c) * server._task.update(server._task.initial, c, 1) for c in range(3)])
    norms = np.linalg.norm([server._task.update(server._task.initial, c, 1) for c in range(3)], axis=1)
    clipped = (updates * np.minimum(1, 0.5 / norms)[:, None]).sum(axis=0)
    assert norms.min() > 0.5 and records[0]["verified"].tolist() == [None] and records[0]["sealed_bytes"].iloc[0] > 0
    np.testing.assert_allclose(reference, server._task.initial - clipped, atol=1e-6)
    np.testing.assert_allclose(weights[mask], reference[mask], atol=1e-6)
    expected = std * np.linalg.norm([server._task.weight(c) for c in range(3)])
    assert (weights - reference)[~mask].std() == pytest.approx(expected, rel=0.1)
    assert server.config.to_dict()["protection.exposed"] == "dp_gaussian"


class TestFailures:
    @pytest.mark.parametrize(("kind", "status"), [("die", "died"), ("late", "missing"), ("malformed", "malformed"), ("nan", "malformed")])
    def test_a_round_goes_on_without_the_client(self, openfhe, tmp_path, kind, status):
        records, _ = run(tmp_path, faults=[{"client": 1, "round": 1, "kind": kind}], ratio=0.1)
        assert records["num_clients"].tolist() == [2, 3] and records["verified"].all()
        events = pd.read_parquet(tmp_path / "events.parquet")
        assert (1, 1, status) in set(events[["round", "client", "status"]].itertuples(index=False, name=None))
        if kind == "late":
            assert "late" in set(events["status"])

    def test_a_client_that_answers_twice_counts_once(self, openfhe, tmp_path):
        records, _ = run(tmp_path, faults=[{"client": 0, "round": 1, "kind": "twice"}])
        assert records["num_clients"].tolist() == [3, 3] and records["verified"].all()
        assert "twice" in set(pd.read_parquet(tmp_path / "events.parquet")["status"])

    def test_one_clients_update_alone_is_not_decrypted(self, openfhe, tmp_path):
        faults = [{"client": c, "round": 1, "kind": "die"} for c in (0, 1)]
        records, _ = run(tmp_path, faults=faults)
        assert records["num_clients"].tolist() == [1, 3] and records["verified"].tolist() == [None, True]

    @pytest.mark.parametrize("change", [{"sealed": 10**13}, {"sealed": "/etc/passwd"}, {"train_seconds": float("nan")}, {"clipped": None}, {"mac": b"x"}])
    def test_fields_of_another_type_are_an_event(self, openfhe, tmp_path, change):
        class Odd(InProcess):
            def exchange(self, requests, timeout):
                replies, events = super().exchange(requests, timeout)
                if next(iter(requests.values()))["kind"] == "train":
                    replies[1] |= change
                return replies, events

        records, _ = run(tmp_path, Odd(), rounds=1)
        assert records["num_clients"].tolist() == [2] and records["verified"].all()
        assert pd.read_parquet(tmp_path / "events.parquet")["status"].tolist() == ["malformed"]

    @pytest.mark.parametrize("agreement", ["vote", "interleaved", "encrypted_sensitivity"])
    def test_a_bad_proposal_is_left_out(self, openfhe, tmp_path, agreement):
        class Odd(InProcess):
            def exchange(self, requests, timeout):
                replies, events = super().exchange(requests, timeout)
                if next(iter(requests.values()))["kind"] == "agree":
                    replies[0]["proposal"] = b"D\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x05"
                return replies, events

        records, _ = run(tmp_path, Odd(), rounds=1, agreement=agreement)
        assert records["num_clients"].tolist() == [3] and records["verified"].all()
        assert pd.read_parquet(tmp_path / "events.parquet")["status"].tolist() == ["malformed"]

    def test_a_forged_ciphertext_costs_the_round_and_not_the_run(self, openfhe, tmp_path):
        """Residues at random pass every check of form; the sum is then off the grid."""

        class Forging(InProcess):
            def exchange(self, requests, timeout):
                replies, events = super().exchange(requests, timeout)
                first = next(iter(requests.values()))
                if (first["kind"], first["round"]) == ("train", 1):
                    sealed = encryption.Ciphertexts.from_bytes(replies[0]["sealed"])
                    layout = encryption.CKKS("exact").layout
                    drawn = np.random.default_rng(0).integers(0, layout.modulus, (2, layout.ring), np.uint64)
                    parts = tuple(layout.serialise(drawn, sealed.header.key_tag) for _ in sealed.parts)
                    replies[0]["sealed"] = encryption.Ciphertexts(sealed.header, parts).to_bytes()
                    signed(self.seats[0], requests[0], replies[0])
                return replies, events

        records, _ = run(tmp_path, Forging())
        detail = " ".join(pd.read_parquet(tmp_path / "events.parquet")["detail"])
        assert records["verified"].tolist() == [None, True] and "client 0 sent what cannot be summed" in detail and "off the grid" in detail

    def test_too_few_updates_leave_the_weights_as_they_are(self, tmp_path):
        faults = [{"client": c, "round": 1, "kind": "die"} for c in range(3)]
        records, _ = run(tmp_path, faults=faults, protection="none", min_clients=2)
        assert records["num_clients"].tolist() == [0, 3] and records["accuracy"].iloc[0] < records["accuracy"].iloc[1]

    def test_a_missing_key_holder_ends_the_run_in_one_line(self, openfhe, tmp_path):
        with pytest.raises(SelgradError, match="participant 3, which holds keys, is gone"):
            run(tmp_path, InProcess(dead=[3]))

    def test_a_missing_party_ends_a_threshold_run(self, openfhe, tmp_path):
        transport = InProcess()
        config = parse({**SMALL, "encryption": {"profile": "threshold"}, "rounds": 1})
        server = Server(config, transport.enrol(config), tmp_path)
        original = transport.exchange

        def exchange(requests, timeout):
            if next(iter(requests.values()))["kind"] == "share":
                transport.dead.add(2)
            return original(requests, timeout)

        transport.exchange = exchange
        with pytest.raises(SelgradError, match="participant 2, which holds keys, is gone"):
            server.run(transport)

    def test_a_forged_upload_and_a_wrong_ticket_do_not_count(self, openfhe, tmp_path):
        class Forging(InProcess):
            def exchange(self, requests, timeout):
                replies, events = super().exchange(requests, timeout)
                if next(iter(requests.values()))["kind"] == "train":
                    if 0 in replies:
                        replies[0]["sealed"] = encryption.Ciphertexts.from_bytes(replies[0]["sealed"]).to_bytes(b"another key, of 16")
                    replies[1]["ticket"] = 1
                return replies, events

        records, _ = run(tmp_path, Forging(), rounds=1)
        assert records["num_clients"].tolist() == [1] and records["verified"].tolist() == [None]
        assert pd.read_parquet(tmp_path / "events.parquet")["status"].tolist() == ["malformed", "malformed"]


class TestResume:
    def test_rounds_that_are_done_are_not_done_again(self, openfhe, tmp_path):
        whole, _ = run(tmp_path / "whole", rounds=3)

        class Stops(InProcess):
            def exchange(self, requests, timeout):
                first = next(iter(requests.values()))
                if first["kind"] == "train" and first["round"] == 2:
                    raise KeyboardInterrupt
                return super().exchange(requests, timeout)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", Stops(), rounds=3)
        transport = InProcess()
        parts, _ = run(tmp_path / "parts", transport, rounds=3)
        assert {request["round"] for _, request in transport.seen if request["kind"] == "train"} == {2, 3}
        np.testing.assert_array_equal(parts["accuracy"], whole["accuracy"])
        assert parts["round"].tolist() == [1, 2, 3]
        again = InProcess()
        run(tmp_path / "parts", again, rounds=3)
        assert not again.seen

    def test_another_run_in_the_same_folder_is_refused(self, tmp_path):
        run(tmp_path, protection="none", rounds=1)
        with pytest.raises(UsageError, match="another federated run"):
            run(tmp_path, protection="none", rounds=1, seed=5)


@pytest.mark.parametrize(("alpha", "seed"), [(0.0, 0), (0.1, 1), (0.5, 2), (100.0, 3)])
def test_a_split_gives_every_sample_to_one_client(alpha, seed):
    labels = np.random.default_rng(0).integers(0, 10, 500)
    parts = dirichlet_split(labels, 7, alpha, seed)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(500)) and all(len(part) for part in parts)
    classes = np.mean([len(np.unique(labels[part])) for part in parts])
    assert classes > 9 if alpha in (0.0, 100.0) else classes < 9


@pytest.mark.parametrize(("change", "said"), [
    ({"rounds": 0}, "rounds=0 must be positive"), ({"ratio": 1.5}, "ratio=1.5"), ({"agreement": "votes"}, "vote"), ({"clients": {"number": 3}}, "no key 'number'"),
    ({"protection": "prune"}, "pruning"), ({"protection": {"name": "full", "ratio": 0.5}}, "takes no arguments"), ({"protection": {"name": "quantised", "bits": 40}}, "bits=40"),
    ({"protection": {"name": "selective", "ratio": 0.5}}, "only the argument exposed"), ({"protection": {"name": "selective", "exposed": "pruning"}}, "would leave out"),
    ({"protection": {"name": "selective", "exposed": {"name": "quantised", "bits": 40}}}, "bits=40"),
    ({"protection": "pruning", "ratio": 0.1}, "does not read the key ratio"), ({"encryption": {"profile": "exact", "bound": 1e9}}, "no room for bound"),
    ({"clients": {"count": 500}}, "holds .181."), ({"min_clients": 9}, "more than the 3 clients"), ({"faults": [{"client": 7}]}, "client=7"),
    ({"min_clients": 1}, "alone"), ({"seed": -1}, "seed=-1"), ({"encryption": {"keys": "somewhere"}}, "no key 'keys'"),
    ({"encryption": {"profile": "threshold"}, "agreement": "encrypted_sensitivity"}, "has none"),
    ({"metric": ["random", "magnitude"]}, "only one is allowed"), ({"model": "lenett"}, "lenet"), ({"timeout": -1.0}, "timeout=-1.0"),
])  # fmt: skip
def test_wrong_configurations_are_named(change, said):
    with pytest.raises(UsageError, match=said):
        parse({**SMALL, **change})


def test_data_that_the_model_cannot_read_and_too_few_samples_are_refused(tmp_path):
    with pytest.raises(UsageError, match="4 samples for 5 clients"):
        run(tmp_path, dataset={"name": "digits", "count": 4}, clients={"count": 5})
    with pytest.raises(UsageError, match="reads text and the data set holds images"):
        run(tmp_path, model={"name": "bert"})
    # Clients train on 8 x 8 pixels and accuracy would be measured on others.
    photos = {"name": "photos", "count": 10}
    with pytest.raises(UsageError, match="shape"):
        run(tmp_path, test=photos)


TEXT = {
    "dataset": {"name": "sentences", "count": 40}, "test": {"name": "sentences", "count": 20, "offset": 40}, "local": {"num_steps": 2, "batch_size": 4, "learning_rate": 0.1},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "agreement", "sent"),
    [
        ({"name": "bert", "size": "tiny"}, "vote", 479491),
        ({"name": "bert", "size": "tiny", "lora_rank": 4}, "encrypted_sensitivity", 2 * 2 * 2 * 4 * 128),
        ({"name": "gpt2", "size": "tiny", "lora_rank": 2, "task": "causal_lm"}, "fixed", 2 * (128 + 3 * 128) * 2),
    ],
)
def test_text_is_trained_as_images_are(tmp_path, openfhe, model, agreement, sent):
    """Only what is trained travels: no word embeddings, and of an adapted model the adapters alone."""
    transport = InProcess()
    records, _ = run(tmp_path, transport, model=model, agreement=agreement, **TEXT)
    assert records["num_clients"].tolist() == [3, 3] and records["verified"].all()
    assert (records["num_total"] == sent).all() and (records["weights_bytes"] == 4 * sent).all()
    assert {len(request["weights"]) for _, request in transport.seen if request["kind"] == "train"} == {4 * sent}


def test_running_statistics_are_averaged_too(tmp_path):
    """FedAvg over a network with batch normalisation: statistics move by what clients saw, whatever their learning rate."""
    config = parse(
        {
            **SMALL,
            "model": {"name": "resnet", "depth": 8, "width": 4, "mode": "train", "statistics": "sent"},
            "protection": "none",
            "local": {"num_steps": 1, "batch_size": 8, "learning_rate": 1e-9},
        }
    )
    task = Task(config)
    before, moved = task.tree(task.initial), task.tree(task.initial - task.update(task.initial, 0, 1))
    changed = {
        path for path, old, new in zip(trees.paths(before), jax.tree.leaves(before), jax.tree.leaves(moved), strict=True) if np.abs(old - new).max() > 1e-4
    }
    assert changed and all(path.rpartition("/")[2] in ("mean", "var") for path in changed)


class TestItsFolder:
    @pytest.mark.parametrize("name", ["rounds", "events"])
    @pytest.mark.parametrize("damage", ["gone", "cut"])
    def test_a_damaged_record_is_named_and_nothing_begins_anew(self, tmp_path, name, damage):
        first, _ = run(tmp_path, protection="none", rounds=2)
        file = tmp_path / f"{name}.parquet"
        content = file.read_bytes()
        file.unlink() if damage == "gone" else file.write_bytes(content[:100])
        with pytest.raises(SelgradError, match=rf"{name}.parquet.*put it back"):
            run(tmp_path, protection="none", rounds=2)
        file.write_bytes(content)
        again, _ = run(tmp_path, protection="none", rounds=2)
        pd.testing.assert_frame_equal(again, first)

    def test_a_damaged_checkpoint_is_named_and_nothing_begins_anew(self, tmp_path):
        first, _ = run(tmp_path, protection="none", rounds=2)

        def damage(number):
            for file in (tmp_path / "checkpoints" / str(number)).rglob("*"):
                if file.is_file() and file.stat().st_size:
                    file.write_bytes(b"x")

        damage(2)
        with pytest.warns(UserWarning, match="passed over for the checkpoint before it"):
            again, _ = run(tmp_path, protection="none", rounds=2)
        assert again[["round", "accuracy", "num_clients"]].equals(first[["round", "accuracy", "num_clients"]]), "the last round is computed again"
        damage(1)
        damage(2)
        with pytest.raises(SelgradError, match="no checkpoint in"), pytest.warns(UserWarning, match="passed over"):
            run(tmp_path, protection="none", rounds=2)

    def test_a_kill_before_the_first_checkpoint_loses_a_round_and_no_more(self, tmp_path, monkeypatch):
        from selgrad import checkpoints

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.Series, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, protection="none", rounds=2)
        records, _ = run(tmp_path, protection="none", rounds=2)
        assert records["round"].tolist() == [1, 2] and records["verified"].all()

    def test_two_servers_do_not_share_a_folder(self, tmp_path):
        from selgrad import files

        with (
            files.locked(tmp_path, "federated run"),
            pytest.raises(SelgradError, match="another process is running a federated run"),
            files.locked(tmp_path, "federated run"),
        ):
            pass
