"""Selective encryption for a user's own Flower app: a client mod that encrypts a share of each update, and a strategy that averages updates it cannot read.

The mod works on the arrays that a client returns from training, no matter how they were computed; nothing else in the app changes. See docs/federation.md.
"""

from __future__ import annotations

import base64
import collections
import functools
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selgrad import encryption
from selgrad.encryption.agreement import Bits
from selgrad.encryption.wire import require_different
from selgrad.errors import EncryptionError, SelgradError, UsageError
from selgrad.federation.agreements import ASKED, Chair, Proposer
from selgrad.federation.enrolment import Seat, digest, digest_of_weights
from selgrad.federation.flower import require_flower, seat_of
from selgrad.federation.key_holder import KeyHolderLink, UnreachableError
from selgrad.federation.messages import context_of, mask_digest
from selgrad.federation.terms import Terms

require_flower()
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402

_SEALED = "selgrad-sealed"
_ASKED = "selgrad-asked"
Arrays = dict[str, npt.NDArray[Any]]
Scores = Callable[[Arrays], Mapping[str, npt.ArrayLike]]
Enrolled = str | Path | Callable[[Any], str | Path]


def _flat(record: Any) -> npt.NDArray[np.float64]:
    """The arrays of a record as one float64 vector; float64 holds counters exactly, too.

    Raises:
      EncryptionError: for an array that holds neither floats nor integers.
    """
    for name, array in record.items():
        kind = np.dtype(array.numpy().dtype)
        if kind.kind not in "fiu":
            raise EncryptionError(f"array {name!r} has type {kind}, which has no mean; send floats and integers of NumPy alone")
    return np.concatenate([array.numpy().astype(np.float64).reshape(-1) for array in record.values()])


def _is_float(record: Any) -> Bits:
    """A mask of the entries that belong to float arrays; counters have no bound, and their mean is not a weight."""
    arrays = [array.numpy() for array in record.values()]
    return np.concatenate([np.full(array.size, np.issubdtype(array.dtype, np.floating)) for array in arrays])


def _split_flat(record: Any, flat: npt.NDArray[Any]) -> Arrays:
    """Splits flat values into arrays with the names and shapes of a record."""
    shapes = {name: array.numpy().shape for name, array in record.items()}
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])[:-1]
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), np.split(flat, ends), strict=True)}


def _as_record(record: Any, flat: npt.NDArray[Any]) -> Any:
    """Flat values as an `ArrayRecord` with the names, shapes and dtypes of another record."""
    parts = _split_flat(record, flat)
    kinds = {name: array.numpy().dtype for name, array in record.items()}
    rounded = {name: np.rint(part) if np.issubdtype(kinds[name], np.integer) else part for name, part in parts.items()}
    return ArrayRecord({name: Array(part.astype(kinds[name])) for name, part in rounded.items()})


def _signature(record: Any) -> list[tuple[str, tuple[int, ...], str]]:
    return [(name, array.numpy().shape, str(array.numpy().dtype)) for name, array in record.items()]


def magnitude(update: Arrays) -> Arrays:
    """The absolute value of each entry of an update, a significance score that needs no model."""
    return {name: np.abs(array) for name, array in update.items()}


def _asked(content: Any, run_config: Mapping[str, Any]) -> str:
    """A digest of all that the server asks besides weights and mask, such as the learning rate: the settings of a message and of the run.

    Uploads are bound to it, and only uploads of one digest are summed: a server that asks one client to train and the others to stand still would otherwise
    read the one in the sum.
    """
    records = {**content.config_records, **content.metric_records}
    asked = {name: dict(record.items()) for name, record in records.items() if name != _ASKED}
    as_text = lambda value: base64.b64encode(value).decode()  # of bytes, alone or in a list
    return digest(json.dumps([asked, dict(run_config)], sort_keys=True, default=as_text))


class _Client(NamedTuple):
    """The state of a client while it answers one message."""

    seat: Seat
    terms: Terms
    record: Any
    floats: Bits
    weights: str
    asked: str

    def context(self, bound_to: str, number: int) -> str:
        return context_of(digest(bound_to, self.asked), number, self.seat.enrolment.public.run)

    def sealed(self, values: npt.NDArray[Any], bound_to: str, number: int, clip: bool) -> tuple[bytes, bytes]:
        """Encrypts values and authenticates the ciphertexts to the key holder."""
        enrolment, context = self.seat.enrolment, self.context(bound_to, number)
        raw = _encrypting(enrolment.client_key).encrypt(values, context, clip=clip)
        return raw, enrolment.tag(self.terms.clients, "upload", enrolment.number, context, self.weights, digest(raw))


@functools.lru_cache(maxsize=16)
def _encrypting(key: bytes) -> encryption.Client:
    return encryption.Client(key)


def selective_encryption(enrolment: Enrolled | None = None, *, scores: Scores = magnitude, clip: bool = False) -> Callable[[Any, Any, Any], Any]:
    """Makes a Flower client mod that encrypts the entries of the common mask, weighted by the client's number of examples.

    A client answers each round once, for one set of weights and one mask; a repeated message gets the same answer.

    Args:
      enrolment: folder of this client, or of all clients where they are processes on one machine (each takes the one of its `partition-id`), or a function of
        Flower's context that returns it; None takes `enrolment` from the node's configuration.
      scores: the significance of a client's own update, on which the common mask is based: (arrays by name, old minus new) -> scores of the same names and
        shapes. The default is their magnitude; a function that has model and batch can return any other score, such as a sensitivity.
      clip: whether entries that move by more than the profile's bound in a round are clipped, counted and logged; otherwise they are refused, since the mean
        would be wrong. Integer arrays, such as a count of batches, are never encrypted.

    Raises:
      SelgradError: when used, if the enrolment cannot be read, the server asks for something other than what was agreed or repeats a round differently, an
        entry is not finite or, with `clip` False, beyond the bound, or the number of examples is missing.
    """

    def mod(message: Any, context: Any, call_next: Any) -> Any:
        if message.metadata.message_type.split(".")[0] != "train":
            return call_next(message, context)
        if _ASKED not in message.content:
            # The update would leave the client in the clear.
            raise EncryptionError("the server sent no mask and this client encrypts; use SelectiveFedAvg on the server")
        request = message.content[_ASKED]
        if type(request["round"]) is not int or request["round"] < 0:
            raise EncryptionError(f"round {request['round']!r} is none; nothing is sent")
        partition = context.node_config.get("partition-id")
        folder = enrolment(context) if callable(enrolment) else enrolment or context.node_config.get("enrolment")
        seat = seat_of(None if partition is None else int(partition), folder)
        (before,) = message.content.array_records.values()
        old, floats = _flat(before), _is_float(before)
        client = _Client(seat, Terms.of(seat.enrolment), before, floats, digest_of_weights(old), _asked(message.content, context.run_config))
        failed: list[Any] = []

        def update() -> tuple[npt.NDArray[np.float64], Any]:
            reply = call_next(message, context)
            if reply.has_error():
                failed.append(reply)
                raise _FailedError
            ((_, after),) = reply.content.array_records.items()
            # Names, shapes, types and order came from the server; the training's result has to agree with them.
            if _signature(after) != _signature(before):
                raise EncryptionError("training returned arrays of other names, shapes, types or order than the server sent; nothing is sent")
            return old - _flat(after), reply.content

        try:
            with seat.alone():
                answer = _proposed(client, request, update, scores) if request["what"] == "propose" else _trained(client, request, update, clip)
        except _FailedError:
            return failed[0]
        content: dict[str, Any] = _decode_extras(answer.pop("said", "{}"))
        content[_SEALED] = ConfigRecord({**answer, "client": seat.enrolment.number, "asked": client.asked})
        return Message(RecordDict(content), reply_to=message)

    return mod


def _encode_extras(content: Any) -> str:
    """The metrics and configs that an app returns with its arrays, as JSON, so that they can be returned again."""
    metrics = {name: dict(values.items()) for name, values in content.metric_records.items()}
    configs = {
        name: {key: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value for key, value in values.items()}
        for name, values in content.config_records.items()
    }
    return json.dumps({"metrics": metrics, "configs": configs})


def _decode_extras(text: str) -> dict[str, Any]:
    content = json.loads(text)
    plain = lambda value: base64.b64decode(value["bytes"]) if isinstance(value, dict) else value
    metrics = {name: MetricRecord(values) for name, values in content.get("metrics", {}).items()}
    return {**metrics, **{name: ConfigRecord({key: plain(value) for key, value in values.items()}) for name, values in content.get("configs", {}).items()}}


class _FailedError(Exception):
    """The app's own training returned an error, which is passed on unchanged."""


def _proposed(client: _Client, request: Any, update: Callable[[], Any], scores: Scores) -> dict[str, Any]:
    """This client's proposal for the common mask, based on an update that it does not send."""
    terms, enrolment, number = client.terms, client.seat.enrolment, request["round"]
    if terms.agreement not in ASKED:
        raise EncryptionError(f"the server asks what this client would encrypt, and it agreed to the mask {terms.agreement!r}; nothing is sent")

    def make() -> dict[str, Any]:
        moved, _ = update()
        arrays = _split_flat(client.record, moved)
        score_map = scores({name: part for name, part in arrays.items() if np.issubdtype(client.record[name].numpy().dtype, np.floating)})
        flat = np.concatenate([np.asarray(score_map[name], np.float32).reshape(-1) for name in client.record if name in score_map])
        if flat.size != int(client.floats.sum()):
            raise UsageError(f"scores are {flat.size:,} and the update has {int(client.floats.sum()):,} float entries; return one for each, by the same names")
        if not np.isfinite(flat).all():
            raise EncryptionError("a score is not finite; lower the learning rate, or look at the function of scores")
        word = [b""]

        def encrypt(values: npt.NDArray[Any], bound_to: str) -> bytes:
            raw, word[0] = client.sealed(values, bound_to, number, True)
            return raw

        proposer = Proposer(flat, terms.num_selected(flat.size), terms.encryption.bound, encrypt)
        return {"proposal": ASKED[terms.agreement].propose(proposer), "word": word[0]}

    answer = client.seat.once("propose", number, digest(client.weights, client.asked), make)
    return {**answer, "tag": enrolment.tag(terms.clients + 1, "proposal", enrolment.number, number, client.weights, digest(answer["proposal"]))}


def _trained(client: _Client, request: Any, update: Callable[[], Any], clip: bool) -> dict[str, Any]:
    """The weighted update, its exposed entries in the clear and the others encrypted."""
    terms, enrolment, number = client.terms, client.seat.enrolment, request["round"]
    chosen = encryption.decode_indices(request["indices"], int(client.floats.sum()))
    terms.require_mask(chosen)
    client.seat.pin("mask", mask_digest(chosen))
    bits = np.zeros(client.floats.size, bool)
    bits[client.floats] = chosen
    mask_hash = mask_digest(chosen)

    def make() -> dict[str, Any]:
        moved, content = update()
        weight_key, max_examples = terms.weighted_by, terms.max_examples
        counts = [metrics[weight_key] for metrics in content.metric_records.values() if weight_key in metrics]
        if len(counts) != 1 or not 0 < counts[0] <= max_examples:
            raise EncryptionError(f"{weight_key}={counts} is not a number in (0, {max_examples:g}]; return it once, or enrol with a larger max_examples")
        share = float(counts[0]) / max_examples
        values = (share * moved).astype(np.float32)
        if not np.isfinite(values).all():
            raise EncryptionError("an entry of the update is not finite; lower the learning rate, or clip the gradient")
        bound = terms.encryption.bound
        clipped, where = _beyond(client.record, values, bits, bound)
        if clipped and not clip:
            # The server reads the error message, and must not learn about these entries.
            logging.getLogger("flwr").error("%d entries to encrypt move by more than the public bound %g, in %s", clipped, bound, where)
            raise EncryptionError(
                f"entries to encrypt move by more than the public bound {bound:g} in this round, and the mean would be wrong; normalise the arrays that this "
                "client's log names, enrol with a larger bound, or pass clip=True"
            )
        if clipped:
            logging.getLogger("flwr").warning("%d entries beyond the public bound %g were clipped, in %s; their mean is wrong", clipped, bound, where)
        sealed, word = client.sealed(values[bits], mask_hash, number, clip)
        return {"sealed": sealed, "word": word, "plain": values[~bits].tobytes(), "weight": share, "clipped": clipped, "said": _encode_extras(content)}

    answer = client.seat.once("train", number, digest(client.weights, mask_hash, client.asked), make)
    context = client.context(mask_hash, number)
    reply_digest = digest(answer["weight"].hex(), answer["plain"], answer["sealed"])
    return {**answer, "tag": enrolment.tag(terms.clients + 1, "reply", enrolment.number, context, client.weights, reply_digest)}


def _beyond(record: Any, update: npt.NDArray[np.float32], bits: Bits, bound: float) -> tuple[int, str]:
    """The number of entries to encrypt beyond the bound, and the names of their arrays with the largest value in each."""
    largest = {name: float(np.abs(part).max(initial=0)) for name, part in _split_flat(record, np.where(bits, update, 0)).items()}
    named = ", ".join(f"{name} ({value:g})" for name, value in largest.items() if not value <= bound)
    return int((~(np.abs(update[bits]) <= bound)).sum()), named


class SelectiveFedAvg(FedAvg):  # type: ignore[misc]
    """Flower's FedAvg over updates that `selective_encryption` encrypted: exposed entries are added in the clear, the others by the key holder.

    The ratio, the agreement, the profile, the weights of clients and their minimum number come from the enrolment, which every participant holds.

    Args:
      key_holder: the link to the key holder: `connect(...)` in a deployment, `key_holder_here(...)` in a simulation.
      arguments: passed on to FedAvg.

    Raises:
      UsageError: if `weighted_by_key` is among the arguments and not what clients were enrolled with.
    """

    def __init__(self, *, key_holder: KeyHolderLink, **arguments: Any) -> None:
        agreed = key_holder.terms.weighted_by
        if arguments.setdefault("weighted_by_key", agreed) != agreed:
            raise UsageError(
                f"weighted_by_key={arguments['weighted_by_key']!r} is not what clients were enrolled with, {agreed!r}; enrol again, or leave it out"
            )
        super().__init__(**arguments)
        self._link, self._terms = key_holder, key_holder.terms
        self._scheme = encryption.CKKS(self._terms.encryption)
        self._mask: Bits | None = None
        self._current: Any = None

    @property
    def mask(self) -> Bits | None:
        """The mask over float entries, in the order of the arrays; None before it is agreed on."""
        return self._mask

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """FedAvg's messages with the mask added; in the first round the mask is agreed on first, with proposals from clients unless it is fixed."""
        self._current = arrays
        num_floats = int(_is_float(arrays).sum())
        if self._mask is None:
            asks_clients = self._terms.agreement != "fixed"
            self._mask = self._agree(server_round, arrays, config, grid, num_floats) if asks_clients else self._terms.fixed_mask(num_floats)
        record = {"what": "train", "indices": encryption.encode_indices(self._mask)}
        return self._messages_with(server_round, arrays, config, grid, record)

    def _messages_with(self, server_round: int, arrays: Any, config: Any, grid: Any, record: dict[str, Any]) -> list[Any]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content[_ASKED] = ConfigRecord({**record, "round": server_round})
        return messages

    def _agree(self, server_round: int, arrays: Any, config: Any, grid: Any, num_floats: int) -> Bits:
        """The mask agreed on, from all proposals that could be read."""
        weights, terms = digest_of_weights(_flat(arrays)), self._terms
        protocol = ASKED[terms.agreement]

        replies, asked = self._read(grid.send_and_receive(self._messages_with(server_round, arrays, config, grid, {"what": "propose"})))

        def choose(maps: Any) -> Bits:
            return self._link.chosen(server_round, weights, asked, maps, num_floats)

        chair = Chair(num_floats, terms.num_selected(num_floats), choose)
        proposals: dict[int, Any] = {}
        for client, record in replies:
            try:
                self._require_tag(client, record["tag"], "proposal", client, server_round, weights, digest(record["proposal"]))
                proposals[client] = protocol.read(chair, record["proposal"], functools.partial(self._upload, client, server_round, asked, record["word"]))
            except (SelgradError, ValueError, KeyError, TypeError) as error:
                logging.getLogger("flwr").warning("the proposal of client %d is left out: %s", client, error)
        if len(proposals) < terms.min_clients:
            raise SelgradError(f"{len(proposals)} clients said what they would encrypt and min_clients is {terms.min_clients}; start more")
        return protocol.combine(chair, [proposals[client] for client in sorted(proposals)])

    def _read(self, replies: Iterable[Any]) -> tuple[list[tuple[int, dict[str, Any]]], str]:
        """The mod's answers, each with the client number that it claims, and the digest of what was asked that most of them name."""
        read = []
        for reply in replies:
            if reply.has_error() or _SEALED not in reply.content:
                logging.getLogger("flwr").warning("an answer is left out: %s", reply.error.reason if reply.has_error() else "it is not an answer of the mod")
                continue
            record = {**dict(reply.content[_SEALED].items()), "said": reply.content}
            client = record.get("client")
            if type(client) is int and 0 <= client < self._terms.clients:
                read.append((client, record))
        asked = collections.Counter(record["asked"] for _, record in read if isinstance(record.get("asked"), str))
        return read, max(asked, key=lambda name: (asked[name], name), default="")

    def _require_tag(self, client: int, tag: Any, *parts: Any) -> None:
        """Raises EncryptionError if a client's answer is not authenticated to the server."""
        if not isinstance(tag, bytes) or not self._link.enrolment.knows(client, tag, *parts):
            raise EncryptionError("it is not authentic")

    def _upload(self, client: int, number: int, asked: str, word: bytes, raw: bytes, bound_to: str, num_values: int) -> tuple[int, bytes, bytes]:
        """One client's ciphertexts with its tag for the key holder, if they are what was asked for."""
        reader, public = encryption.Reader(raw), self._link.enrolment.public
        header = reader.header
        if (header.key_tag, header.mask_hash, header.num_values, header.num_clients) != (
            public.key_tag,
            context_of(digest(bound_to, asked), number, public.run),
            num_values,
            1,
        ):
            raise EncryptionError("the ciphertexts are under another key, or of another mask, round, request or number of clients")
        self._scheme.check(reader)
        return client, raw, word

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Computes the weighted mean of updates; replies that are damaged, forged or of another mask are left out and logged."""
        assert self._mask is not None
        floats = _is_float(self._current)
        bits = np.zeros(floats.size, bool)
        bits[floats] = self._mask
        mask_hash, weights, terms = mask_digest(self._mask), digest_of_weights(_flat(self._current)), self._terms
        answers, asked = self._read(replies)
        context = context_of(digest(mask_hash, asked), server_round, self._link.enrolment.public.run)
        plain, share = np.zeros(int((~bits).sum())), 0.0
        uploads: list[tuple[int, bytes, bytes]] = []
        counted: list[Any] = []
        for client, record in answers:
            try:
                reply_digest = digest(float(record["weight"]).hex(), record["plain"], record["sealed"])
                self._require_tag(client, record["tag"], "reply", client, context, weights, reply_digest)
                if client in {other for other, _, _ in uploads}:
                    raise EncryptionError("it answered before")
                if sum(self.weighted_by_key in metrics for metrics in record["said"].metric_records.values()) != 1:
                    raise EncryptionError(f"it does not say {self.weighted_by_key}, or more than once")
                exposed = np.frombuffer(record["plain"], np.float32)
                if exposed.size != plain.size or not 0 < record["weight"] <= 1 or not np.isfinite(exposed).all():
                    raise EncryptionError("its exposed entries or its weight are not what was asked for")
                uploads.append(self._upload(client, server_round, asked, record["word"], record["sealed"], mask_hash, int(bits.sum())))
            except (SelgradError, KeyError, ValueError, TypeError, AttributeError) as error:
                logging.getLogger("flwr").warning("the update of client %d is left out: %s", client, error)
                continue
            plain += exposed
            share += record["weight"]
            counted.append(record["said"])
        try:
            require_different([encryption.Reader(raw) for _, raw, _ in uploads])
            if len(uploads) < terms.min_clients:
                raise EncryptionError(f"{len(uploads)} updates count and min_clients is {terms.min_clients}")
            points = self._link.opened(server_round, mask_hash, weights, asked, uploads)
        except UnreachableError:
            # Do not train on the same weights again: their sum may already have been decrypted.
            raise
        except SelgradError as error:
            logging.getLogger("flwr").warning("round %d changes nothing: %s", server_round, error)
            return None, None
        update = np.zeros(bits.size)
        update[~bits], update[bits] = plain, points / 2.0**terms.encryption.grid_bits
        new = _as_record(self._current, _flat(self._current) - update / share)
        try:
            metrics = self.train_metrics_aggr_fn(counted, self.weighted_by_key)
        except Exception as error:  # clients may send any metrics along with their updates
            logging.getLogger("flwr").warning("metrics of round %d are left out: %s: %s", server_round, type(error).__name__, error)
            return new, None
        return new, metrics if isinstance(metrics, MetricRecord) else None
