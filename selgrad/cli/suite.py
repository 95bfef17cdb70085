"""`selgrad suite`: which attacks a verdict rests on, and the sweep by all of them.

`selgrad.suites` does the work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from selgrad.cli.options import NAMED, PATH, Command, Entry, entry, json_option, wandb_option
from selgrad.cli.render import print_flags, print_levels
from selgrad.errors import UsageError

BUDGETS = ("quick", "standard", "full")
budget_option = click.option(
    "--budget", type=click.Choice(BUDGETS), default="standard", show_default=True, help="How much each attack may spend; verdicts are given by standard."
)
setting_options = [
    click.option("--config", "config", type=PATH, help="YAML file with keys of a sweep, without attack and ratio; the options below replace its keys."),
    click.option("--dataset", type=Entry("dataset"), help=NAMED),
    click.option("--model", type=Entry("model"), help=NAMED),
    click.option("--update", type=Entry("update"), help=NAMED),
    click.option(
        "--metric",
        "metrics",
        type=Entry("metric"),
        multiple=True,
        help=f"{NAMED}; several times for several; random, magnitude, sensitivity and product by default.",
    ),
    click.option("--selector", "selectors", type=Entry("selector"), multiple=True, help=f"{NAMED}; several times for several."),
    click.option("--public", type=Entry("dataset"), help=f"{NAMED} of data that everybody has."),
    click.option("--seeds", type=int, help="How many draws of the weights; 3 by default."),
]


def with_setting(command: Any) -> Any:
    """Adds the options that say what is attacked."""
    for option in reversed(setting_options):
        command = option(command)
    return command


def read_setting(config: Path | None, metrics: Sequence[str], selectors: Sequence[str], seeds: int | None, **named: str | None) -> dict[str, Any]:
    """Returns the keys of a sweep from a file and options.

    Raises:
      UsageError: if they name no data set or model.
    """
    from selgrad.config import read_file

    content = {} if config is None else read_file(config)
    if not isinstance(content, dict):
        raise UsageError(f"configuration {str(config)!r} holds no mapping of keys")
    content |= {kind: entry(kind, text) for kind, text in named.items() if text is not None}
    for kind, texts in (("metric", metrics), ("selector", selectors)):
        if texts:
            content[kind] = [entry(kind, text) for text in texts]
    if seeds is not None:
        if seeds < 1:
            raise UsageError(f"--seeds {seeds} must be at least 1")
        content["seeds"] = list(range(seeds))
    for kind in ("dataset", "model"):
        if kind not in content:
            raise UsageError(f"--{kind} is missing; name one, or give --config a file that does")
    return content


@click.command(cls=Command)
@click.argument("name", required=False, type=click.Choice(["images", "text"]))
@with_setting
@click.option("--ratio", "ratios", multiple=True, type=float, help="Share of entries to encrypt; several times for several. 0 is always tried.")
@budget_option
@click.option("--out", type=PATH, help="Folder for records, figures and report; without it the attacks are shown and nothing is run.")
@wandb_option
@json_option
def suite(name: str | None, ratios: Sequence[float], budget: Any, out: Path | None, wandb: str, as_json: bool, **setting: Any) -> None:
    r"""Run the frozen suite of attacks NAME (images or text) and judge each input by the attack that gets most of it.

    \b
    selgrad suite                                                    which attacks there are, and why
    selgrad suite images --dataset digits:count=20 --model lenet:activation=sigmoid --ratio 0.2 --ratio 0.5 --out DIR

    A suite has nothing to tune. Its name, version and hash stand in every record. `selgrad recommend` looks for the ratio by itself.
    """
    from selgrad import devices

    devices.configure()
    from selgrad.report.flags import flags
    from selgrad.report.verdicts import by_level, contributions
    from selgrad.suites import SUITES
    from selgrad.suites.members import Budget

    assert get_args(Budget) == BUDGETS
    if out is None:
        _show([SUITES[name]] if name else list(SUITES.values()), as_json)
        return
    if name is None:
        raise UsageError("name a suite to run: images or text")
    from selgrad.suites.recommend import run_suite

    records = run_suite(read_setting(**setting), ratios or (0.1, 0.5), out, suite=name, budget=budget, wandb=wandb)
    levels, raised = by_level(records), flags(records)
    if as_json:
        attacks = json.loads(contributions(records).to_json(orient="records"))
        document = {"out": str(out), "suite": records["suite"].iloc[0], "levels": json.loads(levels.to_json(orient="records")), "attacks": attacks}
        click.echo(json.dumps({**document, "flags": [flag._asdict() for flag in raised]}))
        return
    print_levels(levels, records["suite"].iloc[0])
    print_flags(raised)


def _show(suites: Sequence[Any], as_json: bool) -> None:
    """Prints the members of suites."""
    if as_json:
        rows = [
            {"suite": current.label(budget), "attacks": [spec.label for member in current.members for spec in member.specs(budget)]}
            for current in suites
            for budget in BUDGETS
        ]
        click.echo(json.dumps(rows))
        return
    for current in suites:
        click.secho(f"\n{current.name}, version {current.version}", bold=True)
        for member in current.members:
            click.echo(f"  {click.style(member.attack, fg='cyan')}: {member.why}")
            for budget in BUDGETS:
                specs = member.specs(budget)
                click.echo(f"      {budget}: {', '.join(spec.label for spec in specs) or 'not run'}")
        click.echo("  hashes: " + ", ".join(f"{budget} {current.hash(budget)}" for budget in BUDGETS))
