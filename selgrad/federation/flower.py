"""Our messages in Flower's records, and Flower's processes for our participants: a transport, and the simulation on one machine.

Tried with flwr 1.30. A late reply is pulled with the next messages, so it is seen and counted, and never taken for an answer to something else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console

from selgrad.errors import SelgradError, UsageError
from selgrad.federation.client import Message
from selgrad.federation.server import Event

RECORD = "selgrad"


def require_flower() -> None:
    """Makes Flower quiet and keeps it from telephoning home.

    Raises:
      UsageError: if it is not installed.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import flwr  # noqa: F401
    except ImportError:
        raise UsageError("federated runs need Flower; install it with `uv sync --extra federation`, or pip install 'selgrad[federation]'") from None
    logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)
    # Ray's processes are started by fork and exec; nothing of JAX runs in between.
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)


def _record(message: Message) -> Any:
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({RECORD: ConfigRecord(dict(message))})


class FlowerTransport:
    """Carries messages over a Flower grid; participants are found by the number that each is started with.

    Args:
      grid: of the running ServerApp.
      count: participants to wait for.
      patience: seconds to wait for them to connect.
      stopped: whether to give up waiting.
    """

    def __init__(self, grid: Any, count: int, patience: float, stopped: Callable[[], bool] = lambda: False) -> None:
        self._grid, self._count, self._stopped = grid, count, stopped
        self._nodes: dict[int, int] = {}
        self._asked: dict[str, tuple[int, int]] = {}
        self._find(patience)

    def _find(self, patience: float) -> None:
        """Asks every node that is connected for its number, until there are enough or time is up."""
        from flwr.app import Message as FlowerMessage

        end, known = time.monotonic() + patience, set[int]()
        while len(self._nodes) < self._count and time.monotonic() < end and not self._stopped():
            fresh = [node for node in self._grid.get_node_ids() if node not in known]
            if not fresh:
                time.sleep(0.2)
                continue
            asked = [FlowerMessage(_record({"kind": "who"}), message_type="query", dst_node_id=node) for node in fresh]
            # One that does not answer must not keep others from being asked.
            for reply in self._grid.send_and_receive(asked, timeout=min(15.0, max(1.0, end - time.monotonic()))):
                if reply.has_error() or RECORD not in reply.content:
                    continue
                known.add(reply.metadata.src_node_id)
                number = reply.content[RECORD].get("partition")
                if isinstance(number, int) and 0 <= number < self._count and number not in self._nodes:
                    self._nodes[number] = reply.metadata.src_node_id

    def exchange(self, requests: Mapping[int, Message], timeout: float) -> tuple[dict[int, Message], list[Event]]:
        """As `Transport` says."""
        from flwr.app import Message as FlowerMessage

        replies: dict[int, Message] = {}
        events = [Event(party, "missing", "is not connected") for party in requests if party not in self._nodes]
        waiting: set[str] = set()

        def push(parties: list[int]) -> None:
            asked = [
                FlowerMessage(_record(requests[party]), message_type="train", dst_node_id=self._nodes[party], group_id=str(requests[party]["round"]))
                for party in parties
            ]
            for party, identity in zip(parties, self._grid.push_messages(asked), strict=True):
                if identity:
                    self._asked[identity] = (party, requests[party]["ticket"])
                    waiting.add(identity)

        push([party for party in requests if party in self._nodes])
        end = time.monotonic() + timeout
        while waiting and time.monotonic() < end and not self._stopped():
            for reply in self._grid.pull_messages(list(self._asked)):
                identity = reply.metadata.reply_to_message_id
                party, ticket = self._asked.pop(identity)
                current = identity in waiting
                waiting.discard(identity)
                if reply.has_error():
                    if current and _never_arrived(str(reply.error.reason)) and time.monotonic() < end:
                        # The worker that another client took with it is not back yet, and this client has not seen the message.
                        time.sleep(1)
                        push([party])
                    elif current or reply.error.code != 3:
                        events.append(Event(party, "died", _reason(reply.error)))
                elif not current:
                    events.append(Event(party, "late", f"answered message {ticket} after its time"))
                elif RECORD not in reply.content:
                    events.append(Event(party, "malformed", "the answer is none of ours"))
                else:
                    replies[party] = dict(reply.content[RECORD].items())
            if waiting:
                time.sleep(0.02)
        if self._stopped():
            raise KeyboardInterrupt
        return replies, events


def _never_arrived(reason: str) -> bool:
    """Whether Ray found no worker for a message; one that was lost on the way with its worker has an error of the connection."""
    return "ActorUnavailableError" in reason and "RpcError" not in reason


def _reason(error: Any) -> str:
    """The last line of what Flower says, without the escapes of a terminal."""
    import re

    if "Actor" in str(error.reason):
        return "its process ended"
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error.reason or "")).splitlines() if line.strip()]
    told = [line.split("Message: ", 1)[1] for line in lines if "Message: " in line] or lines[-1:]
    return f"{told[-1] if told else 'no reason given'}"[:200]


def answer(message: Any, context: Any) -> Any:
    """The reply of a participant to one Flower message; its number is the node's `partition-id`, its state the node's own."""
    from flwr.app import ConfigRecord
    from flwr.app import Message as FlowerMessage

    from selgrad import devices
    from selgrad.federation.client import FaultError, respond

    devices.configure()
    request = dict(message.content[RECORD].items())
    partition = int(context.node_config["partition-id"])
    if request["kind"] == "who":
        return FlowerMessage(_record({"partition": partition}), reply_to=message)
    stored = context.state.setdefault(RECORD, ConfigRecord({}))
    state = dict(stored.items())
    try:
        try:
            reply = respond(state, partition, request)
        except FaultError as fault:
            if fault.kind == "die":
                os._exit(17)
            if fault.kind == "late":
                from selgrad.federation.learning import task_of

                time.sleep(task_of(request["config"]).config.timeout + 1)
            # Flower lets an app answer once; that twice is told from once is tested without it.
            reply = respond(state, partition, request, faults=False)
    except SelgradError as error:
        reply = {"error": str(error), "ticket": request["ticket"], "partition": partition}
    for key, value in state.items():
        stored[key] = value
    return FlowerMessage(_record(reply), reply_to=message)


def num_participants(config: Any) -> int:
    """Clients, and the key holder where there is one."""
    return int(config.clients["count"]) + (config.encrypts and config.profile.decryption != "threshold")


def simulate(config: Any, serve: Callable[[FlowerTransport], Any]) -> Any:
    """Runs a server over Flower's simulation engine: participants are actors of a few worker processes on this machine.

    Args:
      config: of the run.
      serve: called in the server's thread with the transport.

    Returns:
      What `serve` returns; what it raises is raised.
    """
    require_flower()
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from selgrad.federation.apps import client_app

    count, found = num_participants(config), dict[str, Any]()
    stop, idle = threading.Event(), threading.Event()
    idle.set()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        idle.clear()
        try:
            # Starting workers and importing JAX in them takes a while, more so under load.
            found["result"] = serve(FlowerTransport(grid, count, max(120.0, config.timeout), stop.is_set))
        except BaseException as error:
            found["error"] = error
        finally:
            idle.set()

    workers = max(1, min(count, len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="sg-") as scratch, _environment(), _quiet():
        init = {
            "num_cpus": workers, "num_gpus": 0, "include_dashboard": False, "logging_level": "CRITICAL", "log_to_driver": False,
            "object_store_memory": 200 << 20, "_node_ip_address": "127.0.0.1", "_temp_dir": scratch,
        }  # fmt: skip
        backend: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": -1}, "init_args": init}
        try:
            run_simulation(server_app=server_app, client_app=client_app, num_supernodes=count, backend_config=backend)
        except KeyboardInterrupt:
            # The server's thread must be out of OpenFHE and JAX before the process ends.
            stop.set()
            idle.wait(60)
            raise
        except RuntimeError as error:
            found.setdefault("error", SelgradError(f"Flower's simulation failed ({str(error).splitlines()[0]})"))
    if "error" in found:
        raise found["error"]
    if "result" not in found:
        raise SelgradError("Flower's simulation ended before the server did; run the same command again")
    return found["result"]


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """The engine leaves the environment changed, and writes under the home folder."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="sg-home-") as home:
        os.environ["FLWR_HOME"] = home
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray writes to the terminal when one of its processes ends; both outputs are kept from it, and `terminal` makes a console that is not."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), saved, strict=True):
            os.dup2(before, number)
            os.close(before)


@contextlib.contextmanager
def terminal(quiet: bool) -> Iterator[Console]:
    """A console on standard error as it is now, whatever becomes of that."""
    with os.fdopen(os.dup(2), "w", buffering=1) as stream:
        yield Console(file=stream, quiet=quiet)
