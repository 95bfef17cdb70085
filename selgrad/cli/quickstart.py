"""`selgrad quickstart`: a small sweep that needs no network and no file.

The configurations are in `selgrad.quickstart`.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, Command, json_option, wandb_option
from selgrad.cli.render import print_summary


@click.command(cls=Command)
@click.option("--text", is_flag=True, help="Sentences and a BERT in place of images and a LeNet.")
@click.option("--out", type=PATH, help="Folder for records, figures and report; quickstart-run, or quickstart-text-run, by default.")
@wandb_option
@json_option
def quickstart(text: bool, out: Path | None, wandb: str, as_json: bool) -> None:
    """Real images, a real gradient, real CKKS, a real attack: the whole of selgrad in a few minutes.

    Runs offline on scikit-learn's handwritten digits and crops of scikit-image's photographs, or on bundled sentences, and ends with a table,
    figures and an HTML page. Run it twice and the second run only reads what the first one left.
    """
    from selgrad import run_sweep
    from selgrad.quickstart import QUICKSTART, QUICKSTART_TEXT

    folder = out or Path("quickstart-text-run" if text else "quickstart-run")
    records = run_sweep(QUICKSTART_TEXT if text else QUICKSTART, folder, wandb=wandb)
    if as_json:
        print_summary(records, folder)
