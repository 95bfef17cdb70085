"""`selgrad report`: figures and one HTML page from the records of a sweep.

`selgrad.report` does the work, from files alone.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, Command, json_option
from selgrad.cli.render import print_summary


@click.command(cls=Command)
@click.argument("folder", type=PATH, metavar="DIR")
@json_option
def report(folder: Path, as_json: bool) -> None:
    """Draw figures and write one self-contained HTML page from the records in DIR.

    Works on any machine that has DIR, also while the sweep still runs.
    """
    from selgrad import make_report, read_records

    page = make_report(folder)
    if as_json:
        print_summary(read_records(folder), folder)
    else:
        click.echo(f"report:  {page}\nfigures: {folder / 'figures'}")
