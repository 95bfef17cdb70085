"""`selgrad audit`: what a mask gives away before any attack, and whether encrypting some leaves is safe.

`selgrad.audit` does the work.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from selgrad.cli.options import NAMED, PATH, Command, Entry, entry, json_option, model_option, named_option, protection_option, seed_option, update_option
from selgrad.cli.render import finite, print_leaks, write_audit
from selgrad.errors import UsageError, require_ratio


@click.command(cls=Command)
@named_option("dataset", "digits:count=300")
@model_option
@update_option
@click.option(
    "--metric", type=Entry("metric"), multiple=True, default=("random", "magnitude", "sensitivity:target=inputs"), show_default=True, help="Repeat for several."
)
@click.option(
    "--selector",
    type=Entry("selector"),
    multiple=True,
    default=("global_top",),
    show_default=True,
    help="Repeat for several; common, aligned and randomised say less.",
)
@click.option("--ratio", multiple=True, type=float, default=(0.1,), show_default=True, help="Repeat for several; shares of entries to encrypt, in [0, 1].")
@click.option("--ordered", is_flag=True, help="Read each list in its order, as MaskCrypt's clients send it, and not as a set.")
@click.option("--encrypt", multiple=True, metavar="PATTERN", help="Ask about these leaves instead: all their entries are encrypted, nothing else.")
@click.option(
    "--attack", type=Entry("attack"), multiple=True, help="With --encrypt: attacks to run, in the place of the strongest that fit the data; repeat for several."
)
@click.option("--public", type=Entry("dataset"), help=f"{NAMED} of data that everybody has: a learned decoder joins the attacks.")
@protection_option
@click.option("--samples", default=2, show_default=True, help="With --encrypt: batches to attack.")
@seed_option
@click.option("--out", type=PATH, help="Folder for audit.parquet and figures.")
@json_option
def audit(
    metric: tuple[str, ...], selector: tuple[str, ...], ratio: tuple[float, ...], ordered: bool, encrypt: tuple[str, ...], attack: tuple[str, ...],
    public: str | None, samples: int, seed: int, out: Path | None, as_json: bool, **texts: str,
) -> None:  # fmt: skip
    r"""Ask what a mask gives away, before any attack on the gradient; or whether encrypting some leaves is safe.

    \b
    The index list of encrypted entries is sent in the clear. How much do masks of 300 digits tell of labels and pixels?
      selgrad audit --metric magnitude --metric random --ratio 0.1
    And with one mask for all clients, or whole columns, and at what price in extra entries?
      selgrad audit --metric magnitude --selector global_top --selector common --selector aligned:unit=columns

    \b
    Is it safe to encrypt everything but the last layer? The certificate and the strongest attack answer:
      selgrad audit --dataset digits --encrypt 'conv*/**'
    """
    for share in ratio:
        require_ratio(share)
    if ordered and encrypt:
        raise UsageError("--ordered reads lists of chosen entries and --encrypt names whole leaves; leave one of them out")
    if samples < 1:
        raise UsageError(f"--samples {samples} must be at least 1")
    from selgrad import devices

    devices.configure()
    from selgrad import terminal
    from selgrad.audit import audit_masks, audit_paths

    components: dict[str, Any] = {kind: entry(kind, texts[kind]) for kind in ("dataset", "model", "update", "protection")}
    if public is not None:
        components["public"] = entry("public", public)
    with terminal.status(terminal.console(stderr=True), "starting") as say:
        if encrypt:
            attacks = [entry("attack", text) for text in attack]
            asked = audit_paths(encrypt, **components, attacks=attacks, samples=range(samples), seed=seed, on_event=say)
        else:
            chosen = {"metrics": [entry("metric", text) for text in metric], "selectors": [entry("selector", text) for text in selector]}
            table = audit_masks(**components, **chosen, ratios=ratio, seed=seed, ordered=ordered, on_event=say)
    if encrypt:
        _print_paths(asked, out, as_json)
    else:
        _print_masks(table, out, as_json)


def _print_masks(table: Any, out: Path | None, as_json: bool) -> None:
    stem = ""
    if out is not None:
        from selgrad.report.figures import mask_leaks

        write_audit(table, out)
        stem = mask_leaks(table, out / "figures")
    if as_json:
        click.echo(json.dumps(finite(table.to_dict("records"))))
        return
    print_leaks(table)
    if out is not None:
        click.echo(f"records  {out / 'audit.parquet'}\nfigure   {out / 'figures' / f'{stem}.png'}")


def _print_paths(asked: Any, out: Path | None, as_json: bool) -> None:
    certificate = asked.certificate
    if out is not None:
        write_audit(asked.attacks, out)
    if as_json:
        as_dict = None if certificate is None else dataclasses.asdict(certificate)
        document = {"certificate": as_dict, "attacks": asked.attacks.to_dict("records"), "measure": asked.measure.name, "safe": asked.safe}
        click.echo(json.dumps(finite({**dataclasses.asdict(asked), **document})))
        return
    click.echo(f"encrypted    {asked.num_selected:,} of {asked.num_total:,} entries: {', '.join(asked.encrypted)}")
    if certificate is not None:
        click.echo(
            f"certificate  {certificate.verdict}; posterior MSE {certificate.posterior_mse:.2g}, {certificate.identified:.0%} of the directions identified"
        )
    else:
        click.echo("certificate  none: the Jacobian does not fit in memory, or a protection leaves entries out")
    for row in asked.attacks.itertuples():
        click.echo(f"attack       {row.attack}: {asked.measure.quality(row.quality)}, succeeds on {row.success:.0%} of {row.num_samples} ({asked.rule})")
    answer = "no attack of these succeeded, which is no proof" if asked.safe else f"not safe: {asked.attacks['attack'].iloc[0]} succeeds"
    click.echo(f"answer       {answer}")
