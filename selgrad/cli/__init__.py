"""The command line: one file per command, `options` and `render` for what they share, `group` for the group and its errors.

Modules here import only click and the standard library, so `--help` answers at once; each command imports what it runs.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_SECONDS = 10.0


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which a cluster sends before it kills, so that it ends a command as Ctrl-C does."""


_received: list[int] = []
"""The signals received so far: a library may turn the exception that one raises into an error of its own."""


_PATIENCE = 30.0
"""Seconds after which a signal is sent once more: a library may have swallowed the exception that the first one raised."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    _later(_PATIENCE, number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _later(seconds: float, number: int) -> None:
    def send() -> None:
        if _received:
            os.kill(os.getpid(), number)

    timer = threading.Timer(seconds, send)
    timer.daemon = True
    timer.start()


def _again(otherwise: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Returns a hook that sends a signal again if it came within a callback of the garbage collector, where Python lets no exception out."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            otherwise(unraisable)
            return
        number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
        _later(0.05, number)

    return hook


def _unless_late(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a hook that says nothing of native threads that find an event loop closed: after a failed write Tensorstore's still come with their results."""

    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(kind, error, trace)

    return excepthook


def _end(code: int) -> NoReturn:
    """Ends the process after an interruption at once: other threads may still be in native code, which crashes while the interpreter shuts down.

    The exit handlers of libraries have some seconds to run, and none after a second Ctrl-C.
    """
    with contextlib.suppress(BaseException):
        ordering = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
        ordering.start()
        ordering.join(_SECONDS)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Runs the command line; errors are one line on standard error, 2 for usage and 1 for failure, 130 after Ctrl-C and 143 after SIGTERM."""
    with contextlib.suppress(ValueError):  # raised in a thread of another program
        _received.clear()
        signal.signal(signal.SIGTERM, _stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is ignored in the background of a shell
            signal.signal(signal.SIGINT, _stop)
        sys.unraisablehook = _again(sys.unraisablehook)
        sys.excepthook = _unless_late(sys.excepthook)
    try:
        from selgrad.cli.group import run

        code = run(_received)
    except KeyboardInterrupt:
        code = 128 + (_received[0] if _received else signal.SIGINT)
        _received.clear()
        with contextlib.suppress(KeyboardInterrupt):
            sys.stderr.write("selgrad: interrupted; what has finished is kept, run the same command to go on\n")
        _end(code)
    with contextlib.suppress(ValueError):
        # Nothing is left to clean up: a signal that comes now ends the process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


__all__ = ["Terminated", "main"]
