"""The cost of encrypting a lane's selection, measured on real entries, on which the round trip is proven exact too.

Costs depend only on the number of values and the parameters, so a sweep measures each once and joins it to its records.
"""

from __future__ import annotations

from collections.abc import Sequence

from selgrad import encryption
from selgrad.config import EncryptionConfig
from selgrad.encryption import make_keys
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane


class SchemeCache:
    """Crypto contexts and keys of a configuration, made once for each ring that the sizes need."""

    def __init__(self, options: EncryptionConfig) -> None:
        self._profile, self.num_clients = options.scheme_profile, options.num_clients
        self._made: dict[encryption.Profile, tuple[encryption.CKKS, Sequence[encryption.Keys]]] = {}

    def for_size(self, num_values: int) -> tuple[encryption.CKKS, Sequence[encryption.Keys]]:
        """Returns context and keys for `num_values` values per client."""
        profile = self._profile.for_size(num_values)
        if profile not in self._made:
            scheme = encryption.CKKS(profile)
            self._made[profile] = scheme, make_keys(scheme, self.num_clients)
        return self._made[profile]


def encryption_cost(setting: Setting, lane: Lane, schemes: SchemeCache) -> encryption.Cost:
    """Measures one round on real entries: every client encrypts an update of the setting under the lane's mask; the sum is proven exact."""
    mask = setting.mask(lane)
    clients = [encryption.select(setting.sent(lane.seed, 0, i % setting.num_samples).grads, mask) for i in range(schemes.num_clients)]
    return encryption.measure(*schemes.for_size(clients[0].size), clients, encryption.mask_hash(mask))
