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


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Whatever runs inside may change what signals do, as Ray's start does; afterwards they do what they did.

    Ray's driver makes SystemExit of SIGTERM, which ends here as the signal would have before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as stop:
        ours = before.get(signal.SIGTERM)
        if stop.code == signal.SIGTERM and callable(ours):
            ours(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wide(least: int) -> Console:
    """A console of standard output with at least so many columns, for tables that fold badly."""
    return console(width=max(least, Console().width))


def description() -> TextColumn:
    """The column of a progress bar that says what runs."""
    return TextColumn("{task.description}", markup=False)
