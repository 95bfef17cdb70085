"""The participants of a run as its server knows them: who answers, what of their answers counts, and who decrypts.

Keys are made and sums decrypted by a key holder or by all parties together; the server has the public key alone, and checks every upload before it is added.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from selgrad import encryption
from selgrad.encryption.agreement import Bits
from selgrad.errors import EncryptionError, SelgradError
from selgrad.federation.journal import Journal
from selgrad.federation.learning import Task
from selgrad.federation.messages import STARTUP_SECONDS, Event, Message, Post, plain_mac


class Participants:
    """Those of one run.

    Args:
      task: of the run.
      post: to ask them.
      journal: in which events are looked up.
      note: called with the round and what went wrong beside the messages.
    """

    def __init__(self, task: Task, post: Post, journal: Journal, note: Callable[[int, Event], None]) -> None:
        self._config, self._task, self._post, self._journal, self._note = task.config, task, post, journal, note
        self._holder = task.config.clients.count
        self._macs: dict[int, bytes] = {}
        self._scheme: encryption.CKKS | None = None
        self._key_tag = ""

    @property
    def clients(self) -> list[int]:
        """The numbers of those that train and have answered."""
        return [party for party in self._macs if party != self._holder]

    def greet(self) -> None:
        """Asks everybody for a key by which later messages are known.

        Raises:
          SelgradError: if fewer than `min_clients` answer, or the key holder does not.
        """
        parties = [*range(self._config.clients.count), *([self._holder] if self._holds_keys() else [])]
        replies = self._post.ask(0, "hello", {party: {} for party in parties}, STARTUP_SECONDS)
        self._macs = {party: reply["mac"] for party, reply in replies.items()}
        if len(replies) - (self._holder in replies) < self._config.min_clients:
            raise SelgradError(f"{len(replies)} clients answered and min_clients is {self._config.min_clients}; start more, or raise timeout")
        self._require(replies, self._holder if self._holds_keys() else None)

    def make_keys(self) -> bytes:
        """Has keys made; what clients need to encrypt.

        Raises:
          SelgradError: if whoever is to hold one is gone.
        """
        client_key, holders = b"", [self._holder] if self._holds_keys() else sorted(self._macs)
        for party in holders:
            replies = self._post.ask(0, "make_key", {party: {"previous": client_key}})
            self._require(replies, party)
            client_key, self._key_tag = replies[party]["client_key"], replies[party]["key_tag"]
        self._scheme = encryption.CKKS(self._task.profile)
        return client_key

    def choose(self, number: int, maps: Sequence[encryption.Reader]) -> Bits:
        """The mask of encrypted score maps, by way of the key holder.

        Raises:
          SelgradError: if it is gone.
        """
        replies = self._post.ask(number, "choose", {self._holder: {"sum": self._sum(maps)}})
        self._require(replies, self._holder)
        return encryption.decode_indices(replies[self._holder]["mask"], self._task.num_total)

    def read_update(self, number: int, client: int, reply: Message, bits: Bits, context: str) -> tuple[npt.NDArray[np.float32], encryption.Reader | None]:
        """A checked update: as many exposed entries as are due, all finite, and ciphertexts that are authentic, of this mask and sound.

        Raises:
          SelgradError, ValueError or TypeError: if it is not.
        """
        if not hmac.compare_digest(reply["plain_mac"], plain_mac(self._macs[client], number, reply["plain"])):
            raise EncryptionError("the exposed entries are not authentic")
        plain = np.frombuffer(reply["plain"], np.float32)
        if plain.size != int((~bits).sum()):
            raise EncryptionError(f"{plain.size} exposed entries and {int((~bits).sum())} are due")
        if not np.isfinite(plain).all():
            raise EncryptionError("an exposed entry is not finite")
        if not self._config.encrypts:
            return plain, None
        return plain, self.read_sealed(client, reply["sealed"], context, int(bits.sum()))

    def read_sealed(self, client: int, raw: bytes, context: str, num_values: int) -> encryption.Reader:
        """One client's own ciphertexts: authentic, under the run's key, of what was asked for, and sound.

        Raises:
          EncryptionError: if they are not.
        """
        assert self._scheme is not None
        reader = encryption.Reader(raw, self._macs[client])
        header = reader.header
        if (header.key_tag, header.mask_hash, header.num_values, header.num_clients) != (self._key_tag, context, num_values, 1):
            raise EncryptionError("the ciphertexts are under another key, or of another mask, round or number of clients")
        self._scheme.check(reader)
        return reader

    def decrypted(self, number: int, sealed: Mapping[int, encryption.Reader], context: str, seconds: dict[str, float]) -> npt.NDArray[np.float64] | None:
        """The sum of what was encrypted; None where whoever decrypts is there and says that it cannot, as for a sum with a forged ciphertext in it.

        Args:
          number: of the round.
          sealed: ciphertexts by client.
          context: what they are bound to.
          seconds: in which times are noted.

        Raises:
          SelgradError: if whoever decrypts is gone.
        """
        assert self._scheme is not None
        started = time.perf_counter()
        sums = self._sum([sealed[client] for client in sorted(sealed)])
        seconds["add"] = time.perf_counter() - started
        started = time.perf_counter()
        if self._holds_keys():
            replies = self._post.ask(number, "decrypt", {self._holder: {"sum": sums, "mask_hash": context}})
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

    def _sum(self, uploads: Sequence[encryption.Reader]) -> bytes:
        assert self._scheme is not None
        return self._scheme.add(uploads, raw=self._scheme.layout is not None).to_bytes()

    def _shares(self, number: int, sums: bytes, mask_hash: str) -> list[encryption.Ciphertexts]:
        """Every party's share of a decryption; without one of them nothing can be decrypted."""
        parties = self.clients
        replies = self._post.ask(number, "share", {party: {"sum": sums, "mask_hash": mask_hash} for party in parties})
        for party in parties:
            self._require(replies, party)
        return [encryption.Ciphertexts.from_bytes(replies[party]["share"], self._macs[party]) for party in parties]

    def _require(self, replies: Mapping[int, Message], party: int | None) -> None:
        if party is not None and party not in replies:
            last = self._journal.last(party)
            said = "no answer" if last is None else last["detail"]
            raise SelgradError(
                f"participant {party}, which holds keys, is gone ({said.splitlines()[0]}); start it again, the same command goes on with new keys"
            )

    def _refused(self, number: int, party: int) -> bool:
        """Whether the last that was heard of a participant in a round is that it is there and could not do what it was asked."""
        last = self._journal.last(party)
        return last is not None and last["round"] == number and last["status"] == "failed"

    def _holds_keys(self) -> bool:
        return self._config.encrypts and self._task.profile.decryption != "threshold"
