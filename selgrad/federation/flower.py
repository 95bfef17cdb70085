"""Our messages in Flower's records: a transport for the server, and the reply of a participant.

Tested with flwr 1.30. A late reply is pulled with the next messages, so it is noticed and counted, and never taken for an answer to another request.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from selgrad.errors import SelgradError, UsageError
from selgrad.federation.messages import Event, Message

RECORD = "selgrad"


def require_flower() -> None:
    """Refuses if Flower is missing, and changes no settings, since whoever imports the mod or the strategy runs their own app.

    Raises:
      UsageError: if it is not installed.
    """
    try:
        import flwr  # noqa: F401
    except ImportError:
        raise UsageError("federated runs need Flower; install it with `uv sync --extra federation`, or `pip install '.[federation]'` in a clone") from None


def quiet_flower() -> None:
    """Keeps Flower from writing to the terminal and from sending telemetry, in selgrad's own runs.

    Raises:
      UsageError: if it is not installed.
    """
    # Flower reads these when it is imported.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    require_flower()
    logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)
    # Ray's processes are started by fork and exec; nothing of JAX runs in between.
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)


def _record(message: Message) -> Any:
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({RECORD: ConfigRecord(dict(message))})


class FlowerTransport:
    """Carries messages over a Flower grid; each participant is identified by the number that it is started with.

    Args:
      grid: of the running ServerApp.
      count: participants to wait for.
      patience: seconds to wait for them to connect.
      stopped: returns whether to stop waiting.
    """

    def __init__(self, grid: Any, count: int, patience: float, stopped: Callable[[], bool] = lambda: False) -> None:
        self._grid, self._count, self._stopped = grid, count, stopped
        self._nodes: dict[int, int] = {}
        self._pending: dict[str, tuple[int, int]] = {}
        self._find(patience)

    def _find(self, patience: float) -> None:
        """Asks every connected node for its number, until all participants are found or time is up."""
        from flwr.app import Message as FlowerMessage

        end, known_nodes = time.monotonic() + patience, set[int]()
        while len(self._nodes) < self._count and time.monotonic() < end and not self._stopped():
            fresh = [node for node in self._grid.get_node_ids() if node not in known_nodes]
            if not fresh:
                time.sleep(0.2)
                continue
            queries = [FlowerMessage(_record({"kind": "who"}), message_type="query", dst_node_id=node) for node in fresh]
            # A node that does not answer must not keep the others from being asked.
            for reply in self._grid.send_and_receive(queries, timeout=min(15.0, max(1.0, end - time.monotonic()))):
                if reply.has_error() or RECORD not in reply.content:
                    continue
                known_nodes.add(reply.metadata.src_node_id)
                number = reply.content[RECORD].get("partition")
                if isinstance(number, int) and 0 <= number < self._count and number not in self._nodes:
                    self._nodes[number] = reply.metadata.src_node_id

    def exchange(self, requests: Mapping[int, Message], timeout: float) -> tuple[dict[int, Message], list[Event]]:
        """Implements `Transport.exchange`."""
        from flwr.app import Message as FlowerMessage

        replies: dict[int, Message] = {}
        events = [Event(party, "missing", "is not connected") for party in requests if party not in self._nodes]
        waiting: set[str] = set()

        def push(parties: list[int]) -> None:
            outgoing = [
                FlowerMessage(_record(requests[party]), message_type="train", dst_node_id=self._nodes[party], group_id=str(requests[party]["round"]))
                for party in parties
            ]
            for party, identity in zip(parties, self._grid.push_messages(outgoing), strict=True):
                if identity:
                    self._pending[identity] = (party, requests[party]["ticket"])
                    waiting.add(identity)

        push([party for party in requests if party in self._nodes])
        end = time.monotonic() + timeout
        while waiting and time.monotonic() < end and not self._stopped():
            for reply in self._grid.pull_messages(list(self._pending)):
                identity = reply.metadata.reply_to_message_id
                party, ticket = self._pending.pop(identity)
                current = identity in waiting
                waiting.discard(identity)
                if reply.has_error():
                    if current and _never_arrived(str(reply.error.reason)) and time.monotonic() < end:
                        # Another client took its worker down, which is not back yet, so this client has not received the message.
                        time.sleep(1)
                        push([party])
                    elif current or reply.error.code != 3:
                        events.append(Event(party, "died", _reason(reply.error)))
                elif not current:
                    events.append(Event(party, "late", f"answered message {ticket} after its time"))
                elif RECORD not in reply.content:
                    events.append(Event(party, "malformed", "the answer is not one of our messages"))
                else:
                    replies[party] = dict(reply.content[RECORD].items())
            if waiting:
                time.sleep(0.02)
        if self._stopped():
            raise KeyboardInterrupt
        return replies, events


def _never_arrived(reason: str) -> bool:
    """Whether Ray found no worker for a message; a message that was lost together with its worker has a connection error instead."""
    return "ActorUnavailableError" in reason and "RpcError" not in reason


def _reason(error: Any) -> str:
    """The last line of Flower's error message, without terminal escape sequences."""
    import re

    if "Actor" in str(error.reason):
        return "its process ended"
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error.reason or "")).splitlines() if line.strip()]
    messages = [line.split("Message: ", 1)[1] for line in lines if "Message: " in line] or lines[-1:]
    return f"{messages[-1] if messages else 'no reason given'}"[:200]


def answer(message: Any, context: Any) -> Any:
    """The reply of a participant to one Flower message; its number is the node's `partition-id`, and its state is kept in its own folder."""
    from flwr.app import Message as FlowerMessage

    from selgrad import devices
    from selgrad.federation.client import FaultError, respond

    devices.configure()
    request = dict(message.content[RECORD].items())
    partition = int(context.node_config["partition-id"])
    if request["kind"] == "who":
        return FlowerMessage(_record({"partition": partition}), reply_to=message)
    try:
        # Loaded again for each message: another process may have answered the last one.
        seat = seat_of(partition, context.node_config.get("enrolment"))
        try:
            reply = respond(seat, request)
        except FaultError as fault:
            if fault.kind == "die":
                os._exit(17)
            if fault.kind == "late":
                time.sleep(seat.config.timeout + 1)
            # Flower lets an app answer only once; the detection of double answers is tested without Flower.
            reply = respond(seat, request, faults=False)
    except SelgradError as error:
        reply = {"error": str(error), "ticket": request["ticket"], "partition": partition}
    return FlowerMessage(_record(reply), reply_to=message)


ENROLMENT = "SELGRAD_ENROLMENT"
"""Environment variable with the folder of all enrolments, used where participants are processes on one machine."""


def seat_of(partition: int | None, folder: Any) -> Any:
    """Loads a participant's seat from the folder that its node was started with, or from the common folder of a simulation.

    Args:
      partition: the node's number; None accepts the number in the enrolment.
      folder: of the participant, or of all participants; None takes the one in SELGRAD_ENROLMENT.

    Raises:
      SelgradError: if there is no enrolment, or it belongs to another participant.
    """
    from pathlib import Path

    from selgrad.federation.enrolment import FILE, Enrolment, Seat

    if folder is None and ENROLMENT not in os.environ:
        raise SelgradError(f'participant {partition} is not enrolled; start its node with enrolment="FOLDER" in --node-config')
    own_folder = Path(str(os.environ[ENROLMENT] if folder is None else folder))
    if partition is not None and not (own_folder / FILE).exists() and (own_folder / str(partition)).is_dir():
        own_folder = own_folder / str(partition)
    enrolment = Enrolment.load(own_folder)
    if partition is not None and enrolment.number != partition:
        raise SelgradError(f"the enrolment in {str(own_folder)!r} is of participant {enrolment.number}, and this node is {partition}; give each its own")
    return Seat(enrolment, own_folder)


def num_participants(config: Any) -> int:
    """The number of clients, plus one for the key holder where there is one."""
    return config.clients.count + (config.encrypts and config.profile.decryption != "threshold")
