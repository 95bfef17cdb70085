"""The group of all commands, which turns an error into one line and an exit code.

Exit codes are 2 for wrong usage and 1 for a failure; `selgrad.cli` handles signals.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from selgrad import __version__
from selgrad.cli.agent import agent
from selgrad.cli.attack import attack
from selgrad.cli.audit import audit
from selgrad.cli.catalogue import catalogue
from selgrad.cli.federate import federate
from selgrad.cli.key_holder import key_holder
from selgrad.cli.profiles import profiles
from selgrad.cli.quickstart import quickstart
from selgrad.cli.recommend import recommend
from selgrad.cli.report import report
from selgrad.cli.suite import suite
from selgrad.cli.supernode import supernode
from selgrad.cli.sweep import sweep
from selgrad.cli.train import train
from selgrad.cli.train_lm import train_lm
from selgrad.errors import SelgradError

_EXAMPLES = """
\b
Start here:
  selgrad quickstart              digits and photographs, a few minutes
  selgrad list                    data, models, metrics, attacks
  selgrad attack --ratio 0.1      one cell: what the attacker sees and finds
  selgrad sweep CONFIG --out DIR  a grid; the same command goes on later
  selgrad suite                   the attacks that verdicts rest on
  selgrad recommend --config FILE what to encrypt, with a confidence
  selgrad report DIR              figures and one HTML page from the records
  selgrad train --out DIR         weights to attack instead of fresh ones
  selgrad audit                   what the list of encrypted entries tells
"""


_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(epilog=_EXAMPLES, context_settings={**_HELP, "max_content_width": 110})
@click.version_option(__version__, prog_name="selgrad")
def cli() -> None:
    """Which gradient entries should a federated-learning client encrypt?

    selgrad scores every entry of a client's gradient, encrypts the top share with CKKS, attacks what is left exposed, and measures what was
    reconstructed and what the encryption cost.
    """


_SUMMARIES = {
    "agent": "One point of a W&B sweep.",
    "attack": "One attack on one gradient.",
    "audit": "What a mask tells, before any attack.",
    "federate": "Federated averaging, encrypted in part.",
    "key-holder": "The key holder of your own Flower app.",
    "list": "Names, arguments, defaults and sources.",
    "profiles": "Parameters of the encryption.",
    "quickstart": "A first look: real images, real CKKS.",
    "recommend": "The cheapest metric and ratio that protect.",
    "report": "Figures and a page from records.",
    "suite": "The frozen suite of attacks.",
    "supernode": "A Flower node that runs one app alone.",
    "sweep": "The grid that a YAML file describes.",
    "train": "Trained weights of an image model.",
    "train-lm": "The language model of LAMP's attacker.",
}
"""What the list of commands says of each: short enough for 80 columns."""

for _command in (quickstart, sweep, suite, recommend, report, attack, audit, train, train_lm, catalogue, federate, key_holder, supernode, agent, profiles):
    # Click keeps the lines of a paragraph that a backspace opens; raw docstrings write it as two characters.
    _command.help = (_command.help or "").replace("\\b\n", "\b\n")
    # Click keeps the help option of a command's first call, which need not be one of the group's.
    _command.context_settings = {**_HELP, **_command.context_settings}
    _command.short_help = _SUMMARIES[_command.name or ""]
    cli.add_command(_command)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, UserWarning) and "selgrad" in filename:
        click.echo(f"selgrad: warning: {message}", err=True)
    else:
        click.echo(f"{filename}:{lineno}: {category.__name__}: {message}", err=True)


def _log_of(error: BaseException) -> str:
    """Writes the traceback of an unforeseen error to a log file and returns its path."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="selgrad-error-", suffix=".log", delete=False) as log:
            log.write(f"selgrad {__version__}: {sys.argv}\n")
            traceback.print_exception(type(error), error, error.__traceback__, file=log)
        return log.name
    except OSError as full:
        return f"nowhere, since it could not be written ({full.strerror})"


def run(received: Sequence[int] = ()) -> int:
    """Runs the command line; errors are one line on standard error.

    Args:
      received: the signals received so far; any error that a command ends with after one counts as an interruption.

    Returns:
      The exit code: 2 for usage and 1 for failure.

    Raises:
      KeyboardInterrupt: if it was interrupted.
    """
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        try:
            code = cli.main(standalone_mode=False)
        except Exception as error:
            if received:
                raise KeyboardInterrupt from error
            raise
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SelgradError as error:
        click.echo(f"selgrad: error: {error}", err=True)
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except OSError as error:
        click.echo(f"selgrad: error: {error.filename or 'input/output'}: {error.strerror or error}; check the path, its permissions and the disk", err=True)
        return 1
    except MemoryError:
        click.echo("selgrad: error: this process got no more memory; take a smaller model, batch or block_size, or another machine", err=True)
        return 1
    except Exception as error:  # the last resort: a bug is one line too, and its traceback can be sent to the maintainers
        message = " ".join(str(error).split())[:200]
        log = _log_of(error)
        click.echo(f"selgrad: error: {type(error).__name__} that was not expected ({message}); its traceback lies in {log}, please report it", err=True)
        return 1
    return code if isinstance(code, int) else 0
