"""The command line: one file a command, `options` and `render` for what they share, `main` for the group and the exit codes.

Modules here import click and the standard library only, so `--help` answers at once; each command imports what it runs.
"""

from selgrad.cli.main import cli, main

__all__ = ["cli", "main"]
