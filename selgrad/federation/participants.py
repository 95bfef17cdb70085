"""The participants of a run as its server sees them: who answers, which of their answers are valid, and who decrypts.

The server holds no key and does not form the sum: it checks every upload, and passes the valid ones to whoever decrypts, each with its client's tag, which the
server cannot forge.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selgrad import encryption
from selgrad.encryption.agreement import Bits
from selgrad.errors import EncryptionError, SelgradError
from selgrad.federation.enrolment import Public, digest, digest_of_weights
from selgrad.federation.journal import Journal
from selgrad.federation.learning import Task
from selgrad.federation.messages import STARTUP_SECONDS, Event, Message, Post, context_of, reply_mac

_TAG = 32


class Upload(NamedTuple):
    """What one client encrypted, with its authentication tags.

    Attributes:
      client: its number.
      raw: the ciphertexts as received.
      tags: one for each participant that decrypts, in the order of their numbers.
    """

    client: int
    raw: bytes
    tags: bytes


class Participants:
    """The participants of one run.

    Args:
      task: of the run.
      public: what everybody may know about the run.
      post: sends requests to the participants.
      journal: in which events are looked up.
      note: called with the round and an event for problems other than those of messages.
    """

    def __init__(self, task: Task, public: Public, post: Post, journal: Journal, note: Callable[[int, Event], None]) -> None:
        self._config, self._task, self._public, self._post, self._journal, self._note = task.config, task, public, post, journal, note
        self._holder = task.config.clients.count
        self._macs: dict[int, bytes] = {}
        self._scheme: encryption.CKKS | None = None
        self._key_tag = public.key_tag

    @property
    def clients(self) -> list[int]:
        """The numbers of the training clients that have answered."""
        return [party for party in self._macs if party != self._holder]

    def greet(self) -> None:
        """Asks all participants for the keys that authenticate their later messages.

        Raises:
          SelgradError: if fewer than `min_clients` answer, or the key holder does not.
        """
        parties = [*range(self._config.clients.count), *([self._holder] if self._holds_keys() else [])]
        replies = self._post.ask(0, "hello", {party: {} for party in parties}, STARTUP_SECONDS)
        self._macs = {party: reply["mac"] for party, reply in replies.items()}
        if len(replies) - (self._holder in replies) < self._config.min_clients:
            raise SelgradError(f"{len(replies)} clients answered and min_clients is {self._config.min_clients}; start more, or raise timeout")
        self._require(replies, self._holder if self._holds_keys() else None)

    def make_keys(self) -> None:
        """Lets the parties make a joint key and confirm to each other that all of them have a share in it; a key holder made its own before the run.

        Raises:
          SelgradError: if a party is gone, or does not confirm.
        """
        self._scheme = encryption.CKKS(self._task.profile)
        if self._holds_keys():
            return
        parties, key = self.clients, b""
        before, after, tags = [], [], {}
        for party in parties:
            replies = self._post.ask(0, "make_key", {party: {"previous": key}})
            self._require(replies, party)
            before.append(digest(key))
            key, self._key_tag, tags[party] = replies[party]["client_key"], replies[party]["key_tag"], replies[party]["tags"]
            after.append(digest(key))
        chain = {"client_key": key, "parties": parties, "before": before, "after": after}
        replies = self._post.ask(
            0, "confirm", {recipient: {**chain, "tags": [self._tag_for(recipient, party, tags[party]) for party in parties]} for recipient in parties}
        )
        for party in parties:
            self._require(replies, party)

    def _tag_for(self, recipient: int, client: int, tags: bytes) -> bytes:
        """Selects, from the tags that a client made for everyone who verifies it, the one for this recipient."""
        others = [self._holder] if self._holds_keys() else [party for party in range(self._config.clients.count) if party != client]
        index = others.index(recipient) if recipient in others else len(tags)
        return tags[_TAG * index : _TAG * (index + 1)]

    def _request(self, recipient: int, uploads: Iterable[Upload], weights: bytes) -> Message:
        ordered = sorted(uploads)
        return {
            "clients": [upload.client for upload in ordered], "uploads": [upload.raw for upload in ordered],
            "tags": [self._tag_for(recipient, upload.client, upload.tags) for upload in ordered],
            "weights": digest_of_weights(np.frombuffer(weights, np.float32)),
        }  # fmt: skip

    def choose(self, number: int, weights: bytes, maps: Sequence[Upload]) -> Bits:
        """The mask from encrypted score maps, which the key holder computes.

        Raises:
          SelgradError: if the key holder is gone.
        """
        replies = self._post.ask(number, "choose", {self._holder: self._request(self._holder, maps, weights)})
        self._require(replies, self._holder)
        return encryption.decode_indices(replies[self._holder]["mask"], self._task.num_total)

    def read_update(self, number: int, client: int, reply: Message, bits: Bits, mask_hash: str) -> tuple[npt.NDArray[np.float32], Upload | None]:
        """Reads and checks an update: the expected number of exposed entries, all finite, and sound ciphertexts for this mask, both authentic.

        Raises:
          SelgradError, ValueError or TypeError: if a check fails.
        """
        self._require_authentic(client, reply["mac"], number, mask_hash, reply["plain"], reply["sealed"])
        plain = np.frombuffer(reply["plain"], np.float32)
        if plain.size != int((~bits).sum()):
            raise EncryptionError(f"{plain.size} exposed entries and {int((~bits).sum())} are due")
        if not np.isfinite(plain).all():
            raise EncryptionError("an exposed entry is not finite")
        if not self._config.encrypts:
            return plain, None
        return plain, self.read_sealed(number, client, reply["tags"], reply["sealed"], mask_hash, int(bits.sum()))

    def read_proposal(self, number: int, client: int, reply: Message) -> bytes:
        """A client's proposal for the common mask, if it is authentic.

        Raises:
          EncryptionError: if it is not.
        """
        from selgrad.federation.agreements import SCORES

        self._require_authentic(client, reply["mac"], number, SCORES, b"", reply["proposal"])
        return bytes(reply["proposal"])

    def _require_authentic(self, client: int, mac: bytes, number: int, mask_hash: str, plain: bytes, sealed: bytes) -> None:
        if not hmac.compare_digest(mac, reply_mac(self._macs[client], number, mask_hash, plain, sealed)):
            raise EncryptionError("the answer is not authentic")

    def read_sealed(self, number: int, client: int, tags: bytes, raw: bytes, bound_to: str, num_values: int) -> Upload:
        """Reads one client's own ciphertexts, which must be under the run's key, match the request, and be sound.

        Raises:
          EncryptionError: if they are not.
        """
        assert self._scheme is not None
        reader = encryption.Reader(raw)
        header, context = reader.header, context_of(bound_to, number, self._public.run)
        if (header.key_tag, header.mask_hash, header.num_values, header.num_clients) != (self._key_tag, context, num_values, 1):
            raise EncryptionError("the ciphertexts are under another key, or of another mask, round or number of clients")
        self._scheme.check(reader)
        return Upload(client, raw, tags)

    def decrypted(self, number: int, weights: bytes, sealed: Mapping[int, Upload], mask_hash: str, seconds: dict[str, float]) -> npt.NDArray[np.float64] | None:
        """The decrypted sum of the uploads; None if the decrypting participant reports that it cannot decrypt, such as a sum with a forged ciphertext.

        Args:
          number: of the round.
          weights: on which the updates were trained.
          sealed: uploads by client.
          mask_hash: of the selection.
          seconds: to which times are added.

        Raises:
          SelgradError: if a participant that decrypts is gone.
        """
        assert self._scheme is not None
        started = time.perf_counter()
        if self._holds_keys():
            request = {**self._request(self._holder, sealed.values(), weights), "mask_hash": mask_hash}
            replies = self._post.ask(number, "decrypt", {self._holder: request})
            if self._refused(number, self._holder):
                return None
            self._require(replies, self._holder)
            points = np.frombuffer(replies[self._holder]["points"], np.int64)
            seconds["add"] = float(replies[self._holder]["add_seconds"])
        else:
            answers = self._collect_shares(number, weights, sealed, mask_hash)
            if answers is None:
                return None
            shares = [encryption.Ciphertexts.from_bytes(answer["share"]) for answer in answers.values()]
            seconds["add"] = max(float(answer["add_seconds"]) for answer in answers.values())
            try:
                points = self._scheme.combine(shares, context_of(mask_hash, number, self._public.run))
            except EncryptionError as error:
                self._note(number, Event(-1, "failed", str(error)))
                return None
        seconds["decrypt"] = time.perf_counter() - started - seconds["add"]
        return points / 2.0**self._task.profile.grid_bits

    def _collect_shares(self, number: int, weights: bytes, sealed: Mapping[int, Upload], mask_hash: str) -> dict[int, Message] | None:
        """Every party's answer with its decryption share; None if a party is present but refuses. Decryption needs the shares of all parties."""
        parties = self.clients
        requests = {party: {**self._request(party, sealed.values(), weights), "mask_hash": mask_hash} for party in parties}
        replies = self._post.ask(number, "share", requests)
        for party in parties:
            if party not in replies and self._refused(number, party):
                return None
            self._require(replies, party)
            self._require_authentic(party, replies[party]["mac"], number, mask_hash, b"", replies[party]["share"])
        return {party: replies[party] for party in parties}

    def _require(self, replies: Mapping[int, Message], party: int | None) -> None:
        if party is not None and party not in replies:
            last = self._journal.last(party)
            reason = "no answer" if last is None else last["detail"]
            raise SelgradError(f"participant {party}, which holds keys, is gone ({reason.splitlines()[0]}); start it again, and the same command goes on")

    def _refused(self, number: int, party: int) -> bool:
        """Whether a participant's last event is that it is present but failed to do what was asked in this round."""
        last = self._journal.last(party)
        return last is not None and last["round"] == number and last["status"] == "failed"

    def _holds_keys(self) -> bool:
        return self._config.encrypts and self._task.profile.decryption != "threshold"
