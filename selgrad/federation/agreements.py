"""Every way to a common mask that asks clients, as one object: what a client proposes, how the server reads that, and what it makes of all proposals.

What each computes, and who learns what from it, is in `selgrad.encryption.agreement`; `fixed`, which asks nobody, is none of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selgrad.encryption import agreement, decode_indices, encode_indices
from selgrad.encryption.agreement import Bits
from selgrad.errors import EncryptionError
from selgrad.federation.learning import Flat

SCORES = "scores"
"""What encrypted score maps are bound to, in the place of a mask."""


class Proposer(NamedTuple):
    """A client that is asked.

    Attributes:
      scores: of its entries.
      num_selected: entries to choose.
      bound: of the encryption.
      encrypt: values and what they are bound to -> bytes; only called where they are to be encrypted.
    """

    scores: Flat
    num_selected: int
    bound: float
    encrypt: Callable[[npt.NDArray[np.float64], str], bytes]


class Chair(NamedTuple):
    """The server that asks.

    Attributes:
      num_total: entries of the update.
      num_selected: to choose.
      choose: encrypted score maps, as they were read -> the mask, by way of the key holder.
    """

    num_total: int
    num_selected: int
    choose: Callable[[Sequence[Any]], Bits]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One way to a common mask.

    Attributes:
      propose: what a client sends.
      read: a proposal and how to read one client's own ciphertexts, (bytes, bound to, entries) -> upload; raises EncryptionError or ValueError for a bad one.
      combine: the mask of all proposals that could be read.
    """

    propose: Callable[[Proposer], bytes]
    read: Callable[[Chair, bytes, Callable[[bytes, str, int], Any]], Any]
    combine: Callable[[Chair, Sequence[Any]], Bits]


def _read_priorities(chair: Chair, raw: bytes, _: Any) -> npt.NDArray[np.int32]:
    entries = np.frombuffer(raw, np.int32)
    if entries.size and not (entries.min() >= 0 and entries.max() < chair.num_total):
        raise EncryptionError(f"the priority list names entries outside 0 .. {chair.num_total - 1}")
    return entries


def _own_choice(client: Proposer) -> bytes:
    return encode_indices(agreement.own(client.scores, client.num_selected))


def _read_choice(chair: Chair, raw: bytes, _: Any) -> Bits:
    return decode_indices(raw, chair.num_total)


ASKED = {
    "vote": Agreement(_own_choice, _read_choice, lambda chair, choices: agreement.vote(choices, chair.num_selected)),
    "union": Agreement(_own_choice, _read_choice, lambda _, choices: agreement.union(choices)),
    "interleaved": Agreement(
        lambda client: np.argsort(-client.scores, kind="stable")[: client.num_selected].astype(np.int32).tobytes(),
        _read_priorities,
        lambda chair, lists: agreement.interleaved(lists, chair.num_total, chair.num_selected),
    ),
    "encrypted_sensitivity": Agreement(
        lambda client: client.encrypt(agreement.normalised(client.scores, client.bound), SCORES),
        lambda chair, raw, unseal: unseal(raw, SCORES, chair.num_total),
        lambda chair, maps: chair.choose(maps),
    ),
}
"""By the name in a configuration."""
