"""What commands have in common on the way in: options, and the reading of `NAME:key=value,...`.

An option is a decorator; every option that names an entry of a registry is read by `entry`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from selgrad.errors import UsageError

NAMED = "NAME or NAME:key=value,..."
"""How an entry of a registry is written."""

PATH: click.Path = click.Path(path_type=Path)
"""The type of files and folders, there or not."""


def named_option(kind: str, default: str, about: str = "") -> Callable[[Any], Any]:
    """An option that names one entry of a registry."""
    return click.option(f"--{kind}", default=default, show_default=True, help=f"{NAMED}{about}")


model_option = named_option("model", "lenet")
update_option = named_option("update", "gradient")
protection_option = named_option("protection", "none", ": noise, rounding or pruning besides encryption.")
seed_option = click.option("--seed", default=0, show_default=True, help="Of weights, metric and attack.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output instead of text.")
wandb_option = click.option(
    "--wandb", type=click.Choice(["disabled", "offline", "online"]), default="disabled", show_default=True, help="Mirror the run in Weights & Biases."
)


def entry(kind: str, text: str) -> dict[str, Any]:
    """`name` or `name:key=value,key=value` as a mapping; values are read as YAML, and a comma inside brackets belongs to a value.

    A name may be a place, `file.py:attribute` or `package.module:attribute`, with arguments after another colon.

    Args:
      kind: name of the option, for messages.
      text: its value.

    Raises:
      UsageError: for a part that is no key=value, or a value that is no YAML.
    """
    from selgrad.config import read_yaml

    arguments = re.match(r"(.*?):(\w+\s*=.*)$", text, re.DOTALL)
    name, rest = (text, "") if arguments is None else arguments.groups()
    if arguments is None and ":" in text and not re.search(r"[./]", text.partition(":")[0]):
        # No place: arguments without a value.
        name, _, rest = text.partition(":")
    result: dict[str, Any] = {"name": name}
    for part in filter(None, re.split(r",(?![^\[]*\])", rest)):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--{kind} {text!r}: {part!r} is no key=value; write {name}:key=value,key=value")
        result[key.strip()] = read_yaml(value, f"--{kind} {text!r}: {key.strip()}")
    return result
