"""A stock of fresh encryptions of zero: encrypting then costs only one addition, because the randomness was drawn beforehand.

An encryption of zero that is used twice reveals the difference of two messages, so an item that is taken leaves the stock for good.
"""

from __future__ import annotations

import threading
from typing import Any

from selgrad.encryption.ckks import CKKS
from selgrad.encryption.context import Keys
from selgrad.errors import EncryptionError


class ZeroPool:
    """A stock of encryptions of zero under one key; safe to use from threads, but only within this process.

    Args:
      scheme: to encrypt with.
      keys: to encrypt under.
    """

    def __init__(self, scheme: CKKS, keys: Keys) -> None:
        self._scheme, self._keys = scheme, keys
        self._items: list[Any] = []
        self._lock = threading.Lock()
        self.num_taken = 0

    def __len__(self) -> int:
        """The number of items left."""
        return len(self._items)

    def fill(self, num_values: int) -> None:
        """Adds as many items as `num_values` values need, on all threads of the scheme."""
        count = self._scheme.profile.num_ciphertexts(num_values)
        fresh = list(self._scheme.in_order(lambda _: self._scheme.encrypt_zero(self._keys), range(count)))
        with self._lock:
            self._items += fresh

    def take(self, tag: str) -> Any:
        """Removes one item from the stock and returns it.

        Args:
          tag: of the key that values are to be encrypted under.

        Raises:
          EncryptionError: if none is left, or the stock is under another key.
        """
        if tag != self._keys.tag:
            raise EncryptionError(f"the stock is under key {self._keys.tag:.16} and the values under {tag:.16}; fill a stock under that key")
        with self._lock:
            if not self._items:
                raise EncryptionError(f"the stock of zero encryptions is empty after {self.num_taken}; fill it with the number of values to encrypt")
            self.num_taken += 1
            return self._items.pop()
