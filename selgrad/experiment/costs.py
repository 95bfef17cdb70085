"""What encrypting a lane's selection costs, measured on real entries; the round trip is proven on the same.

Costs depend on the number of values and the parameters alone, so a sweep measures each once and joins it to its records.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from selgrad import encryption, trees
from selgrad.config import EncryptionConfig
from selgrad.encryption import make_keys
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane


class SchemeCache:
    """Crypto contexts and keys of a configuration, made once for each ring that sizes call for."""

    def __init__(self, options: EncryptionConfig) -> None:
        self._profile, self.num_clients = options.scheme_profile, options.num_clients
        self._made: dict[encryption.Profile, tuple[encryption.CKKS, Sequence[encryption.Keys]]] = {}

    def for_size(self, num_values: int) -> tuple[encryption.CKKS, Sequence[encryption.Keys]]:
        """Context and keys for so many values a client."""
        profile = self._profile.for_size(num_values)
        if profile not in self._made:
            scheme = encryption.CKKS(profile)
            self._made[profile] = scheme, make_keys(scheme, self.num_clients)
        return self._made[profile]


def encryption_cost(setting: Setting, lane: Lane, schemes: SchemeCache) -> encryption.Cost:
    """One round on real entries: every client encrypts an update of the setting under the lane's mask; the sum is proven exact."""
    ranks = jax.tree.map(lambda leaf: leaf[lane.sample], setting.ranks(lane.metric, lane.selector, lane.seed)[0])
    mask = jax.tree.map(np.asarray, trees.top(ranks, setting.num_selected(lane.ratio)))
    grads = jax.tree.map(np.asarray, setting.client(lane.seed).grads)
    each = range(schemes.num_clients)
    clients = [encryption.select(jax.tree.map(lambda leaf, i=i % setting.num_samples: leaf[i], grads), mask) for i in each]
    return encryption.measure(*schemes.for_size(clients[0].size), clients, encryption.mask_hash(mask))
