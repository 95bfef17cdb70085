"""Consoles that print text verbatim: users' paths, labels and messages may contain brackets, which Rich would interpret as markup and drop.

The consoles and progress columns of all commands come from here.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import TextColumn


def console(**options: Any) -> Console:
    """Makes a console that prints text verbatim; styles are given as `Text` or with `style`.

    Args:
      options: of `rich.console.Console`.
    """
    return Console(markup=False, **options)


_TAKE_BACK = signal.SIGRTMIN + 5


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Restores signal handlers several times a second, and at the end, since code that runs inside may change them, as Ray does.

    Ray's driver turns SIGTERM into SystemExit, which is handled here as the signal would have been; Ray's native code, once started, aborts the process.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    before, over = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}, threading.Event()

    def take_back(*_: object) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask() -> None:
        # Only the main thread may set signal handlers, so it is sent a signal.
        while not over.wait(0.05):
            signal.pthread_kill(main.ident or 0, _TAKE_BACK)

    other, asking = signal.signal(_TAKE_BACK, take_back), threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
    except SystemExit as stop:
        ours = before[signal.SIGTERM]
        if stop.code == signal.SIGTERM and callable(ours):
            ours(signal.SIGTERM, None)
        raise
    finally:
        over.set()
        asking.join()
        take_back()
        signal.signal(_TAKE_BACK, other)


def wide(least: int) -> Console:
    """A console for standard output with at least `least` columns, for tables that wrap badly."""
    return console(width=max(least, Console().width))


def description() -> TextColumn:
    """The column of a progress bar that shows the current task."""
    return TextColumn("{task.description}", markup=False)
