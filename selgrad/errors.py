"""The two kinds of errors: a request is wrong, or a valid request failed.

Every message names the value and the remedy in one line; the command line prints it without a traceback.
"""

import difflib
import math
from collections.abc import Iterable


class SelgradError(Exception):
    """A valid request failed (a truncated file, a wrong key); the command line exits with 1."""

    exit_code = 1


class UsageError(SelgradError, ValueError):
    """The request was wrong (an unknown metric, ratio 1.5); the command line exits with 2."""

    exit_code = 2


class DataError(SelgradError):
    """A data file is missing, truncated or in the wrong format."""


class GradientError(SelgradError, ValueError):
    """A gradient holds NaN or infinity, or a mask belongs to another tree."""


class EncryptionError(SelgradError):
    """The encryption layer refuses a value, a key, a ciphertext or the process that it runs in."""


class DamagedError(SelgradError):
    """One of selgrad's own files is truncated or changed."""


class BusyError(SelgradError):
    """Another process holds a folder that only one may write to."""


class OutOfMemoryError(SelgradError):
    """A device does not have enough memory for a block; a smaller block may fit."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a trace that may follow; the type of the error if there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def require_ratio(ratio: float) -> None:
    """Raises UsageError for a share of entries outside [0, 1]."""
    if not 0 <= ratio <= 1:
        raise UsageError(f"ratio={ratio:g} lies outside [0, 1]; give the share of the entries to encrypt, such as 0.1")


def require_seed(seed: int) -> None:
    """Raises UsageError for a seed outside 0 .. 2**31 - 1."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"seed={seed} lies outside 0 .. 2**31 - 1")


def require_positive(**values: float) -> None:
    """Raises UsageError for the first value that is not a positive finite number."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name}={value} must be positive")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggests the nearest known name, if one is close, followed by the list of all known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = f"known: {', '.join(known)}" if known else "it takes none"
    return f"did you mean {near[0]!r}? {listing}" if near else listing
