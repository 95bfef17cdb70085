"""What the participants of a user's own Flower app agree to before it runs, and what each of them then holds.

selgrad's own runs have a full configuration for this (`selgrad.federation.config`); here training, model and data belong to the app.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from selgrad import encryption, files, trees
from selgrad.encryption import agreement
from selgrad.encryption.agreement import AGREEMENTS, Bits
from selgrad.encryption.profiles import PROFILES, Profile
from selgrad.errors import EncryptionError, SelgradError, UsageError, did_you_mean, require_positive, require_ratio, require_seed
from selgrad.federation.enrolment import Enrolment, Public, digest, write

KEY_HOLDER, SERVER = "key-holder", "server"
"""Folders of the participants that are not clients; clients' folders are named by their numbers."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """The terms of one run of an app.

    Attributes:
      clients: how many are enrolled.
      max_examples: the largest number of examples of one client. Updates are weighted by examples divided by this before they are rounded to the profile's
        grid, so a value that is far too large makes the rounding coarse; the server cannot choose it, since it could round all clients but one to zero.
      ratio: share of an update's float entries to encrypt, in [0, 1].
      agreement: how clients agree on one mask, a name in `AGREEMENTS`.
      profile: of the encryption, one with a key holder.
      min_clients: no sum over fewer clients is decrypted.
      bound: largest absolute value of a weighted update's entry; None takes the profile's.
      seed: of the fixed mask.
      weighted_by: the metric of a client's answer that holds its number of examples.

    Raises:
      UsageError: naming the value and the remedy.
    """

    clients: int
    max_examples: float
    ratio: float = 0.1
    agreement: str = "fixed"
    profile: str = "exact"
    min_clients: int = 2
    bound: float | None = None
    seed: int = 0
    weighted_by: str = "num-examples"

    def __post_init__(self) -> None:
        require_ratio(self.ratio)
        require_positive(max_examples=self.max_examples)
        for key, value, known in (("agreement", self.agreement, AGREEMENTS), ("profile", self.profile, tuple(PROFILES))):
            if value not in known:
                raise UsageError(f"{key} {value!r} is unknown; {did_you_mean(value, known)}")
        if not 2 <= self.min_clients <= self.clients:
            raise UsageError(
                f"min_clients={self.min_clients} must be 2 or more, since one client's update is not decrypted, and at most clients={self.clients}"
            )
        require_seed(self.seed)
        try:
            profile = self.encryption
        except EncryptionError as error:
            raise UsageError(str(error)) from None
        if profile.decryption == "threshold":
            raise UsageError(f"profile {self.profile!r} has no key holder; take 'exact', or `selgrad federate` for a run among parties")
        if self.clients > profile.max_clients:
            raise UsageError(f"clients={self.clients} is more than profile {self.profile!r} holds ({profile.max_clients}); lower clients or bound")

    @property
    def encryption(self) -> Profile:
        """The encryption profile with the bound of this run."""
        profile = PROFILES[self.profile]
        return profile if self.bound is None else dataclasses.replace(profile, bound=float(self.bound))

    @property
    def text(self) -> str:
        """The terms as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def of(cls, enrolment: Enrolment) -> Terms:
        """The terms that a participant was enrolled under.

        Raises:
          SelgradError: if it was enrolled in one of selgrad's own runs.
        """
        try:
            return cls(**json.loads(enrolment.text))
        except (ValueError, TypeError):
            raise SelgradError(
                f"participant {enrolment.number} is enrolled in a run of `selgrad federate`; enrol for an app with `selgrad key-holder`"
            ) from None

    def num_selected(self, num_floats: int) -> int:
        """How many of `num_floats` float entries to encrypt, at least one."""
        return max(1, trees.count(self.ratio, num_floats))

    def fixed_mask(self, num_floats: int) -> Bits:
        """The mask that depends on no data, (num_floats,)."""
        return agreement.fixed(num_floats, self.num_selected(num_floats), self.seed)

    def require_mask(self, bits: Bits) -> None:
        """Refuses a mask that hides less than was agreed, no matter what the server says.

        Raises:
          SelgradError: if it hides less, or differs from the fixed mask where that was agreed on.
        """
        least = self.num_selected(bits.size)
        if int(bits.sum()) < least:
            raise SelgradError(
                f"the server's mask names {int(bits.sum()):,} of {bits.size:,} float entries and this client encrypts {least:,} at least; nothing is sent"
            )
        if self.agreement == "fixed" and not np.array_equal(bits, self.fixed_mask(bits.size)):
            raise SelgradError("the server's mask is not the fixed one that this client agreed to; nothing is sent")


def enrol(terms: Terms, folder: str | Path) -> Path:
    """Makes the keys of a run and writes each participant's folder, for its owner alone: `0`, `1`, ... for the clients, `key-holder` and `server`.

    Args:
      terms: that all participants agree to.
      folder: to write to; a run that is already enrolled there is left unchanged.

    Raises:
      UsageError: if a run with other terms is enrolled there.
      SelgradError: if the folder cannot be written to.
    """
    root = Path(folder)
    with files.locked(root, "enrolment"):
        # `public.json` is written last.
        if (root / "public.json").exists():
            enrolled = Terms.of(Enrolment.load(root / KEY_HOLDER))
            if enrolled != terms:
                raise UsageError(f"folder {str(root)!r} holds the keys of a run with other terms ({_difference(enrolled, terms)}); choose another folder")
            return root
        holder, count = encryption.KeyHolder(terms.encryption), terms.clients
        key_holder, server = count, count + 1
        pairs = {(peer, client): secrets.token_bytes(32) for client in range(count) for peer in (key_holder, server)}
        pairs[server, key_holder] = secrets.token_bytes(32)
        public = Public(secrets.token_hex(8), digest(terms.text), holder.tag)
        enrolments = [
            Enrolment(
                number,
                public,
                terms.text,
                {b if a == number else a: key for (a, b), key in pairs.items() if number in (a, b)},
                b"" if number == server else holder.client_key(),
                holder.secret_key() if number == key_holder else b"",
            )
            for number in range(count + 2)
        ]
        return write(enrolments, root, {key_holder: KEY_HOLDER, server: SERVER})


def _difference(enrolled: Terms, requested: Terms) -> str:
    ours: dict[str, Any] = dataclasses.asdict(requested)
    return ", ".join(f"{name}={value} and not {ours[name]}" for name, value in dataclasses.asdict(enrolled).items() if value != ours[name])
