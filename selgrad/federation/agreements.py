"""Every protocol by which clients agree on a common mask: what a client proposes, how the server reads a proposal, and how it combines all of them.

`selgrad.encryption.agreement` describes what each protocol computes and who learns what from it. `fixed` asks no client, so it is not listed here.
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
"""The context that encrypted score maps are bound to, in place of a mask hash."""


class Proposer(NamedTuple):
    """A client that is asked for a proposal.

    Attributes:
      scores: one score for each of its entries.
      num_selected: entries to choose.
      bound: of the encryption profile.
      encrypt: (values, the context that they are bound to) -> bytes; called only by protocols that encrypt proposals.
    """

    scores: Flat
    num_selected: int
    bound: float
    encrypt: Callable[[npt.NDArray[np.float64], str], bytes]


class Chair(NamedTuple):
    """The server that asks for proposals.

    Attributes:
      num_total: entries of the update.
      num_selected: entries to choose.
      choose: encrypted score maps, as `Agreement.read` returned them -> the mask, which the key holder computes.
    """

    num_total: int
    num_selected: int
    choose: Callable[[Sequence[Any]], Bits]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One protocol for agreeing on a common mask.

    Attributes:
      propose: builds what a client sends.
      read: reads a proposal; its third argument reads one client's own ciphertexts, (bytes, context, entries) -> upload. It raises EncryptionError or
        ValueError for a bad proposal.
      combine: builds the mask from all proposals that could be read.
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
"""The protocols by their names in a configuration."""
