"""`selgrad attack`: one cell, with what the attacker sees and finds.

`selgrad.experiment.run_cell` does the work; output that cannot be written as requested is refused before it runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from selgrad.cli.options import NAMED, PATH, Command, Entry, entry, json_option, model_option, named_option, protection_option, seed_option, update_option
from selgrad.cli.render import finite, progress, save_pair
from selgrad.errors import UsageError, require_ratio


@click.command(cls=Command)
@named_option("dataset", "digits")
@model_option
@update_option
@named_option("metric", "magnitude")
@named_option("selector", "global_top")
@named_option("attack", "idlg:num_steps=50")
@click.option("--ratio", default=0.0, show_default=True, type=float, help="Share of entries to encrypt, in [0, 1].")
@click.option("--sample", default=0, show_default=True, help="Which batch of the data set.")
@seed_option
@click.option("--known-labels", is_flag=True, help="Give the labels to the attacker.")
@click.option("--public", type=Entry("dataset"), help=f"{NAMED} of data that everybody has, for amortised metrics and learned attackers.")
@click.option("--rounds", default=1, show_default=True, help="Updates of the same data that the attacker has, the global weights moving in between.")
@protection_option
@click.option("--num-clients", default=0, show_default=True, help="Encrypt the selection for so many clients and print what it cost; 0 leaves it out.")
@click.option("--out", type=PATH, help="PNG file for truth and reconstruction side by side.")
@json_option
def attack(
    ratio: float, sample: int, seed: int, known_labels: bool, public: str | None, rounds: int, num_clients: int, out: Path | None, as_json: bool, **specs: str
) -> None:
    r"""Attack one gradient at one ratio, and say what was found.

    \b
    selgrad attack --dataset photos --metric magnitude --ratio 0.1 --attack inverting_gradients:num_steps=1000,hidden=ignore --out cell.png
    selgrad attack --ratio 0.5 --attack idlg:num_steps=50,hidden=learned --public digits:count=500,offset=100
    """
    require_ratio(ratio)
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"cannot write {str(out)!r}; give --out a file name that ends in .png in a folder that exists")
    from selgrad import devices

    devices.configure()
    from selgrad.experiment import run_cell

    entries: dict[str, Any] = {kind: entry(kind, specs[kind]) for kind in ("dataset", "model", "update", "metric", "selector", "attack", "protection")}
    dataset = entries["dataset"] if out is None else _pictures(entries["dataset"], out)
    with progress() as show:

        def on_progress(done: int, total: int) -> None:
            show(completed=done, total=total, description=f"{entries['attack']['name']}, step {done} of {total}")

        encryption = {"num_clients": num_clients} if num_clients else None
        options: dict[str, Any] = {"public": None if public is None else entry("public", public), "rounds": {"count": rounds}, "encryption": encryption}
        result = run_cell(
            **{**entries, "dataset": dataset}, **options, ratio=ratio, sample=sample, seed=seed, known_labels=known_labels, on_progress=on_progress
        )
    if out is not None:
        save_pair(out, result.truth, result.reconstruction)
    if as_json:
        click.echo(json.dumps({**entries, "ratio": ratio, "sample": sample, "seed": seed, **_document(result)}))
        return
    _print(result, specs)
    if out is not None:
        click.echo(f"picture    {out} (truth left, reconstruction right)")


def _pictures(dataset: dict[str, Any], out: Path) -> Any:
    """Loads the data set, which must hold images."""
    from selgrad.data import Dataset
    from selgrad.registry import Spec

    loaded = Spec.of("dataset", dataset).build()
    if not isinstance(loaded, Dataset):
        raise UsageError(f"--out {str(out)!r} is for pictures and these data are text; leave it out")
    return loaded


def _document(result: Any) -> dict[str, Any]:
    document = finite(result.measures)
    if isinstance(result.truth, tuple):
        document |= {"truth": list(result.truth), "found": list(result.reconstruction), "report": json.loads(result.report or "null")}
    counts = {name: getattr(result, name) for name in ("num_selected", "num_total", "num_visible", "seconds")}
    return {**document, "labels": result.labels.tolist(), **counts, "cost": None if result.cost is None else dataclasses.asdict(result.cost)}


def _print(result: Any, specs: dict[str, str]) -> None:
    from selgrad import measures

    click.echo(f"encrypted  {result.num_selected:,} of {result.num_total:,} gradient entries ({specs['metric']}, {specs['selector']})")
    if result.cost is not None:
        paid = result.cost
        plural = "" if paid.num_ciphertexts == 1 else "s"
        click.echo(
            f"CKKS       {paid.num_ciphertexts} ciphertext{plural}, {paid.ciphertext_bytes:,} bytes per client; "
            f"encrypt {1e3 * paid.encrypt_seconds:.1f} ms, add {1e3 * paid.add_seconds:.1f} ms, decrypt {1e3 * paid.decrypt_seconds:.1f} ms; "
            f"{paid.num_clipped} entries clipped"
        )
    sent = "" if specs["protection"] == "none" else f", sent under {specs['protection']}"
    click.echo(f"exposed    {result.num_visible:,} entries to {specs['attack']}{sent}")
    if result.diverged:
        click.echo("verdict    the attack diverged: no restart stayed finite")
        return
    if result.report:
        leaves = json.loads(result.report)
        click.echo(f"leaves     used {', '.join(leaves['used']) or 'none'}; not used {', '.join(leaves['unused']) or 'none'}")
    click.echo(f"objective  {result.objective:.3g} after {result.num_evaluations:.0f} gradient evaluations in {result.seconds:.1f} s")
    if not math.isnan(result.objective_at_truth):
        ended = (
            "the attack has matched all that is visible"
            if result.converged
            else "the search stopped too early: its failure would say nothing about the defence"
        )
        click.echo(f"converged  {'yes' if result.converged else 'no'}: the objective is {result.objective_at_truth:.3g} at the truth, so {ended}")
    shown = measures.held(result.measures, lambda measure: measure.reads not in ("labels", "verdicts"))
    click.echo(f"quality    {', '.join(measure.quality(result.measures[measure.name]) for measure in shown)}")
    if isinstance(result.truth, tuple):
        for truth, reconstruction in zip(result.truth, result.reconstruction, strict=True):
            click.echo(f"truth      {truth}\nfound      {reconstruction}")
    click.echo(f"labels     {result.label_correct:.0%} correct: {result.labels.tolist()}")
