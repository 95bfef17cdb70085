"""The input side that commands share: options, and the parsing of `NAME:key=value,...`.

An option is a decorator; `entry` parses every option that names an entry of a registry.
"""

from __future__ import annotations

import contextlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from selgrad.errors import UsageError

NAMED = "NAME or NAME:key=value,..."
"""How an entry of a registry is written."""

PATH: click.Path = click.Path(path_type=Path)
"""The type of files and folders, whether they exist or not."""


class Entry(click.ParamType):
    """The type of options that name an entry of a registry: text, of which a shell completes the names."""

    name = "text"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Returns the names that begin with what has been written."""
        from selgrad.registry import names

        return [CompletionItem(name) for name in names(self.kind) if name.startswith(incomplete)]


class Command(click.Command):
    """A command that refuses an option given twice, of which Click would silently take the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments.

        Raises:
          UsageError: if an option that takes one value is given twice.
        """
        given = [parameter for parameter in self.make_parser(ctx).parse_args(args=list(args))[2] if isinstance(parameter, click.Option)]
        for option in given:
            if given.count(option) > 1 and not (option.multiple or option.is_flag or option.count):
                raise UsageError(f"{option.opts[0]} is given {given.count(option)} times and takes one value; give it once")
        return super().parse_args(ctx, args)


def named_option(kind: str, default: str, about: str = "") -> Callable[[Any], Any]:
    """Returns an option that names one entry of a registry."""
    return click.option(f"--{kind}", type=Entry(kind), default=default, show_default=True, help=f"{NAMED}{about}")


model_option = named_option("model", "lenet")
update_option = named_option("update", "gradient")
protection_option = named_option("protection", "none", ": noise, rounding or pruning besides encryption.")
SEED = click.IntRange(0, 2**31 - 1)
"""The type of seeds."""
seed_option = click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed of weights, metric and attack.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output instead of text.")
wandb_option = click.option(
    "--wandb", type=click.Choice(["disabled", "offline", "online"]), default="disabled", show_default=True, help="Mirror the run in Weights & Biases."
)


def _parts(text: str) -> Iterator[str]:
    """Splits at commas that stand neither in quotes nor in brackets.

    Raises:
      UsageError: if a quote or a bracket is not closed.
    """
    closing: list[str] = []
    start = position = 0
    while position < len(text):
        sign, two = text[position], text[position : position + 2]
        if closing and closing[-1] in "\"'":
            if (two == "''" and closing[-1] == "'") or (sign == "\\" and closing[-1] == '"'):
                # An escaped quote within quotes, as in YAML.
                position += 1
            elif sign == closing[-1]:
                closing.pop()
        elif sign in "\"'" and (position == 0 or text[position - 1] in "=,[{: "):
            # Elsewhere it is an apostrophe.
            closing.append(sign)
        elif sign in "[{":
            closing.append({"[": "]", "{": "}"}[sign])
        elif closing and sign == closing[-1]:
            closing.pop()
        elif sign == "," and not closing:
            yield text[start:position]
            start = position + 1
        position += 1
    if closing:
        raise UsageError(f"{text!r} is not valid YAML: {closing[-1]} is missing at the end")
    yield text[start:]


def _is_text(annotation: Any) -> bool:
    """Returns whether an argument takes only text or None."""
    inner = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    return all(part in (str, type(None)) for part in inner) and str in inner


def entry(kind: str, text: str) -> dict[str, Any]:
    """Parses `name` or `name:key=value,key=value` into a mapping.

    A value is taken as it is where the argument is text, such as a path (`null` means None, and quotes protect a comma), and parsed as YAML elsewhere; a comma
    inside quotes or brackets belongs to a value. A name may be a place, `file.py:attribute` or `package.module:attribute`, with arguments after another colon.

    Args:
      kind: name of the option, for messages.
      text: value of the option.

    Raises:
      UsageError: for a part that is not key=value, a key that stands twice, or a value that is not valid YAML.
    """
    from selgrad.config import read_yaml
    from selgrad.registry import REGISTRIES, parameters

    arguments = re.match(r"(.*?):(\w+\s*=.*)$", text, re.DOTALL)
    name, rest = (text, "") if arguments is None else arguments.groups()
    if arguments is None and ":" in text and not re.search(r"[./]", text.partition(":")[0]):
        # The name is not a place, so these are arguments without a value.
        name, _, rest = text.partition(":")
    result: dict[str, Any] = {"name": name}
    allowed: Mapping[str, Any] = {}
    if rest:
        with contextlib.suppress(UsageError):  # an unknown name is refused later, with its arguments
            allowed = parameters(kind if kind in REGISTRIES else "dataset", name)
    try:
        parts = [part for part in _parts(rest) if part]
    except UsageError as error:
        raise UsageError(f"--{kind} {error}") from None
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"--{kind} {text!r}: {part!r} is not key=value; write {name}:key=value,key=value, and a value with a comma in quotes")
        if key in result:
            raise UsageError(f"--{kind} {text!r}: {key} stands twice; give it once, or a list [a, b]")
        if not value.strip():
            raise UsageError(f"--{kind} {text!r}: {key} has no value; an unset variable of the shell? Write null for none")
        is_text = key in allowed and _is_text(allowed[key].annotation)
        plain = value.strip()
        if is_text and plain[:1] not in ("'", '"', "[") and plain != "null":
            result[key] = plain
        else:
            result[key] = read_yaml(value, f"--{kind} {text!r}: {key}")
    return result
