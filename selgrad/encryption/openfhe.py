"""Loading OpenFHE: once per process, never in one that was forked after loading it, and with a one-line reason if it does not load.

This is the only module that imports openfhe, whose wheels exist for few platforms; all other code gets the module from `load`.
"""

from __future__ import annotations

import functools
import os
import platform
from typing import Any

from selgrad.errors import EncryptionError, first_line

_state = {"forked": False}


def _mark_fork() -> None:
    _state["forked"] = True


def require_unforked() -> None:
    """Raises EncryptionError in a process forked from one that had loaded OpenFHE: the two share the state of a random generator.

    Two such processes draw the same randomness, so the difference of their ciphertexts decrypts under any key.
    """
    if _state["forked"]:
        raise EncryptionError("this process was forked after OpenFHE was loaded and would repeat its parent's randomness; start it with spawn")


@functools.cache
def load() -> Any:
    """Imports the openfhe module.

    Raises:
      EncryptionError: if it does not load here.
    """
    try:
        import openfhe
    except ImportError as error:
        raise EncryptionError(unavailable_because(error)) from None
    os.register_at_fork(after_in_child=_mark_fork)
    return openfhe


def unavailable_because(error: ImportError) -> str:
    """One line on why OpenFHE does not load here, with the remedy."""
    return (
        f"OpenFHE does not load on Python {platform.python_version()} ({first_line(error)}); its wheels hold CPython 3.10 (glibc >= 2.35) and 3.12 "
        "(glibc >= 2.38) extensions for x86-64 Linux: run with `uv run --python 3.10`"
    )


def unavailable() -> str | None:
    """None if encryption works here, otherwise one line that says why it does not."""
    try:
        load()
    except EncryptionError as error:
        return str(error)
    return None
