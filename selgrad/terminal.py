"""What is printed is what it says: paths, labels and messages of users may hold brackets, which Rich would take for markup and swallow.

The consoles and columns of all commands come from here.
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
    """A console that prints text verbatim; styles are given as `Text` or by `style`.

    Args:
      options: of `rich.console.Console`.
    """
    return Console(markup=False, **options)


_TAKE_BACK = signal.SIGRTMIN + 5


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Whatever runs inside may change what signals do, as Ray does; they are taken back several times a second, and at the end.

    Ray's driver makes SystemExit of SIGTERM, which ends here as the signal would have before, and its native code, once it has started, aborts the process.
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
        # Only the main thread may set what a signal does, so it is sent one.
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
    """A console of standard output with at least so many columns, for tables that fold badly."""
    return console(width=max(least, Console().width))


def description() -> TextColumn:
    """The column of a progress bar that says what runs."""
    return TextColumn("{task.description}", markup=False)
