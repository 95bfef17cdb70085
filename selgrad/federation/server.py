"""The server of a federated run: rounds of asking, checking, adding, decrypting by others, and one step of the global weights.

It holds no secret key and sees encrypted entries only as sums over `min_clients` or more: grid points from a key holder, or what it combines of all parties'
shares itself. Every reply is checked before it counts, and what is wrong with one is recorded.
"""

from __future__ import annotations

import dataclasses
import hmac
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad import checkpoints, devices, encryption, trees
from selgrad.encryption import agreement
from selgrad.errors import EncryptionError, SelgradError, UsageError
from selgrad.federation.client import Message, context_of, mask_digest, plain_mac
from selgrad.federation.config import FederationConfig
from selgrad.federation.learning import Flat, Task, task_of


@dataclasses.dataclass(frozen=True)
class Event:
    """Something about one client that the run went on without.

    Attributes:
      client: its number.
      status: `died`, `late`, `twice`, `malformed`, `failed` or `missing`.
      detail: one line.
    """

    client: int
    status: str
    detail: str = ""


_BYTES, _NUMBER, _TEXT = "bytes", "number", "text"
_FIELDS: dict[str, dict[str, str]] = {
    "hello": {"mac": _BYTES},
    "make_key": {"client_key": _BYTES, "key_tag": _TEXT},
    "agree": {"proposal": _BYTES},
    "train": {
        "plain": _BYTES, "plain_mac": _BYTES, "sealed": _BYTES, "plain_bytes": _NUMBER, "clipped": _NUMBER, "train_seconds": _NUMBER,
        "encrypt_seconds": _NUMBER,
    },
    "decrypt": {"points": _BYTES},
    "choose": {"mask": _BYTES},
    "share": {"share": _BYTES},
}  # fmt: skip


def _wrong_field(kind: str, reply: Message) -> str | None:
    """The first field of a reply that is missing or of another type; None where all are sound."""
    for name, wanted in _FIELDS[kind].items():
        value = reply.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
        if not (isinstance(value, bytes) if wanted == _BYTES else isinstance(value, str) if wanted == _TEXT else number):
            return name
    return None


@runtime_checkable
class Transport(Protocol):
    """Carries messages to participants by number."""

    def exchange(self, requests: Mapping[int, Message], timeout: float) -> tuple[dict[int, Message], list[Event]]:
        """Sends one request to each participant; the replies that came in time, and what went wrong, late replies to earlier requests included."""
        ...


class Server:
    """One run.

    Args:
      config: of the run.
      out: folder for records and checkpoints.
      on_event: called with one line on what happens, and the share of the run that is done.
      on_round: called with the record of each finished round.
    """

    def __init__(
        self, config: FederationConfig, out: Path,
        on_event: Callable[[str, float], None] = lambda *_: None, on_round: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.config, self._out, self._on_event, self._on_round = config, out, on_event, on_round
        self._task: Task = task_of(config.text)
        self._holder = config.clients["count"]
        self._macs: dict[int, bytes] = {}
        self._scheme: encryption.CKKS | None = None
        self._client_key, self._key_tag = b"", ""
        self._mask: agreement.Bits | None = None
        self._told: set[int] = set()
        self._tickets = itertools.count(1)
        self._series = checkpoints.Series(out / "checkpoints")
        self._rounds: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._bytes = {"down": 0, "up": 0}
        self._done, self._weights = self._resume()

    def run(self, transport: Transport) -> pd.DataFrame:
        """All rounds that are not done yet; the records of all.

        Args:
          transport: to the participants.

        Raises:
          SelgradError: if nobody answers, or the key holder or a party is gone.
        """
        if self.is_done():
            return self.records()
        config, weights, self._transport = self.config, self._weights, transport
        self._greet()
        if config.encrypts:
            self._make_keys()
        for number in range(self._done + 1, config.rounds + 1):
            self._on_event(f"round {number} of {config.rounds}", (number - 1) / config.rounds)
            weights = self._round(number, weights)
        self._on_event("done", 1.0)
        return self.records()

    def is_done(self) -> bool:
        """Whether all rounds are on disk."""
        return self._done >= self.config.rounds

    def records(self) -> pd.DataFrame:
        """One row a round."""
        return pd.DataFrame(self._rounds)

    # Before the rounds

    def _resume(self) -> tuple[int, Flat]:
        like = {"weights": self._task.initial, "mask": np.zeros(self._task.num_total, np.bool_)}
        done, stored = self._series.newest(like)
        if stored is None:
            return 0, self._task.initial
        self._mask = np.asarray(stored["mask"]) if np.asarray(stored["mask"]).any() else None
        for name, rows in (("rounds", self._rounds), ("events", self._events)):
            file = self._out / f"{name}.parquet"
            if file.exists():
                rows += [row for row in pd.read_parquet(file).to_dict("records") if row["round"] <= done]
        return done, np.asarray(stored["weights"], np.float32)

    def _ask(self, number: int, kind: str, requests: Mapping[int, Message]) -> dict[int, Message]:
        """Replies by participant; whatever went wrong becomes an event of the round."""
        whole = {
            party: {"kind": kind, "round": number, "ticket": next(self._tickets), "config": self.config.text, **request} for party, request in requests.items()
        }
        replies, events = self._transport.exchange(whole, self.config.timeout)
        for event in events:
            self._note(number, event)
        good: dict[int, Message] = {}
        for party, reply in sorted(replies.items()):
            if reply.get("error"):
                self._note(number, Event(party, "failed", str(reply["error"])))
            elif reply.get("ticket") != whole[party]["ticket"]:
                self._note(number, Event(party, "malformed", f"answers message {reply.get('ticket')} and was asked {whole[party]['ticket']}"))
            elif (wrong := _wrong_field(kind, reply)) is not None:
                self._note(number, Event(party, "malformed", f"{wrong} is missing or of another type"))
            else:
                good[party] = reply
        heard = set(replies) | {event.client for event in events if event.status in ("died", "failed", "malformed", "missing")}
        for party in sorted(set(whole) - heard):
            self._note(number, Event(party, "missing", f"no answer to {kind!r} within {self.config.timeout:g} s"))
        sizes = lambda messages: sum(len(v) for m in messages for k, v in m.items() if isinstance(v, bytes))
        unsent = {event.client for event in events if event.status == "missing"}
        self._bytes["down"] += sizes(request for party, request in whole.items() if party not in unsent)
        self._bytes["up"] += sizes(replies.values())
        return good

    def _note(self, number: int, event: Event) -> None:
        self._events.append({"round": number, **dataclasses.asdict(event)})
        self._on_event(f"round {number}: client {event.client} {event.status} {event.detail}".rstrip(), -1.0)

    def _holds_keys(self) -> bool:
        return self.config.encrypts and self._task.profile.decryption != "threshold"

    def _greet(self) -> None:
        parties = [*range(self.config.clients["count"]), *([self._holder] if self._holds_keys() else [])]
        replies = self._ask(0, "hello", {party: {} for party in parties})
        self._macs = {party: reply["mac"] for party, reply in replies.items()}
        if len(replies) - (self._holder in replies) < self.config.min_clients:
            raise SelgradError(f"{len(replies)} clients answered and min_clients is {self.config.min_clients}; start more, or raise timeout")
        self._require(replies, self._holder if self._holds_keys() else None)

    def _require(self, replies: Mapping[int, Message], party: int | None) -> None:
        if party is not None and party not in replies:
            said = next((e["detail"] for e in reversed(self._events) if e["client"] == party), "no answer")
            raise SelgradError(
                f"participant {party}, which holds keys, is gone ({said.splitlines()[0]}); start it again, the same command goes on with new keys"
            )

    def _make_keys(self) -> None:
        self._on_event("making keys", 0.0)
        # Keys and masks are new to everybody after a restart.
        self._told.clear()
        if self._holds_keys():
            replies = self._ask(0, "make_key", {self._holder: {"previous": b""}})
            self._require(replies, self._holder)
            self._client_key, self._key_tag = replies[self._holder]["client_key"], replies[self._holder]["key_tag"]
        else:
            for party in sorted(self._macs):
                replies = self._ask(0, "make_key", {party: {"previous": self._client_key}})
                self._require(replies, party)
                self._client_key, self._key_tag = replies[party]["client_key"], replies[party]["key_tag"]
        self._scheme = encryption.CKKS(self._task.profile)

    # Agreement on a mask

    def _agree(self, number: int, weights: Flat) -> agreement.Bits:
        config, total = self.config, self._task.num_total
        selected = trees.count(config.ratio, total)
        if config.protection == "full":
            return np.ones(total, bool)
        if config.agreement == "fixed":
            return agreement.fixed(total, selected, config.seed)
        request = {"weights": weights.tobytes(), "client_key": self._client_key}
        replies = self._ask(number, "agree", {client: request for client in self._macs if client != self._holder})
        proposals: dict[int, Any] = {}
        for client, reply in replies.items():
            try:
                proposals[client] = self._read_proposal(client, reply["proposal"])
            except (SelgradError, ValueError, KeyError, TypeError) as error:
                self._note(number, Event(client, "malformed", str(error).splitlines()[0]))
        if len(proposals) < config.min_clients:
            raise SelgradError(
                f"{len(proposals)} clients took part in the agreement on a mask and min_clients is {config.min_clients}; run the same command again"
            )
        given = list(proposals.values())
        if config.agreement == "vote":
            return agreement.vote(given, selected)
        if config.agreement == "union":
            return agreement.union(given)
        if config.agreement == "interleaved":
            return agreement.interleaved(given, total, selected)
        assert self._scheme is not None
        sums = self._scheme.add(given, raw=self._scheme.layout is not None).to_bytes()
        replies = self._ask(number, "choose", {self._holder: {"sum": sums}})
        self._require(replies, self._holder)
        return encryption.decode_indices(replies[self._holder]["mask"], total)

    def _read_proposal(self, client: int, raw: bytes) -> Any:
        total = self._task.num_total
        if self.config.agreement == "interleaved":
            entries = np.frombuffer(raw, np.int32)
            if entries.size and not (entries.min() >= 0 and entries.max() < total):
                raise EncryptionError(f"the priority list names entries outside 0 .. {total - 1}")
            return entries
        if self.config.agreement == "encrypted_sensitivity":
            assert self._scheme is not None
            return self._read_sealed(client, raw, "scores", total)
        return encryption.decode_indices(raw, total)

    def _refused(self, number: int, party: int) -> bool:
        """Whether the last that was heard of a participant in a round is that it is there and could not do what it was asked."""
        last = next((event for event in reversed(self._events) if event["client"] == party), None)
        return last is not None and last["round"] == number and last["status"] == "failed"

    def _shares(self, number: int, sums: bytes, mask_hash: str) -> list[encryption.Ciphertexts]:
        """Every party's share of a decryption; without one of them nothing can be decrypted."""
        parties = [party for party in self._macs if party != self._holder]
        replies = self._ask(number, "share", {party: {"sum": sums, "mask_hash": mask_hash} for party in parties})
        for party in parties:
            self._require(replies, party)
        return [encryption.Ciphertexts.from_bytes(replies[party]["share"], self._macs[party]) for party in parties]

    # One round

    def _round(self, number: int, weights: Flat) -> Flat:
        config, seconds = self.config, dict.fromkeys(("agree", "exchange", "add", "decrypt", "evaluate", "train", "encrypt"), 0.0)
        self._bytes = {"down": 0, "up": 0}
        clock = time.perf_counter
        started = clock()
        agreed = 0
        if config.encrypts and self._mask is None:
            self._mask = self._agree(number, weights)
            agreed = sum(self._bytes.values())
        bits = self._mask if config.encrypts and self._mask is not None else np.zeros(self._task.num_total, bool)
        digest = mask_digest(bits)
        seconds["agree"] = clock() - started

        started = clock()
        encoded = encryption.encode_indices(bits) if config.encrypts else b""
        common = {"weights": weights.tobytes(), "client_key": self._client_key, "mask_hash": digest}
        clients = [client for client in self._macs if client != self._holder]
        fresh = not self._told.issuperset(clients)
        replies = self._ask(number, "train", {client: {**common, "mask": b"" if client in self._told else encoded} for client in clients})
        seconds["exchange"] = clock() - started
        plain: dict[int, npt.NDArray[np.float32]] = {}
        sealed: dict[int, encryption.Reader] = {}
        for client, reply in replies.items():
            try:
                plain[client], read = self._read_update(number, client, reply, bits, context_of(digest, number))
                if read is not None:
                    sealed[client] = read
                self._told.add(client)
            except (SelgradError, ValueError, KeyError, TypeError) as error:
                plain.pop(client, None)
                self._note(number, Event(client, "malformed", str(error).splitlines()[0]))
        new = weights
        row: dict[str, Any] = {"round": number, "num_clients": len(plain), "num_selected": int(bits.sum()), "num_total": bits.size}
        row |= {"difference": np.nan, "difference_bound": np.nan, "verified": None}
        if len(plain) >= config.min_clients:
            share = sum(self._task.weight(client) for client in plain)
            update = np.zeros(bits.size)
            update[~bits] = np.sum([plain[client].astype(np.float64) for client in sorted(plain)], axis=0)
            points = self._decrypted(number, sealed, context_of(digest, number), seconds) if config.encrypts and sealed else np.zeros(int(bits.sum()))
            if points is not None:
                update[bits] = points
                new = (weights - update / share).astype(np.float32)
                row |= self._verified(number, weights, update, bits, sorted(plain), share)
            else:
                self._on_event(f"round {number}: the sum could not be decrypted; the weights stay", -1.0)
        else:
            self._on_event(f"round {number}: {len(plain)} updates and min_clients is {config.min_clients}; the weights stay", -1.0)
        started = clock()
        row["accuracy"] = self._task.accuracy(new)
        seconds["evaluate"] = clock() - started
        counted = [replies[client] for client in plain]
        for name in ("train", "encrypt"):
            seconds[name] = float(np.mean([reply[f"{name}_seconds"] for reply in counted])) if counted else 0.0
        row |= {f"{name}_seconds": value for name, value in seconds.items()}
        row |= {
            "weights_bytes": 4 * bits.size, "mask_bytes": len(encoded) if fresh else 0, "agreement_bytes": agreed,
            "plain_bytes": float(np.mean([reply["plain_bytes"] for reply in counted])) if counted else 0.0,
            "sealed_bytes": float(np.mean([len(reply["sealed"]) for reply in counted])) if counted else 0.0,
            "clipped": sum(int(reply.get("clipped", 0)) for reply in counted), "bytes_down": self._bytes["down"], "bytes_up": self._bytes["up"],
        }  # fmt: skip
        self._rounds.append(row)
        self._keep(number, new)
        self._on_round(row)
        return new

    def _read_update(
        self, number: int, client: int, reply: Message, bits: agreement.Bits, context: str
    ) -> tuple[npt.NDArray[np.float32], encryption.Reader | None]:
        """A checked update: as many exposed entries as are due, all finite, and ciphertexts that are authentic, of this mask and sound."""
        if not hmac.compare_digest(reply["plain_mac"], plain_mac(self._macs[client], number, reply["plain"])):
            raise EncryptionError("the exposed entries are not authentic")
        plain = np.frombuffer(reply["plain"], np.float32)
        if plain.size != int((~bits).sum()):
            raise EncryptionError(f"{plain.size} exposed entries and {int((~bits).sum())} are due")
        if not np.isfinite(plain).all():
            raise EncryptionError("an exposed entry is not finite")
        if not self.config.encrypts:
            return plain, None
        return plain, self._read_sealed(client, reply["sealed"], context, int(bits.sum()))

    def _read_sealed(self, client: int, raw: bytes, context: str, num_values: int) -> encryption.Reader:
        """One client's own ciphertexts: authentic, under the run's key, of what was asked for, and sound."""
        assert self._scheme is not None
        reader = encryption.Reader(raw, self._macs[client])
        header = reader.header
        if (header.key_tag, header.mask_hash, header.num_values, header.num_clients) != (self._key_tag, context, num_values, 1):
            raise EncryptionError("the ciphertexts are under another key, or of another mask, round or number of clients")
        self._scheme.check(reader)
        return reader

    def _decrypted(self, number: int, sealed: Mapping[int, encryption.Reader], context: str, seconds: dict[str, float]) -> npt.NDArray[np.float64] | None:
        """The sum of what was encrypted; None where whoever decrypts is there and says that it cannot, as for a sum with a forged ciphertext in it."""
        assert self._scheme is not None
        started = time.perf_counter()
        sums = self._scheme.add([sealed[client] for client in sorted(sealed)], raw=self._scheme.layout is not None).to_bytes()
        seconds["add"] = time.perf_counter() - started
        started = time.perf_counter()
        if self._holds_keys():
            replies = self._ask(number, "decrypt", {self._holder: {"sum": sums, "mask_hash": context}})
            if self._refused(number, self._holder):
                return None
            self._require(replies, self._holder)
            points = np.frombuffer(replies[self._holder]["points"], np.int64)
        else:
            try:
                points = self._scheme.combine(self._shares(number, sums, context), context)
            except EncryptionError as error:
                self._note(number, Event(-1, "failed", str(error)))
                return None
        seconds["decrypt"] = time.perf_counter() - started
        return points / 2.0**self._task.profile.grid_bits

    def _verified(self, number: int, weights: Flat, update: npt.NDArray[np.float64], bits: agreement.Bits, clients: list[int], share: float) -> dict[str, Any]:
        """How far the step is from plain FedAvg over the same clients, and the bound that quantisation sets: half a grid step of each client."""
        if not self.config.verify or self.config.protection not in ("selective", "full", "none"):
            return {"difference": np.nan, "difference_bound": np.nan, "verified": None}
        task = self._task
        sent = [np.float32(task.weight(client)) * task.update(weights, client, number) for client in clients]
        reference = np.sum([one.astype(np.float64) for one in sent], axis=0)
        difference = float(np.abs(update - reference).max()) / share
        bound = len(clients) * self._task.profile.quantisation_error / share if bits.any() else 0.0
        return {"difference": difference, "difference_bound": bound, "verified": bool(difference <= bound * (1 + 1e-9))}

    def _keep(self, number: int, weights: Flat) -> None:
        mask = np.zeros(self._task.num_total, bool) if self._mask is None else self._mask
        columns = {"round": int, "client": int, "status": str, "detail": str}
        frames = {"rounds": self.records(), "events": pd.DataFrame(self._events, columns=list(columns)).astype(columns)}
        for name, frame in frames.items():
            devices.write_atomically(self._out / f"{name}.parquet", lambda path, frame=frame: frame.to_parquet(path, index=False))  # type: ignore[misc]
        self._series.save(number, {"weights": weights, "mask": mask})


def adopt(config: FederationConfig, out: Path) -> None:
    """Makes a folder this run's own.

    Raises:
      UsageError: if it holds another run.
    """
    file = out / "config.yaml"
    if file.exists():
        from selgrad.federation.config import load

        try:
            known = load(file).identity
        except UsageError:
            # Written by another version.
            known = ""
        if known != config.identity:
            raise UsageError(f"{str(out)!r} holds another federated run; choose another --out, or remove it")
        return

    def write(path: Path) -> None:
        path.write_text(config.text)

    devices.write_atomically(file, write)
