"""Selective encryption for a Flower app of one's own: a client mod that seals a share of each update, and a strategy that averages what it cannot read.

The mod takes the arrays that a client returns from training, whatever made them; nothing else of the app changes. See docs/federation.md.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad import encryption, trees
from selgrad.encryption import agreement
from selgrad.encryption.wire import require_different, require_mac_key
from selgrad.errors import EncryptionError, UsageError, require_ratio
from selgrad.federation.flower import require_flower
from selgrad.federation.messages import context_of, mask_digest, plain_mac

require_flower()
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402

_SEALED = "selgrad-sealed"
_MASK = "selgrad-mask"
Decrypt = Callable[[bytes, str], npt.NDArray[np.int64]]


def _signed(mac_key: bytes | None, round_number: int, plain: bytes, weight: float) -> bytes:
    return b"" if mac_key is None else plain_mac(mac_key, round_number, weight.hex().encode() + plain)


def _flat(record: Any) -> npt.NDArray[np.float32]:
    return np.concatenate([array.numpy().astype(np.float32).reshape(-1) for array in record.values()])


def _is_float(record: Any) -> npt.NDArray[np.bool_]:
    """Which entries belong to float arrays."""
    arrays = [array.numpy() for array in record.values()]
    return np.concatenate([np.full(array.size, np.issubdtype(array.dtype, np.floating)) for array in arrays])


def _like(record: Any, flat: npt.NDArray[Any]) -> Any:
    """Flat values in the names, shapes and dtypes of a record."""
    shapes = {name: array.numpy() for name, array in record.items()}
    ends = np.cumsum([value.size for value in shapes.values()])[:-1]
    parts = np.split(flat, ends)
    return ArrayRecord({name: Array(part.reshape(v.shape).astype(v.dtype)) for (name, v), part in zip(shapes.items(), parts, strict=True)})


def _beyond(record: Any, update: npt.NDArray[np.float32], bits: npt.NDArray[np.bool_], bound: float) -> tuple[int, str]:
    """How many entries to encrypt lie beyond the bound, and the names of their arrays with the largest of each."""
    ends = np.cumsum([array.numpy().size for array in record.values()])[:-1]
    largest = {name: float(np.abs(part).max(initial=0)) for name, part in zip(record, np.split(np.where(bits, update, 0), ends), strict=True)}
    named = ", ".join(f"{name} ({value:g})" for name, value in largest.items() if not value <= bound)
    return int((~(np.abs(update[bits]) <= bound)).sum()), named


def selective_encryption(
    key: str | Path, *, mac_key: bytes | None = None, clip: bool = False, min_ratio: float | None = None
) -> Callable[[Any, Any, Any], Any]:
    """A Flower client mod: the entries that the server's mask names leave the client encrypted, weighted by its number of examples.

    Args:
      key: file of the client key, as `KeyHolder.save` wrote it.
      mac_key: shared with the server; None sends a checksum only. Where all clients share one, each can speak for the others.
      clip: whether entries that move by more than the profile's bound in a round are clipped, counted and logged; otherwise they are refused, since the mean
        would be wrong. Integer arrays, such as a count of batches, are never encrypted.
      min_ratio: of the float entries, below which nothing is sent: the server chooses the mask, and the client how little is enough. None asks for one entry.

    Raises:
      UsageError: if `min_ratio` lies outside [0, 1].
      EncryptionError: when used, if an entry lies beyond the bound and `clip` is False, the server sends no mask or one that encrypts too little, the key
        cannot be read, an entry is not finite, or the number of examples is missing.
    """
    require_ratio(min_ratio or 0)
    if mac_key is not None:
        require_mac_key(mac_key)
    made: dict[str, encryption.Client] = {}

    def mod(message: Any, context: Any, call_next: Any) -> Any:
        if message.metadata.message_type.split(".")[0] != "train":
            return call_next(message, context)
        if _MASK not in message.content:
            # The update would leave in the clear.
            raise EncryptionError("the server sent no mask and this client encrypts; use SelectiveFedAvg on the server")
        asked = message.content[_MASK]
        (before,) = message.content.array_records.values()
        old = _flat(before)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        ((name, after),) = reply.content.array_records.items()
        named = asked["weigh"]
        given = [metrics[named] for metrics in reply.content.metric_records.values() if named in metrics]
        if len(given) != 1 or not 0 < given[0] <= asked["scale"]:
            raise EncryptionError(f"{named}={given} is no number in (0, {asked['scale']:g}]; return it once, or raise max_examples of the strategy")
        weight = float(given[0])
        bits = encryption.decode_indices(asked["indices"], old.size)
        floats = _is_float(before)
        least = max(1, trees.count(min_ratio or 0.0, int(floats.sum())))
        if int(bits.sum()) < least:
            found, total = int(bits.sum()), int(floats.sum())
            raise EncryptionError(f"the server's mask names {found:,} of {total:,} float entries and this client encrypts {least:,} at least; nothing is sent")
        if (bits & ~floats).any():
            raise EncryptionError("the server's mask names entries of integer arrays, which have no bound; use SelectiveFedAvg on the server")
        update = np.float32(weight / asked["scale"]) * (old - _flat(after))
        if "client" not in made:
            made["client"] = encryption.Client(encryption.roles.read_private(Path(key)), mac_key=mac_key)
        digest = context_of(mask_digest(bits), asked["round"])
        bound = made["client"].profile.bound
        clipped, where = _beyond(before, update, bits, bound)
        if clipped and not clip:
            raise EncryptionError(
                f"{clipped} entries to encrypt move by more than the public bound {bound:g} in this round, in {where}, and the mean would be wrong; take these "
                "arrays out of the mask, normalise them, take a profile with a larger bound, or pass clip=True"
            )
        if clipped:
            logging.getLogger("flwr").warning("%d entries beyond the public bound %g were clipped, in %s; their mean is wrong", clipped, bound, where)
        sealed, plain, share = made["client"].encrypt(update[bits], digest, clip=clip), update[~bits].tobytes(), weight / asked["scale"]
        content = {kind: record for kind, record in reply.content.items() if kind != name}
        content[_SEALED] = ConfigRecord(
            {"sealed": sealed, "plain": plain, "weight": share, "clipped": clipped, "mac": _signed(mac_key, asked["round"], plain, share)}
        )
        return Message(RecordDict(content), reply_to=message)

    return mod


class SelectiveFedAvg(FedAvg):  # type: ignore[misc]
    """Flower's FedAvg over updates that `selective_encryption` sealed: exposed entries are added in the clear, the others as ciphertexts.

    Args:
      ratio: share of entries to encrypt.
      decrypt: asks the key holder for a sum: (bytes, mask hash) -> integers; such as `KeyHolder.load(folder).decrypt` in another process.
      profile: of the encryption.
      mask: of the flat arrays; None draws a fixed one from `seed`, which depends on no data.
      max_examples: of one client; updates are weighted by examples over this before they are rounded to the profile's grid, so one that is far too large
        makes the rounding coarse.
      mac_key: shared with the clients.
      seed: of the mask.
      min_clients: updates without which a round changes nothing; a sum over one client would be that client's upload.
      arguments: of FedAvg.

    Raises:
      UsageError: if `min_clients` is below 2, or the ratio lies outside [0, 1].
    """

    def __init__(
        self, *, ratio: float, decrypt: Decrypt, max_examples: float, profile: str = "exact", mask: npt.NDArray[np.bool_] | None = None,
        mac_key: bytes | None = None, seed: int = 0, min_clients: int = 2, **arguments: Any,
    ) -> None:  # fmt: skip
        require_ratio(ratio)
        if min_clients < 2:
            raise UsageError(f"min_clients={min_clients} would have one client's upload decrypted; give 2 or more")
        if mac_key is not None:
            require_mac_key(mac_key)
        self._min_clients = min_clients
        super().__init__(**arguments)
        self._ratio, self._decrypt, self._mask, self._seed = ratio, decrypt, mask, seed
        self._scheme, self._max_examples, self._mac_key = encryption.CKKS(profile), max_examples, mac_key
        self._current: Any = None

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """FedAvg's messages with the mask beside the weights."""
        self._current = arrays
        total = _flat(arrays).size
        if self._mask is None:
            self._mask = agreement.fixed(total, trees.count(self._ratio, total), self._seed)
        # Counters have no bound, and their mean is no weight.
        self._mask = self._mask & _is_float(arrays)
        asked: dict[str, Any] = {"scale": float(self._max_examples), "weigh": self.weighted_by_key, "round": server_round}
        record = ConfigRecord({"indices": encryption.encode_indices(self._mask), **asked})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content[_MASK] = record
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """The weighted mean of updates; replies that are damaged, forged or of another mask are left out and logged."""
        assert self._mask is not None
        good, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        bits, digest = self._mask, context_of(mask_digest(self._mask), server_round)
        plain, weights = np.zeros(int((~bits).sum())), 0.0
        sealed: list[encryption.Reader] = []
        counted: list[Any] = []
        for reply in good:
            try:
                record: dict[str, Any] = dict(reply.content[_SEALED].items())
                if not isinstance(record["sealed"], bytes) or not 0 < record["weight"] <= 1:
                    raise EncryptionError("the update has no ciphertexts or no weight")
                if not hmac.compare_digest(record["mac"], _signed(self._mac_key, server_round, record["plain"], record["weight"])):
                    raise EncryptionError("the exposed entries are not authentic")
                reader = encryption.Reader(record["sealed"], self._mac_key)
                exposed, header = np.frombuffer(record["plain"], np.float32), reader.header
                if (header.mask_hash, header.num_values, header.num_clients) != (digest, int(bits.sum()), 1) or exposed.size != plain.size:
                    raise EncryptionError("the update is of another mask, round or number of clients")
                if sealed and header.key_tag != sealed[0].header.key_tag:
                    raise EncryptionError("the update is under another key than the one before it")
                if not np.isfinite(exposed).all():
                    raise EncryptionError("an exposed entry is not finite")
                self._scheme.check(reader)
            except (EncryptionError, KeyError, ValueError, TypeError, AttributeError) as error:
                logging.getLogger("flwr").warning("an update is left out: %s", error)
                continue
            plain += exposed
            sealed.append(reader)
            weights += record["weight"]
            counted.append(reply)
        try:
            require_different(sealed)
        except EncryptionError as error:
            logging.getLogger("flwr").warning("round %d changes nothing: %s", server_round, error)
            return None, None
        if len(counted) < self._min_clients:
            logging.getLogger("flwr").warning("round %d changes nothing: %d updates count and min_clients is %d", server_round, len(counted), self._min_clients)
            return None, None
        update = np.zeros(bits.size)
        update[~bits] = plain
        if bits.any():
            total = self._scheme.add(sealed, raw=self._scheme.layout is not None).to_bytes()
            update[bits] = self._decrypt(total, digest) / 2.0**self._scheme.profile.grid_bits
        new = _like(self._current, _flat(self._current) - update / weights)
        metrics = self.train_metrics_aggr_fn([reply.content for reply in counted], self.weighted_by_key)
        return new, metrics if isinstance(metrics, MetricRecord) else None
