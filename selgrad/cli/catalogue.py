"""`selgrad list`: every registry with its names, arguments, defaults and sources.

A summary is the first paragraph of a factory's docstring, a source the last one of its module's.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Callable
from typing import Any

import click

from selgrad.cli.options import Command, json_option
from selgrad.errors import UsageError

_REGISTRIES = ("dataset", "model", "update", "protection", "metric", "selector", "attack", "engine")


def _registry(kind: str) -> dict[str, Any]:
    from selgrad.registry import WEIGHTS_ABOUT, describe, lookup, names, parameters

    entries: dict[str, Any] = {}
    for name in names(kind):
        try:
            factory, arguments_of = lookup(kind, name), parameters(kind, name)
        except UsageError as error:
            # An installed package is broken, and the rest is still worth listing.
            entries[name] = {"summary": str(error), "source": "", "arguments": {}}
            continue
        module = inspect.getdoc(inspect.getmodule(factory)) or ""
        arguments, abouts = {}, (WEIGHTS_ABOUT if kind == "model" else {}) | _abouts(inspect.getdoc(factory) or "")
        for key, parameter in arguments_of.items():
            required = parameter.default is inspect.Parameter.empty
            arguments[key] = {
                "type": describe(parameter.annotation), "required": required, "default": None if required else parameter.default, "about": abouts.get(key, "")
            }  # fmt: skip
        summary = (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
        source = module.split("\n\n")[-1].replace("\n", " ") if "\n\n" in module else ""
        entries[name] = {"summary": summary, "source": source, "arguments": arguments}
    return entries


def _abouts(docstring: str) -> dict[str, str]:
    r"""Returns what a docstring says about each argument.

    >>> _abouts("Does it.\n\nArgs:\n  a: one\n    line.\n  b, c: two.\n\nRaises:\n  d: no.")
    {'a': 'one line.', 'b': 'two.', 'c': 'two.'}
    """
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    lines = textwrap.dedent(section[1])
    matches = re.findall(r"^(\w[\w, ]*): (.*?)(?=^\w|\Z)", lines, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for names, text in matches for name in names.split(", ")}


def _measures() -> dict[str, Any]:
    from selgrad import measures

    return {name: {"summary": measure.about, "source": "", "arguments": {}} for name, measure in measures.every().items()}


def _profiles() -> dict[str, Any]:
    from selgrad.encryption.profiles import PROFILES

    return {
        name: {
            "summary": f"CKKS with N = {p.ring}, a modulus of {p.log_modulus} bits and {p.security}: {p.values_per_ciphertext:,} values per ciphertext on a "
            f"grid of 2^-{p.grid_bits}, entries up to {p.bound:g}, at most {p.max_clients} clients.",
            "source": "",
            "arguments": {},
        }
        for name, p in PROFILES.items()
    }


_APART: dict[str, Callable[[], dict[str, Any]]] = {"measure": _measures, "profile": _profiles}
_KINDS = (*_REGISTRIES, *_APART)


def _show(text: str, indent: int) -> None:
    width = max(40, min(shutil.get_terminal_size((80, 24)).columns, 100))
    click.echo(textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2), break_long_words=False, break_on_hyphens=False))


def _entry(name: str, entry: dict[str, Any], whole: bool) -> None:
    _show(f"{name}: {entry['summary']}", 2)
    if entry["source"]:
        _show(entry["source"], 6)
    for key, argument in entry["arguments"].items():
        default = "required" if argument["required"] else f"default {json.dumps(argument['default'])}"
        about = f": {argument['about']}" if whole and argument["about"] else ""
        _show(f"{key}: {argument['type']} ({default}){about}", 6)


@click.command(name="list", cls=Command)
@click.argument("name", required=False)
@json_option
def catalogue(name: str | None, as_json: bool) -> None:
    """Show what there is: names, arguments, defaults and sources.

    NAME narrows it: a kind (dataset, model, update, protection, metric, selector, attack, engine, measure, profile), or one entry such as idlg, whose
    arguments are explained then.
    """
    kinds = [name] if name in _KINDS else list(_KINDS)
    document = {kind: _APART[kind]() if kind in _APART else _registry(kind) for kind in kinds}
    is_entry = name is not None and name not in _KINDS
    if is_entry:
        every = [entry for entries in document.values() for entry in entries]
        document = {kind: {name: entries[name]} for kind, entries in document.items() if name in entries}
        if not document:
            import difflib

            near = difflib.get_close_matches(str(name), [*_KINDS, *every], 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(f"nothing is named {name!r}{hint}; give a kind ({', '.join(_KINDS)}) or a name that `selgrad list` shows")
    if as_json:
        click.echo(json.dumps(document))
        return
    for kind, entries in document.items():
        click.secho(f"\n{kind}", bold=True)
        for entry_name, entry in entries.items():
            _entry(entry_name, entry, is_entry)
    if not is_entry and any(entry["arguments"] for entries in document.values() for entry in entries.values()):
        _show("`selgrad list NAME` explains the arguments of one of them.", 0)
