"""The server of a federated run: in each round it requests updates, checks them, has their sum decrypted, and takes one step of the global weights.

It holds no secret key and sees encrypted entries only as sums over at least `min_clients` clients: grid points from a key holder, or sums that it combines
itself from all parties' shares. Every reply is checked before it is used, and every problem is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from selgrad import encryption, trees
from selgrad.encryption import agreement
from selgrad.errors import SelgradError, UsageError, first_line
from selgrad.federation.agreements import ASKED, Chair
from selgrad.federation.config import FederationConfig
from selgrad.federation.enrolment import Public
from selgrad.federation.journal import Journal
from selgrad.federation.learning import Flat, Task, task_of
from selgrad.federation.messages import Event, Post, Transport, mask_digest
from selgrad.federation.participants import Participants, Upload


class Server:
    """The server of one run.

    Args:
      config: of the run.
      public: the public part of what its participants were enrolled with.
      out: folder for records and checkpoints.
      on_event: called with one line on what happens, and the share of the run that is done.
      on_round: called with the record of each finished round.
    """

    def __init__(
        self, config: FederationConfig, public: Public, out: Path,
        on_event: Callable[[str, float], None] = lambda *_: None, on_round: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.config, self._on_event, self._on_round = config, on_event, on_round
        self._task: Task = task_of(config.text)
        self._public = public
        if public.fingerprint != config.fingerprint:
            raise UsageError("the participants were enrolled with another configuration than the server's; enrol them again, or take theirs")
        # The clients that have received the mask; after a restart it is sent to all again.
        self._has_mask: set[int] = set()
        self._journal = Journal(out)
        self._done, self._weights, self._mask = self._journal.resume(self._task.initial)

    def run(self, transport: Transport) -> pd.DataFrame:
        """Runs all rounds that are not done yet and returns the records of all rounds.

        Args:
          transport: to the participants.

        Raises:
          SelgradError: if nobody answers, or the key holder or a party is gone.
        """
        if self.is_done():
            return self.records()
        config, weights = self.config, self._weights
        self._post = Post(transport, config, self._public.fingerprint, self._note)
        self._participants = Participants(self._task, self._public, self._post, self._journal, self._note)
        self._participants.greet()
        if config.encrypts:
            self._on_event("making keys", 0.0)
            self._participants.make_keys()
        for number in range(self._done + 1, config.rounds + 1):
            self._on_event(f"round {number} of {config.rounds}", (number - 1) / config.rounds)
            weights = self._round(number, weights)
        self._on_event("done", 1.0)
        return self.records()

    def is_done(self) -> bool:
        """Whether all rounds are on disk."""
        return self._done >= self.config.rounds

    def records(self) -> pd.DataFrame:
        """The records, one row per round."""
        return self._journal.records()

    def _note(self, number: int, event: Event) -> None:
        self._journal.note(number, event)
        self._on_event(f"round {number}: client {event.client} {event.status} {event.detail}".rstrip(), -1.0)

    def _agree(self, number: int, weights: Flat) -> agreement.Bits:
        config, total = self.config, self._task.num_total
        selected = trees.count(config.ratio, total)
        if config.protection == "full":
            return np.ones(total, bool)
        if config.agreement == "fixed":
            return agreement.fixed(total, selected, config.seed)
        request = {"weights": weights.tobytes()}
        replies = self._post.ask(number, "agree", dict.fromkeys(self._participants.clients, request))
        protocol, chair = ASKED[config.agreement], Chair(total, selected, lambda maps: self._participants.choose(number, weights.tobytes(), maps))
        proposals: list[Any] = []
        for client, reply in replies.items():
            try:
                proposal = self._participants.read_proposal(number, client, reply)
                proposals.append(protocol.read(chair, proposal, partial(self._participants.read_sealed, number, client, reply["tags"])))
            except (SelgradError, ValueError, KeyError, TypeError) as error:
                self._note(number, Event(client, "malformed", first_line(error)))
        if len(proposals) < config.min_clients:
            raise SelgradError(
                f"{len(proposals)} clients took part in the agreement on a mask and min_clients is {config.min_clients}; run the same command again"
            )
        return protocol.combine(chair, proposals)

    def _round(self, number: int, weights: Flat) -> Flat:
        config, seconds = self.config, dict.fromkeys(("agree", "exchange", "add", "decrypt", "evaluate", "train", "encrypt"), 0.0)
        self._post.down = self._post.up = 0
        clock = time.perf_counter
        started = clock()
        agreed = 0
        if config.encrypts and self._mask is None:
            self._mask = self._agree(number, weights)
            agreed = self._post.down + self._post.up
        bits = self._mask if config.encrypts and self._mask is not None else np.zeros(self._task.num_total, bool)
        digest = mask_digest(bits)
        seconds["agree"] = clock() - started

        started = clock()
        encoded = encryption.encode_indices(bits) if config.encrypts else b""
        common = {"weights": weights.tobytes(), "mask_hash": digest}
        clients = self._participants.clients
        fresh = not self._has_mask.issuperset(clients)
        replies = self._post.ask(number, "train", {client: {**common, "mask": b"" if client in self._has_mask else encoded} for client in clients})
        seconds["exchange"] = clock() - started
        plain: dict[int, npt.NDArray[np.float32]] = {}
        sealed: dict[int, Upload] = {}
        for client, reply in replies.items():
            try:
                plain[client], upload = self._participants.read_update(number, client, reply, bits, digest)
                if upload is not None:
                    sealed[client] = upload
                self._has_mask.add(client)
            except (SelgradError, ValueError, KeyError, TypeError) as error:
                plain.pop(client, None)
                self._note(number, Event(client, "malformed", first_line(error)))
        new = weights
        row: dict[str, Any] = {"round": number, "metric": config.metric.label, "ratio": config.ratio, "agreement": config.agreement}
        row |= {"protection": config.protection, "num_clients": len(plain), "num_selected": int(bits.sum()), "num_total": bits.size}
        row |= {"difference": np.nan, "difference_bound": np.nan, "verified": None}
        if len(plain) >= config.min_clients:
            share = sum(self._task.weight(client) for client in plain)
            update = np.zeros(bits.size)
            update[~bits] = np.sum([plain[client].astype(np.float64) for client in sorted(plain)], axis=0)
            points = (
                self._participants.decrypted(number, weights.tobytes(), sealed, digest, seconds) if config.encrypts and sealed else np.zeros(int(bits.sum()))
            )
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
            "clipped": sum(int(reply.get("clipped", 0)) for reply in counted), "bytes_down": self._post.down, "bytes_up": self._post.up,
        }  # fmt: skip
        self._journal.keep(row, new, self._mask)
        self._on_round(row)
        return new

    def _verified(self, number: int, weights: Flat, update: npt.NDArray[np.float64], bits: agreement.Bits, clients: list[int], share: float) -> dict[str, Any]:
        """How far the step is from plain FedAvg over the same clients, and the bound due to quantisation: half a grid step per client."""
        if not self.config.verify or self.config.baseline.name != "none":
            return {"difference": np.nan, "difference_bound": np.nan, "verified": None}
        task = self._task
        weighted_updates = [np.float32(task.weight(client)) * task.update(weights, client, number) for client in clients]
        reference = np.sum([weighted.astype(np.float64) for weighted in weighted_updates], axis=0)
        difference = float(np.abs(update - reference).max()) / share
        bound = len(clients) * self._task.profile.quantisation_error / share if bits.any() else 0.0
        return {"difference": difference, "difference_bound": bound, "verified": bool(difference <= bound * (1 + 1e-9))}
