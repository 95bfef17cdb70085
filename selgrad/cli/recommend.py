"""`selgrad recommend`: the cheapest metric and ratio that protect a model of one's own.

`selgrad.suites.recommend` does the work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from selgrad.cli.options import PATH, Command, json_option
from selgrad.cli.render import finite, print_recommendation, progress
from selgrad.cli.suite import BUDGETS, budget_option, read_setting, with_setting


@click.command(cls=Command)
@with_setting
@click.option("--level", default="recognisable", show_default=True, help="What no attack may reach: exact, recognisable or attribute.")
@click.option("--rate", default=0.05, show_default=True, help="Largest tolerated share of inputs on which an attack reaches it, of those that guessing misses.")
@click.option("--confidence", default=0.95, show_default=True, help="Confidence of the interval of ratios.")
@budget_option
@click.option(
    "--check",
    type=click.Choice(("same", *BUDGETS)),
    is_flag=False,
    flag_value="same",
    help="Try the answer on other inputs and other weights, by the same budget or by the one that is named: `--budget quick --check standard`.",
)
@click.option("--out", type=PATH, default=Path("recommend-run"), show_default=True, help="Folder of the records; the same command goes on where it stopped.")
@json_option
def recommend(level: str, rate: float, confidence: float, budget: Any, check: Any, out: Path, as_json: bool, **options: Any) -> None:
    r"""Look for the cheapest metric and ratio at which no attack of a suite gets more than a level allows.

    \b
    selgrad recommend --dataset digits:count=140 --model mlp:width=32 --metric magnitude --metric random --budget quick
    selgrad recommend --config mine.yaml --level exact --budget quick --check standard

    The search is adaptive: bisection over ratios by a few inputs, then a sequential test on others. Each input is an image, a sentence
    or a batch, with one of the weight draws; a claim of "under 5 %" needs about 120 of them. Costs are measured with real CKKS.
    """
    from selgrad import devices

    devices.configure()
    from selgrad.suites.decide import Question
    from selgrad.suites.recommend import recommend as search

    question = Question(level=level, rate=rate, confidence=confidence)
    setting = read_setting(**options)
    with progress(None) as show:
        result = search(
            setting, out, question=question, budget=budget, check={None: False, "same": True}.get(check, check), on_event=lambda line: show(description=line)
        )
    if as_json:
        click.echo(json.dumps(finite(result.document())))
        return
    print_recommendation(result, out)
