"""`selgrad list`: every registry with its names, arguments, defaults and sources.

A summary is the first paragraph of a factory's docstring, a source the last one of its module's.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import click

from selgrad.cli.options import json_option
from selgrad.errors import UsageError

_REGISTRIES = ("dataset", "model", "update", "protection", "metric", "selector", "attack", "engine")


def _registry(kind: str) -> dict[str, Any]:
    from selgrad.registry import describe, lookup, names, parameters

    entries: dict[str, Any] = {}
    for name in names(kind):
        try:
            factory, arguments_of = lookup(kind, name), parameters(kind, name)
        except UsageError as error:
            # Somebody's installed package is broken, and the rest is still worth a list.
            entries[name] = {"summary": str(error), "source": "", "arguments": {}}
            continue
        module = inspect.getdoc(inspect.getmodule(factory)) or ""
        arguments = {}
        for key, parameter in arguments_of.items():
            required = parameter.default is inspect.Parameter.empty
            arguments[key] = {"type": describe(parameter.annotation), "required": required, "default": None if required else parameter.default}
        summary = (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
        source = module.split("\n\n")[-1].replace("\n", " ") if "\n\n" in module else ""
        entries[name] = {"summary": summary, "source": source, "arguments": arguments}
    return entries


def _measures() -> dict[str, Any]:
    from selgrad import measures

    return {name: {"summary": measure.about, "source": "", "arguments": {}} for name, measure in measures.every().items() if measure.of is not None}


def _profiles() -> dict[str, Any]:
    from selgrad.encryption.profiles import PROFILES

    return {
        name: {
            "summary": f"CKKS with N = {p.ring}, a {p.prime_bits}-bit modulus and {p.security}: {p.values_per_ciphertext:,} values per ciphertext on a "
            f"grid of 2^-{p.grid_bits}, entries up to {p.bound:g}, at most {p.max_clients} clients.",
            "source": "",
            "arguments": {},
        }
        for name, p in PROFILES.items()
    }


_APART: dict[str, Callable[[], dict[str, Any]]] = {"measure": _measures, "profile": _profiles}
_KINDS = (*_REGISTRIES, *_APART)


@click.command(name="list")
@click.argument("kind", required=False, type=click.Choice(_KINDS))
@json_option
def catalogue(kind: str | None, as_json: bool) -> None:
    """Show every registry: names, arguments, defaults and sources. KIND narrows it to one."""
    document = {one: _APART[one]() if one in _APART else _registry(one) for one in ([kind] if kind else _KINDS)}
    if as_json:
        click.echo(json.dumps(document))
        return
    for one, entries in document.items():
        click.secho(f"\n{one}", bold=True)
        for name, entry in entries.items():
            click.echo(f"  {click.style(name, fg='cyan')}  {entry['summary']}")
            if entry["source"]:
                click.echo(f"      {entry['source']}")
            for key, argument in entry["arguments"].items():
                default = "required" if argument["required"] else f"default {json.dumps(argument['default'])}"
                click.echo(f"      {key}: {argument['type']} ({default})")
