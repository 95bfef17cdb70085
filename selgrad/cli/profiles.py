"""`selgrad profiles`: the parameters of the encryption side by side.

The numbers are computed by `selgrad.encryption.profiles`.
"""

from __future__ import annotations

import json

import click

from selgrad.cli.options import Command, json_option


@click.command(cls=Command)
@json_option
def profiles(as_json: bool) -> None:
    """Show the parameters of the encryption: security, room for clients, bytes, and the error that each leaves.

    A value is clipped to the bound and rounded to a grid; sums of grid points are exact. The margin is half a grid step over the noise's standard deviation
    with the largest number of clients.
    """
    from rich.table import Table

    from selgrad.encryption.profiles import PROFILES, table
    from selgrad.terminal import wide

    rows = table()
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = ("profile", "security", "N", "log q", "scale", "packing", "key", "decrypted by", "clients", "bytes a value", "largest error", "margin")
    shown = Table(*columns, title="Profiles of the encryption (bound 1)", title_justify="left")
    by = {"exact": "key holder", "threshold": "all parties", "noise_flooding": "key holder, flooded"}
    for row in rows:
        values = {**row, "decryption": by[row["decryption"]], "largest_error": f"{row['largest_error']:.1e}", "clients": f"{row['clients']:,}"}
        shown.add_row(*(str(value) for value in values.values()))
    wide(160).print(shown)
    for name, profile in PROFILES.items():
        click.echo(f"{click.style(name, bold=True)}: {profile.about}")
