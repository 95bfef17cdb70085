"""Flower's simulation engine for a run on one machine: participants are actors in a few worker processes, and the terminal stays under our control.

Tested with flwr 1.30, whose engine is Ray. It changes the environment and writes to the terminal; the caller is shielded from both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from selgrad import devices
from selgrad.errors import SelgradError, first_line
from selgrad.federation.flower import ENROLMENT, FlowerTransport, num_participants, quiet_flower
from selgrad.federation.messages import STARTUP_SECONDS
from selgrad.terminal import console, signals_kept


def simulate(config: Any, enrolled: Path, serve: Callable[[FlowerTransport], Any]) -> Any:
    """Runs a server over Flower's simulation engine: participants are actors in a few worker processes on this machine.

    Args:
      config: of the run.
      enrolled: folder of the participants' enrolments.
      serve: called in the server's thread with the transport.

    Returns:
      What `serve` returns; its exceptions are raised again here.
    """
    quiet_flower()
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from selgrad.federation.apps import client_app

    count, outcome = num_participants(config), dict[str, Any]()
    stop, idle = threading.Event(), threading.Event()
    idle.set()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        idle.clear()
        try:
            outcome["result"] = serve(FlowerTransport(grid, count, max(STARTUP_SECONDS, config.timeout), stop.is_set))
        except BaseException as error:
            outcome["error"] = error
        finally:
            idle.set()

    workers = max(1, min(count, devices.num_cores()))
    with _scratch("ray") as scratch, _environment(enrolled), _quiet():
        init = {
            "num_cpus": workers, "num_gpus": 0, "include_dashboard": False, "logging_level": "CRITICAL", "log_to_driver": False,
            "object_store_memory": 200 << 20, "_node_ip_address": "127.0.0.1", "_temp_dir": scratch,
        }  # fmt: skip
        backend: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": -1}, "init_args": init}
        try:
            with signals_kept():
                run_simulation(server_app=server_app, client_app=client_app, num_supernodes=count, backend_config=backend)
        except (KeyboardInterrupt, SystemExit):
            # The server's thread must be out of OpenFHE and JAX before the process ends.
            stop.set()
            idle.wait(60)
            raise
        except RuntimeError as error:
            outcome.setdefault("error", SelgradError(f"Flower's simulation failed ({first_line(error)})"))
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise SelgradError("Flower's simulation ended before the server did; run the same command again")
    return outcome["result"]


@contextlib.contextmanager
def _scratch(purpose: str) -> Iterator[str]:
    """A temporary folder whose name identifies its process; folders left by processes that were killed are removed first.

    The name is short, since Ray keeps sockets in the folder.
    """
    # Process numbers are unique only within one machine and one container.
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    host = hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
    for leftover in Path(tempfile.gettempdir()).glob(f"sg-*-{host}-*-*"):
        owner = leftover.name.split("-")[3]
        with contextlib.suppress(OSError):
            if owner.isdecimal() and leftover.stat().st_uid == os.getuid() and not Path(f"/proc/{owner}").exists():
                shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"sg-{purpose}-{host}-{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        yield folder


@contextlib.contextmanager
def _environment(enrolled: Path) -> Iterator[None]:
    """Restores the environment, which the engine changes, and redirects what it writes under the home folder."""
    before = dict(os.environ)
    with _scratch("home") as home:
        os.environ["FLWR_HOME"] = home
        os.environ[ENROLMENT] = str(enrolled.absolute())
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences standard output and error, since Ray writes there when one of its processes ends; consoles that `terminal` made before still work."""
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
def lasting_console(quiet: bool) -> Iterator[Console]:
    """A console on a copy of the current standard error, which keeps working when standard error is redirected later."""
    with os.fdopen(os.dup(2), "w", buffering=1) as stream:
        yield console(file=stream, quiet=quiet)
