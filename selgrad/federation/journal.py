"""What a run writes to disk and resumes from: rounds, events, and a checkpoint of weights and mask, in a folder that belongs to one run.

Files are replaced as a whole, the checkpoint last; anything recorded after it belongs to a round that is run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from selgrad import checkpoints, files
from selgrad.encryption.agreement import Bits
from selgrad.errors import DamagedError, SelgradError, UsageError
from selgrad.federation.config import FederationConfig, load
from selgrad.federation.learning import Flat
from selgrad.federation.messages import Event

ROUND_COLUMNS: dict[str, tuple[str, str]] = {
    "round": ("int", "From 1."),
    "metric": ("text", "Name of the metric with the arguments that differ from their defaults."),
    "ratio": ("float", "Share of entries to encrypt, in [0, 1]."),
    "agreement": ("text", "How clients agree on one mask."),
    "protection": ("text", "`selective`, `full`, or the protection that clients apply to their updates instead."),
    "num_clients": ("int", "Number of clients whose updates were summed."),
    "num_selected": ("int", "Number of encrypted entries."),
    "num_total": ("int", "Number of entries of an update."),
    "difference": ("float or NaN", "Largest difference of a weight's step from plain FedAvg's; NaN where it is not checked."),
    "difference_bound": ("float or NaN", "Largest difference that quantisation allows: half a grid step for each client."),
    "verified": ("bool or null", "Whether the difference is within the bound."),
    "accuracy": ("float", "Accuracy on the test data after the round, in [0, 1]."),
    **{
        f"{name}_seconds": ("float", about)
        for name, about in {
            "agree": "Seconds to agree on a mask; 0 in rounds that already have one.",
            "exchange": "Seconds to send weights and gather updates.",
            "add": "Seconds to add ciphertexts.",
            "decrypt": "Seconds to decrypt the sum.",
            "evaluate": "Seconds to measure accuracy.",
            "train": "Seconds to train, mean over clients.",
            "encrypt": "Seconds to encrypt, mean over clients.",
        }.items()
    },
    "weights_bytes": ("int", "Bytes of the global weights sent to each client."),
    "mask_bytes": ("int", "Bytes of the list of encrypted entries sent to each client that does not have it yet."),
    "agreement_bytes": ("int", "Bytes of all messages about the mask."),
    "plain_bytes": ("float", "Bytes of a client's entries sent in the clear, mean over clients."),
    "sealed_bytes": ("float", "Bytes of a client's ciphertexts, mean over clients."),
    "clipped": ("int", "Number of values beyond the public bound, over all clients."),
    "bytes_down": ("int", "Bytes that the server sent in the round."),
    "bytes_up": ("int", "Bytes that the server received in the round."),
}  # fmt: skip
"""The columns of `rounds.parquet`, each with its type and description."""

_EVENT_COLUMNS = {"round": int, "client": int, "status": str, "detail": str}


class Standing(NamedTuple):
    """The state that a run resumes from.

    Attributes:
      done: rounds finished.
      weights: global weights.
      mask: None before clients have agreed on one.
    """

    done: int
    weights: Flat
    mask: Bits | None


class Journal:
    """The records of one run.

    Args:
      out: the folder for records and checkpoints.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._series = checkpoints.Series(out / "checkpoints")
        self._rounds: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []

    def resume(self, initial: Flat) -> Standing:
        """Reads the state of the run from disk.

        Args:
          initial: weights of a run that has not begun.

        Raises:
          SelgradError: if a file is damaged or missing, so that the run would silently start over or lose rounds.
        """
        stored = self._series.newest({"weights": initial, "mask": np.zeros(initial.size, np.bool_)})
        remedy = "put it back, or choose another --out to start again"
        if stored is None:
            # The process may have been killed between the first round's record and its checkpoint.
            if self._series.has_begun or self._last_round() > 1:
                raise SelgradError(f"no checkpoint in {str(self._out / 'checkpoints')!r} can be read, though rounds were finished; {remedy}")
            return Standing(0, initial, None)
        for name, rows in (("rounds", self._rounds), ("events", self._events)):
            file = self._out / f"{name}.parquet"
            try:
                stored_rows = files.read_frame(file).to_dict("records")
                rows += [row for row in stored_rows if row["round"] <= stored.done]
            except (DamagedError, KeyError) as error:
                raise SelgradError(f"{error if file.exists() else f'{str(file)!r} is gone'}; {remedy}") from None
        if sorted(row["round"] for row in self._rounds) != list(range(1, stored.done + 1)):
            raise SelgradError(f"{str(self._out / 'rounds.parquet')!r} holds {len(self._rounds)} of the {stored.done} rounds that are done; {remedy}")
        mask = np.asarray(stored.arrays["mask"])
        return Standing(stored.done, np.asarray(stored.arrays["weights"], np.float32), mask if mask.any() else None)

    def _last_round(self) -> int:
        """The number of the last recorded round; 0 if none is recorded or the records cannot be read."""
        with contextlib.suppress(DamagedError, KeyError):
            return int(files.read_frame(self._out / "rounds.parquet")["round"].max())
        return 0

    def note(self, number: int, event: Event) -> None:
        """Keeps an event of a round in memory until `keep` writes the round."""
        self._events.append({"round": number, **dataclasses.asdict(event)})

    def last(self, party: int) -> dict[str, Any] | None:
        """The last event of a participant, with its round; None if there was none."""
        return next((event for event in reversed(self._events) if event["client"] == party), None)

    def records(self) -> pd.DataFrame:
        """The records, one row per round."""
        return pd.DataFrame(self._rounds)

    def keep(self, row: dict[str, Any], weights: Flat, mask: Bits | None) -> None:
        """Writes a finished round.

        Args:
          row: the record of the round.
          weights: global weights after the round.
          mask: None where nothing is encrypted.

        Raises:
          SelgradError: if the disk is full or not writable.
        """
        self._rounds.append(row)
        frames = {"rounds": self.records(), "events": pd.DataFrame(self._events, columns=list(_EVENT_COLUMNS)).astype(_EVENT_COLUMNS)}
        for name, frame in frames.items():
            files.write_table(self._out / f"{name}.parquet", frame)
        self._series.save(row["round"], {"weights": weights, "mask": np.zeros(weights.size, bool) if mask is None else mask})


def adopt(config: FederationConfig, out: Path) -> None:
    """Claims a folder for this run by writing its configuration there.

    Raises:
      UsageError: if the folder holds another run.
    """
    file = out / "config.yaml"
    if file.exists():
        try:
            stored_identity = load(file).identity
        except UsageError:
            # Written by another version.
            stored_identity = ""
        if stored_identity != config.identity:
            raise UsageError(f"{str(out)!r} holds another federated run; choose another --out, or remove it")
        return
    files.write_text(file, config.text)
