"""The key holder for a user's own Flower app: a service that decrypts sums that it forms itself, and the server's link to it.

It answers only the server that it was enrolled with, over gRPC as Flower does, and decrypts only what clients vouch for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selgrad import encryption, files
from selgrad.encryption import agreement
from selgrad.encryption.agreement import Bits
from selgrad.errors import EncryptionError, SelgradError, UsageError
from selgrad.federation.agreements import SCORES
from selgrad.federation.enrolment import Enrolment, Seat, digest, pack, unpack
from selgrad.federation.messages import Message
from selgrad.federation.sums import answered_once, mask_of, opened, require_hash, vouched
from selgrad.federation.terms import KEY_HOLDER, SERVER, Terms

_SERVICE, _METHOD = "selgrad.KeyHolder", "Open"
_CHUNK = 2**21
_LARGEST = 2**33
"""The largest request, in bytes."""
_KNOCK, _SIZE = "selgrad-knock-bin", "selgrad-size"


def respond(seat: Seat, request: Message) -> Message:
    """Computes the key holder's answer to the server: grid points of a sum of updates, or the mask of a sum of score maps.

    Args:
      seat: the key holder's.
      request: with `kind` (`decrypt` or `choose`), `round`, `clients`, `uploads`, `tags`, `weights`, `mask_hash` and `asked` (a digest of all else that every
        client was asked).

    Raises:
      SelgradError: if the request is malformed or not one that the key holder answers.
    """
    terms = Terms.of(seat.enrolment)
    try:
        kind, number = request["kind"], request["round"]
        if kind not in ("decrypt", "choose") or type(number) is not int or number < 0:
            raise SelgradError(f"request {kind!r} of round {number!r} is none that the key holder answers")
        bound_to = digest(SCORES if kind == "choose" else mask_of(request), require_hash("asked", request["asked"]))
        uploads = vouched(seat.enrolment, request, bound_to, num_clients=terms.clients, min_clients=terms.min_clients)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SelgradError(f"the request is malformed ({type(error).__name__})") from None

    def make() -> Message:
        points, _ = opened(seat.enrolment, terms.encryption, uploads)
        if kind == "choose":
            return {"mask": encryption.encode_indices(agreement.from_sum(points, terms.num_selected(points.size)))}
        return {"points": points.tobytes()}

    return answered_once(seat, kind, request, uploads, make)


def _sealed_answer(seat: Seat, raw: bytes, tag: bytes) -> bytes:
    """The answer to a request that the server authenticated, with the key holder's tag on request and answer."""
    server = seat.enrolment.number + 1
    if not seat.enrolment.knows(server, tag, "ask", digest(raw)):
        raise SelgradError("the request is not from the server that this key holder was enrolled with; nothing is answered")
    try:
        request = unpack(raw)
    except ValueError as error:
        raise SelgradError(f"the request is malformed ({error})") from None
    answer = pack(respond(seat, request))
    return pack({"answer": answer, "tag": seat.enrolment.tag(server, "answer", digest(raw), digest(answer))})


class UnreachableError(SelgradError):
    """The key holder gave no answer: it may or may not have decrypted the sum, and the same request will get the same answer once it is reachable."""


class KeyHolderLink:
    """The server's connection to the key holder.

    Args:
      enrolment: the server's own.
      ask: sends a request with the server's tag, and returns the answer.

    Attributes:
      terms: of the run.
      enrolment: the server's own.
    """

    def __init__(self, enrolment: Enrolment, ask: Callable[[bytes, bytes], bytes]) -> None:
        self.enrolment, self.terms, self._ask = enrolment, Terms.of(enrolment), ask

    @property
    def _number(self) -> int:
        return self.terms.clients

    def opened(self, number: int, mask_hash: str, weights: str, asked: str, uploads: Sequence[tuple[int, bytes, bytes]]) -> npt.NDArray[np.int64]:
        """The decrypted sum of a round in grid units (n,).

        Args:
          number: of the round.
          mask_hash: of the selection.
          weights: a digest of the weights that clients trained on.
          asked: a digest of all else that they were asked.
          uploads: each client's number, ciphertexts and tag for the key holder.

        Raises:
          SelgradError: if the key holder does not answer, or refuses.
        """
        answer = self._request("decrypt", number, mask_hash, weights, asked, uploads)
        return np.frombuffer(answer["points"], np.int64)

    def chosen(self, number: int, weights: str, asked: str, uploads: Sequence[tuple[int, bytes, bytes]], num_floats: int) -> Bits:
        """The mask (num_floats,) from a sum of score maps.

        Raises:
          SelgradError: if the key holder does not answer, or refuses.
        """
        return encryption.decode_indices(self._request("choose", number, "", weights, asked, uploads)["mask"], num_floats)

    def _request(self, kind: str, number: int, mask_hash: str, weights: str, asked: str, uploads: Sequence[tuple[int, bytes, bytes]]) -> Message:
        clients, raws, tags = ([*column] for column in zip(*sorted(uploads), strict=True))
        request = {"kind": kind, "round": number, "mask_hash": mask_hash, "weights": weights, "asked": asked, "clients": clients, "uploads": raws, "tags": tags}
        raw = pack(request)
        try:
            reply = unpack(self._ask(raw, self.enrolment.tag(self._number, "ask", digest(raw))))
            if not self.enrolment.knows(self._number, reply["tag"], "answer", digest(raw), digest(reply["answer"])):
                raise EncryptionError("the key holder's answer is not authentic; somebody else answers at its address")
            return unpack(reply["answer"])
        except (ValueError, KeyError, TypeError):
            raise EncryptionError("the key holder's answer is damaged; try again") from None


def key_holder_here(folder: str | Path) -> KeyHolderLink:
    """Runs a key holder in this process, for a simulation in which no two parties are separated.

    Args:
      folder: the one that `enrol` wrote.

    Raises:
      SelgradError: if it cannot be read.
    """
    root = Path(folder)
    seat = Seat(Enrolment.load(root / KEY_HOLDER), root / KEY_HOLDER)
    return KeyHolderLink(Enrolment.load(root / SERVER), lambda raw, tag: _sealed_answer(seat, raw, tag))


def connect(folder: str | Path, address: str, *, root_certificates: str | Path | None = None, timeout: float = 600.0) -> KeyHolderLink:
    """Links the server to a key holder that `selgrad key-holder` runs.

    Args:
      folder: of the server's enrolment.
      address: HOST:PORT.
      root_certificates: file that verifies its certificate; None uses a connection in the clear, on which eavesdroppers can read the sums.
      timeout: seconds to wait for an answer.

    Raises:
      SelgradError: if the enrolment or the certificates cannot be read; when used, if nobody answers.
    """
    import grpc

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    enrolment = Enrolment.load(folder)
    channel = (
        grpc.insecure_channel(address, options)
        if root_certificates is None
        else grpc.secure_channel(address, grpc.ssl_channel_credentials(_read(root_certificates)), options)
    )
    call = channel.stream_unary(f"/{_SERVICE}/{_METHOD}")

    def ask(raw: bytes, tag: bytes) -> bytes:
        for pause in (1.0, 3.0):
            try:
                return ask_once(raw, tag)
            except UnreachableError:
                time.sleep(pause)
        return ask_once(raw, tag)

    def ask_once(raw: bytes, tag: bytes) -> bytes:
        size = str(len(raw))
        knock = enrolment.tag(Terms.of(enrolment).clients, "knock", size)
        chunks = (raw[start : start + _CHUNK] for start in range(0, len(raw), _CHUNK))
        try:
            answer: bytes = call(_with_tag(tag, chunks), timeout=timeout, metadata=((_KNOCK, knock), (_SIZE, size)))
            return answer
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                raise SelgradError(f"the key holder refuses: {error.details()}") from None
            raise UnreachableError(
                f"the key holder at {address!r} does not answer ({error.code().name.lower()}); start `selgrad key-holder`, or name its address and certificate"
            ) from None

    return KeyHolderLink(enrolment, ask)


def _with_tag(tag: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield tag
    yield from chunks


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read ({error.strerror}); name a PEM file") from None


@contextlib.contextmanager
def serving(
    folder: str | Path,
    address: str,
    *,
    certificate: str | Path | None = None,
    private_key: str | Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[int]:
    """Runs the service and yields the port that it listens on.

    Args:
      folder: of the key holder's enrolment; its answers are kept there.
      address: HOST:PORT to listen on; port 0 takes a free one.
      certificate, private_key: PEM files for TLS; without them everything is in the clear.
      note: called with one line for each request.

    Raises:
      SelgradError: if another service holds the folder, the enrolment is not a key holder's, or the address cannot be used.
    """
    import grpc

    host, _, port_text = address.rpartition(":")
    if not host or not port_text.isdecimal() or int(port_text) > 65535:
        raise UsageError(f"address {address!r} is not HOST:PORT with a port of at most 65535")
    root = Path(folder)
    seat = Seat(Enrolment.load(root), root)
    if not seat.enrolment.secret:
        raise UsageError(f"{str(root)!r} is the enrolment of participant {seat.enrolment.number}, who holds no secret key; name the folder {KEY_HOLDER!r}")
    server_number = Terms.of(seat.enrolment).clients + 1

    def open_sum(chunks: Iterator[bytes], context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        size, knock = str(metadata.get(_SIZE, "")), metadata.get(_KNOCK, b"")
        if not isinstance(knock, bytes) or not seat.enrolment.knows(server_number, knock, "knock", size) or not int(size) <= _LARGEST:
            note("refused somebody who is not the server")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this key holder was enrolled with another server")
        try:
            tag, parts, length = next(chunks, b""), [], 0
            for chunk in chunks:
                length += len(chunk)
                if length > int(size):
                    raise SelgradError("the request is longer than it says")
                parts.append(chunk)
            answer = _sealed_answer(seat, b"".join(parts), tag)
            note(f"answered a request of {length / 1e6:,.1f} MB")
            return answer
        except SelgradError as error:
            note(f"refused: {error}")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise AssertionError("abort raises") from None

    with files.locked(root, "key holder"):
        # One request at a time, since earlier answers decide what may be answered.
        service = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)])
        handler = grpc.stream_unary_rpc_method_handler(open_sum)
        service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        try:
            if certificate is not None and private_key is not None:
                pair = _read(private_key), _read(certificate)
                port = service.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                port = service.add_insecure_port(address)
        except (RuntimeError, ValueError):
            port = 0
        if not port:
            raise SelgradError(f"cannot listen at {address!r}; it is in use, no address of this machine, or the certificate and key are not a PEM pair")
        service.start()
        try:
            yield int(port)
        finally:
            service.stop(1).wait(5)
