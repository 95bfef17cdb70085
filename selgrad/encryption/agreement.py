"""How clients agree on one mask, so that ciphertexts can be added slot by slot; each function says who learns what.

Summed sensitivity maps under encryption are FedML-HE's (jin2023fedmlhe, algorithm 1); interleaved priority lists are MaskCrypt's (hu2024maskcrypt).
`selgrad audit` measures what index lists reveal: a client's own list with `global_top` (for `interleaved` with `--ordered`), the common one with `common`;
`fixed` corresponds to the metric `random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad.errors import EncryptionError

AGREEMENTS = ("fixed", "vote", "union", "interleaved", "encrypted_sensitivity")
Bits = npt.NDArray[np.bool_]


def _best(scores: npt.NDArray[Any], num_selected: int) -> Bits:
    """A mask of the largest scores, ties broken by index."""
    bits = np.zeros(scores.size, bool)
    bits[np.argsort(-scores, kind="stable")[:num_selected]] = True
    return bits


def fixed(num_total: int, num_selected: int, seed: int) -> Bits:
    """A mask drawn from a public seed. Nobody learns anything, since the mask does not depend on data."""
    return _best(np.random.default_rng(seed).random(num_total), num_selected)


def own(scores: npt.NDArray[Any], num_selected: int) -> Bits:
    """The mask that a client would choose alone, which it sends for `vote` and `union`."""
    return _best(scores, num_selected)


def vote(choices: Sequence[Bits], num_selected: int) -> Bits:
    """The entries that the most clients chose. The server learns each client's own index list, and everybody learns the common one.

    Raises:
      EncryptionError: if the choices are of different models.
    """
    votes: Any = np.sum(_alike(choices), axis=0, dtype=np.int64)
    return _best(votes, num_selected)


def union(choices: Sequence[Bits]) -> Bits:
    """Every entry that any client chose: no client's choice is left in the clear, but more than the ratio is encrypted. Who learns what is as for `vote`.

    Raises:
      EncryptionError: if the choices are of different models.
    """
    bits: Bits = np.any(_alike(choices), axis=0)
    return bits


def interleaved(priorities: Sequence[npt.NDArray[np.integer[Any]]], num_total: int, num_selected: int) -> Bits:
    """Takes entries from each client's priority list in turn until there are enough. The server learns each list and its order, more than with `vote`.

    Args:
      priorities: entry indices of each client, the most important first; `num_selected` from each always suffice.
      num_total: entries of the update.
      num_selected: entries to choose.

    Raises:
      EncryptionError: if a list names an entry that does not exist, or the lists hold too few.
    """
    for client, entries in enumerate(priorities):
        if entries.size and not (entries.min() >= 0 and entries.max() < num_total):
            raise EncryptionError(f"the priority list of client {client} names entries outside 0 .. {num_total - 1}; it is of another model")
    longest = max((entries.size for entries in priorities), default=0)
    turns: Any = np.full((longest, len(priorities)), -1, np.int64)
    for client, entries in enumerate(priorities):
        turns[: entries.size, client] = entries
    flat: Any = turns.reshape(-1)
    flat = flat[flat >= 0]
    _, first = np.unique(flat, return_index=True)
    if first.size < num_selected:
        raise EncryptionError(f"the priority lists name {first.size} entries and {num_selected} are to be chosen; send {num_selected} of each client")
    bits = np.zeros(num_total, bool)
    bits[flat[np.sort(first)[:num_selected]]] = True
    return bits


def normalised(scores: npt.NDArray[Any], bound: float) -> npt.NDArray[np.float64]:
    """A score map as a client encrypts it for `encrypted_sensitivity`: its largest entry is the profile's bound, so that all clients have equal weight."""
    values = np.abs(np.asarray(scores, np.float64))
    largest = float(values.max(initial=0.0))
    return values * (bound / largest) if largest > 0 else values


def from_sum(total: npt.NDArray[np.int64], num_selected: int) -> Bits:
    """The mask from a decrypted sum of score maps. The key holder learns the sum; the server and the clients learn only the mask."""
    return _best(total.astype(np.float64), num_selected)


def _alike(choices: Sequence[Bits]) -> Sequence[Bits]:
    if len({choice.size for choice in choices}) != 1:
        raise EncryptionError(f"index lists over {sorted({c.size for c in choices})} entries cannot be combined; all clients must train one model")
    return choices
