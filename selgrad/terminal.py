"""Consoles that print text verbatim: users' paths, labels and messages may contain brackets, which Rich would interpret as markup and drop.

The consoles and the progress of all commands come from here: a bar or a spinner on a terminal, and elsewhere a line every half minute, also while nothing is
reported, as during a long compilation.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_SECONDS = 30.0
"""Seconds between two lines about the progress, where there is no terminal."""


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


def duration(seconds: float) -> str:
    """Formats a duration, such as `4 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _lines(screen: Console, line: Callable[[str], str]) -> Iterator[None]:
    """Prints a line every so often where there is no terminal; `line` is given the time since the start."""
    if screen.is_terminal or screen.quiet:
        yield
        return
    started, over = time.perf_counter(), threading.Event()

    def speak() -> None:
        while not over.wait(_SECONDS):
            screen.print(line(duration(time.perf_counter() - started)), markup=False, soft_wrap=True)

    speaking = threading.Thread(target=speak, daemon=True)
    speaking.start()
    try:
        yield
    finally:
        over.set()
        speaking.join()


@contextlib.contextmanager
def progress(screen: Console, description: str, total: float | None, *, unit: str = "") -> Iterator[Callable[..., None]]:
    """Shows how far something is.

    Args:
      screen: where to print.
      description: of what is done first.
      total: of all that is to be done, or None where nobody knows.
      unit: of the total; without one, lines give percentages.

    Yields:
      A function that takes `completed` or `advance`, `total` and `description`.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()
    with Progress(*columns, console=screen, transient=True, disable=screen.quiet or not screen.is_terminal) as bar:
        bar.add_task(description, total=total)
        (task,) = bar.tasks

        def line(spent: str) -> str:
            done = "" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f} {unit} " if unit else f"{task.percentage:.0f} % "
            return f"{done}after {spent}: {task.description}"

        with _lines(screen, line):
            yield lambda **changes: bar.update(task.id, **changes)


@contextlib.contextmanager
def status(screen: Console, description: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done while nobody knows how long it takes; the function that it yields takes the next description."""
    current = [description]

    with screen.status(Text(description)) as spinner, _lines(screen, lambda spent: f"{current[0]} ({spent})"):

        def tell(line: str) -> None:
            current[0] = line
            spinner.update(Text(line))

        yield tell
