"""What is printed is what it says: paths, labels and messages of users may hold brackets, which Rich would take for markup and swallow.

The consoles and columns of all commands come from here.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import TextColumn


def console(**options: Any) -> Console:
    """A console that prints text verbatim; styles are given as `Text` or by `style`.

    Args:
      options: of `rich.console.Console`.
    """
    return Console(markup=False, **options)


def wide(least: int) -> Console:
    """A console of standard output with at least so many columns, for tables that fold badly."""
    return console(width=max(least, Console().width))


def description() -> TextColumn:
    """The column of a progress bar that says what runs."""
    return TextColumn("{task.description}", markup=False)
