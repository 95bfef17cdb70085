"""The command line: quickstart, sweep, report, attack, audit, train-lm, list.

Only click and the standard library are imported here, so `--help` answers at once; each command imports what it runs.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from selgrad import __version__
from selgrad.errors import SelgradError, UsageError, require_ratio

_KINDS = ("dataset", "model", "update", "protection", "metric", "selector", "attack", "measure", "profile")
_EXAMPLES = """
\b
Start here:
  selgrad quickstart                    real digits and photographs, real CKKS, a few minutes, no network
  selgrad list                          every data set, model, metric, selector and attack with its arguments
  selgrad attack --ratio 0.1            one cell, with what the attacker sees and finds
  selgrad sweep sweep.yaml --out DIR    a grid; run the same command again to go on after an interruption
  selgrad report DIR                    figures and one HTML page from the records
  selgrad audit                         what the list of encrypted entries alone tells, or whether encrypting some leaves is safe
"""


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="selgrad")
def cli() -> None:
    """Which gradient entries should a federated-learning client encrypt?

    selgrad scores every entry of a client's gradient, encrypts the top share with CKKS, attacks what is left exposed, and measures what was
    reconstructed and what the encryption cost.
    """


_WANDB = click.option(
    "--wandb", type=click.Choice(["disabled", "offline", "online"]), default="disabled", show_default=True, help="Mirror the run in Weights & Biases."
)
_MODEL = click.option("--model", default="lenet", show_default=True, help="NAME or NAME:key=value,...")
_UPDATE = click.option("--update", default="gradient", show_default=True, help="NAME or NAME:key=value,...")
_PROTECTION = click.option("--protection", default="none", show_default=True, help="NAME or NAME:key=value,...: noise, rounding or pruning besides encryption.")
_SEED = click.option("--seed", default=0, show_default=True, help="Of weights, metric and attack.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output instead of text.")


def _print_summary(records: Any, out: Path, as_json: bool) -> None:
    from selgrad.report.tables import stopping_ratios

    if as_json:
        stops = json.loads(stopping_ratios(records).to_json(orient="records"))
        click.echo(json.dumps({"out": str(out), "cells": len(records), "report": str(out / "report.html"), "stopping_ratios": stops}))


@cli.command()
@click.option("--text", is_flag=True, help="Sentences and a BERT in place of images and a LeNet.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for records, figures and report; quickstart-run, or quickstart-text-run, by default.")
@_WANDB
@_JSON
def quickstart(text: bool, out: Path | None, wandb: str, as_json: bool) -> None:
    """Real images, a real gradient, real CKKS, a real attack: the whole of selgrad in a few minutes.

    Runs offline on scikit-learn's handwritten digits and crops of scikit-image's photographs, or on bundled sentences, and ends with a table,
    figures and an HTML page. Run it twice and the second run only reads what the first one left.
    """
    from selgrad.quickstart import QUICKSTART, QUICKSTART_TEXT
    from selgrad.runner import run_sweep

    folder = out or Path("quickstart-text-run" if text else "quickstart-run")
    _print_summary(run_sweep(QUICKSTART_TEXT if text else QUICKSTART, folder, wandb=wandb), folder, as_json)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for records, figures and report; continued if it holds this sweep.")
@_WANDB
@_JSON
def sweep(config: Path, out: Path, wandb: str, as_json: bool) -> None:
    r"""Run the grid that CONFIG (a YAML file) describes.

    \b
    Keys are names of registries; a mapping gives arguments; a list is an axis of the grid:
      dataset: {name: digits, count: 8}
      model: {name: lenet, activation: sigmoid}
      metric: [random, magnitude, {name: sensitivity, target: [labels, inputs]}]
      ratio: [0, 0.1, 0.5]
      attack: {name: idlg, num_steps: 100, hidden: [zero, ignore]}
      protection: [none, {name: dp_gaussian, noise: [0.001, 0.01]}]

    The plan is printed first. Records are written block by block; after Ctrl-C, a crash or SIGKILL the same command goes on where it
    stopped. `selgrad list` shows every name and argument.
    """
    from selgrad.config import load
    from selgrad.runner import run_sweep

    _print_summary(run_sweep(load(config), out, wandb=wandb), out, as_json)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@_JSON
def report(folder: Path, as_json: bool) -> None:
    """Draw figures and write one self-contained HTML page from the records in DIR.

    Works on any machine that has DIR, also while the sweep still runs.
    """
    from selgrad.report.page import make_report
    from selgrad.report.tables import read_records

    page = make_report(folder)
    if as_json:
        _print_summary(read_records(folder), folder, as_json)
    else:
        click.echo(f"report:  {page}\nfigures: {folder / 'figures'}")


def _entry(kind: str, text: str) -> dict[str, Any]:
    """`name` or `name:key=value,key=value`; values are read as YAML, and a comma inside brackets belongs to a value."""
    from selgrad.config import read_yaml

    name, _, rest = text.partition(":")
    result: dict[str, Any] = {"name": name}
    for part in filter(None, re.split(r",(?![^\[]*\])", rest)):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--{kind} {text!r}: {part!r} is no key=value; write {name}:key=value,key=value")
        result[key.strip()] = read_yaml(value, f"--{kind} {text!r}: {key.strip()}")
    return result


@cli.command()
@click.option("--dataset", default="digits", show_default=True, help="NAME or NAME:key=value,...")
@_MODEL
@_UPDATE
@click.option("--metric", default="magnitude", show_default=True, help="NAME or NAME:key=value,...")
@click.option("--selector", default="global_top", show_default=True, help="NAME or NAME:key=value,...")
@click.option("--attack", default="idlg:num_steps=50", show_default=True, help="NAME or NAME:key=value,...")
@click.option("--ratio", default=0.0, show_default=True, type=float, help="Share of entries to encrypt, in [0, 1].")
@click.option("--sample", default=0, show_default=True, help="Which batch of the data set.")
@_SEED
@click.option("--known-labels", is_flag=True, help="Give the labels to the attacker.")
@click.option("--public", help="NAME or NAME:key=value,... of data that everybody has, for amortised metrics and learned attackers.")
@click.option("--rounds", default=1, show_default=True, help="Updates of the same data that the attacker has, the global weights moving in between.")
@_PROTECTION
@click.option("--num-clients", default=0, show_default=True, help="Encrypt the selection for so many clients and print what it cost; 0 leaves it out.")
@click.option("--out", type=click.Path(path_type=Path), help="PNG file for truth and reconstruction side by side.")
@_JSON
def attack(
    dataset: str, model: str, update: str, metric: str, selector: str, attack: str, ratio: float, sample: int, seed: int,
    known_labels: bool, public: str | None, rounds: int, protection: str, num_clients: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    r"""Attack one gradient at one ratio, and say what was found.

    \b
    selgrad attack --dataset photos --metric magnitude --ratio 0.1 --attack inverting_gradients:num_steps=1000,hidden=ignore --out cell.png
    selgrad attack --ratio 0.5 --attack idlg:num_steps=50,hidden=learned --public digits:count=500,offset=100
    """
    require_ratio(ratio)
    from selgrad import devices

    devices.configure()
    from rich.console import Console
    from rich.progress import Progress

    from selgrad.experiment import run_cell

    given = {"dataset": dataset, "model": model, "update": update, "metric": metric, "selector": selector, "attack": attack, "protection": protection}
    entries: dict[str, Any] = {kind: _entry(kind, text) for kind, text in given.items()}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("compiling")

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description=f"{entries['attack']['name']}, step {done} of {total}")

        encryption = {"num_clients": num_clients} if num_clients else None
        options: dict[str, Any] = {"public": None if public is None else _entry("dataset", public), "rounds": {"count": rounds}, "encryption": encryption}
        result = run_cell(**entries, **options, ratio=ratio, sample=sample, seed=seed, known_labels=known_labels, on_progress=on_progress)
    if out is not None and isinstance(result.truth, tuple):
        raise UsageError(f"--out {str(out)!r} is for pictures and these data are text; leave it out")
    if out is not None:
        _save_pair(out, result.truth, result.reconstruction)
    if as_json:
        # JSON knows neither NaN nor infinity.
        found: dict[str, Any] = {k: (v if abs(v) < float("inf") else None) for k, v in result.measures.items()}
        if isinstance(result.truth, tuple):
            found |= {"truth": list(result.truth), "found": list(result.reconstruction), "report": json.loads(result.report or "null")}
        document = {**entries, "ratio": ratio, "sample": sample, "seed": seed, **found, "labels": result.labels.tolist()}
        cost = None if result.cost is None else dataclasses.asdict(result.cost)
        click.echo(
            json.dumps(
                {
                    **document,
                    "num_selected": result.num_selected,
                    "num_total": result.num_total,
                    "num_visible": result.num_visible,
                    "seconds": result.seconds,
                    "cost": cost,
                }
            )
        )
        return
    text = isinstance(result.truth, tuple)
    click.echo(f"encrypted  {result.num_selected:,} of {result.num_total:,} gradient entries ({metric}, {selector})")
    if result.cost is not None:
        paid = result.cost
        click.echo(
            f"CKKS       {paid.num_ciphertexts} ciphertexts, {paid.ciphertext_bytes:,} bytes per client; encrypt {1e3 * paid.encrypt_seconds:.1f} ms, add "
            f"{1e3 * paid.add_seconds:.1f} ms, decrypt {1e3 * paid.decrypt_seconds:.1f} ms; {paid.num_clipped} entries clipped"
        )
    sent = "" if protection == "none" else f", sent under {protection}"
    click.echo(f"exposed    {result.num_visible:,} entries to {attack}{sent}")
    if result.diverged:
        click.echo("verdict    the attack diverged: no restart stayed finite")
    else:
        if result.report:
            told = json.loads(result.report)
            click.echo(f"leaves     used {', '.join(told['used']) or 'none'}; not used {', '.join(told['unused']) or 'none'}")
        click.echo(f"objective  {result.objective:.3g} after {result.num_evaluations:.0f} gradient evaluations in {result.seconds:.1f} s")
        if text:
            click.echo(f"text       ROUGE-1 {result.rouge1:.3f}, ROUGE-2 {result.rouge2:.3f}, ROUGE-L {result.rougeL:.3f}")
            for truth, found in zip(result.truth, result.reconstruction, strict=True):
                click.echo(f"truth      {truth}\nfound      {found}")
        else:
            click.echo(f"image      MSE {result.mse:.3g}, PSNR {result.psnr:.1f} dB, SSIM {result.ssim:.3f}")
        click.echo(f"labels     {result.label_correct:.0%} correct: {result.labels.tolist()}")
    if out is not None:
        click.echo(f"picture    {out} (truth left, reconstruction right)")


@cli.command()
@click.option("--dataset", default="digits:count=300", show_default=True, help="NAME or NAME:key=value,...")
@_MODEL
@_UPDATE
@click.option("--metric", multiple=True, default=("random", "magnitude", "sensitivity:target=inputs"), show_default=True, help="Repeat for several.")
@click.option("--selector", multiple=True, default=("global_top",), show_default=True, help="Repeat for several; common, aligned and randomised say less.")
@click.option("--ratio", multiple=True, type=float, default=(0.1,), show_default=True, help="Repeat for several; shares of entries to encrypt, in [0, 1].")
@click.option("--ordered", is_flag=True, help="Read each list in its order, as MaskCrypt's clients send it, and not as a set.")
@click.option("--encrypt", multiple=True, metavar="PATTERN", help="Ask about these leaves instead: all their entries are encrypted, nothing else.")
@click.option("--attack", multiple=True, help="With --encrypt: attacks to run, in the place of the strongest that fit the data; repeat for several.")
@click.option("--public", help="NAME or NAME:key=value,... of data that everybody has: a learned decoder joins the attacks.")
@_PROTECTION
@click.option("--samples", default=2, show_default=True, help="With --encrypt: batches to attack.")
@_SEED
@click.option("--out", type=click.Path(path_type=Path), help="Folder for audit.parquet and figures.")
@_JSON
def audit(
    dataset: str, model: str, update: str, metric: tuple[str, ...], selector: tuple[str, ...], ratio: tuple[float, ...], ordered: bool,
    encrypt: tuple[str, ...], attack: tuple[str, ...], public: str | None, protection: str, samples: int, seed: int, out: Path | None, as_json: bool,
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
    for one in ratio:
        require_ratio(one)
    if ordered and encrypt:
        raise UsageError("--ordered reads lists of chosen entries and --encrypt names whole leaves; leave one of them out")
    if samples < 1:
        raise UsageError(f"--samples {samples} must be at least 1")
    from selgrad import devices

    devices.configure()
    from rich.console import Console

    from selgrad.audit import audit_masks, audit_paths

    console = Console(stderr=True)
    texts = {"dataset": dataset, "model": model, "update": update, "protection": protection}
    given: dict[str, Any] = {kind: _entry(kind, text) for kind, text in texts.items()}
    if public is not None:
        given["public"] = _entry("public", public)
    with console.status("starting") as status:
        if encrypt:
            attacks = [_entry("attack", one) for one in attack]
            asked = audit_paths(encrypt, **given, attacks=attacks, samples=range(samples), seed=seed, on_event=status.update)
        else:
            chosen = {"metrics": [_entry("metric", one) for one in metric], "selectors": [_entry("selector", one) for one in selector]}
            table = audit_masks(**given, **chosen, ratios=ratio, seed=seed, ordered=ordered, on_event=status.update)
    if not encrypt:
        _print_leaks(table, out, as_json)
        return
    if out is not None:
        _write_table(asked.attacks, out)
    if as_json:
        certificate = None if asked.certificate is None else dataclasses.asdict(asked.certificate)
        document = {**dataclasses.asdict(asked), "certificate": certificate, "attacks": asked.attacks.to_dict("records"), "safe": asked.safe}
        click.echo(json.dumps(_finite(document)))
        return
    click.echo(f"encrypted    {asked.num_selected:,} of {asked.num_total:,} entries: {', '.join(asked.encrypted)}")
    if asked.certificate is not None:
        found = asked.certificate
        click.echo(f"certificate  {found.verdict}; posterior MSE {found.posterior_mse:.2g}, {found.identified:.0%} of the directions identified")
    else:
        click.echo("certificate  none: the Jacobian does not fit in memory, or a protection leaves entries out")
    for row in asked.attacks.itertuples():
        unit = " dB PSNR" if asked.measure == "psnr" else " ROUGE-L"
        click.echo(f"attack       {row.attack}: {row.quality:.3g}{unit}, succeeds on {row.success:.0%} of {row.num_samples} ({asked.rule})")
    answer = "no attack of these succeeded, which is no proof" if asked.safe else f"not safe: {asked.attacks['attack'].iloc[0]} succeeds"
    click.echo(f"answer       {answer}")


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _write_table(table: Any, out: Path) -> None:
    from selgrad.devices import write_atomically

    write_atomically(out / "audit.parquet", lambda path: table.to_parquet(path, index=False))


def _print_leaks(table: Any, out: Path | None, as_json: bool) -> None:
    stem = None
    if out is not None:
        from selgrad.report.figures import mask_leaks

        _write_table(table, out)
        stem = mask_leaks(table, out / "figures")
    if as_json:
        click.echo(json.dumps(_finite(table.to_dict("records"))))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title=f"what {'priority lists' if table['ordered'].iloc[0] else 'masks'} of {table['num_samples'].iloc[0]} samples tell of them, gradient values unseen"
    )
    for name in ("metric", "selector", "ratio"):
        shown.add_column(name, no_wrap=True)
    for name in ("label right", "(chance)", "label bits", "(of)", "inputs explained", "support AUC", "extra entries"):
        shown.add_column(name, justify="right")
    for row in table.itertuples():
        auc = "" if row.support_auc != row.support_auc else f"{row.support_auc:.2f}"
        shown.add_row(
            row.metric, row.selector, f"{row.ratio:g}", f"{row.label_accuracy:.0%}", f"{row.label_chance:.0%}", f"{row.label_bits:.2f}",
            f"{row.label_entropy:.2f}", f"{row.input_explained:.0%}", auc, f"{row.extra_entries:+.0%}",
        )  # fmt: skip
    Console(width=max(150, Console().width)).print(shown)
    if out is not None:
        click.echo(f"records  {out / 'audit.parquet'}\nfigure   {out / 'figures' / f'{stem}.png'}")


@cli.command(name="train-lm")
@click.option("--dataset", default="sentences", show_default=True, help="NAME or NAME:key=value,... of a text data set; its tokenizer becomes the model's.")
@click.option("--size", type=click.Choice(["tiny", "mini", "small", "base"]), default="tiny", show_default=True, help="Of the GPT-2.")
@click.option("--steps", default=1000, show_default=True, help="Steps of Adam.")
@click.option("--batch-size", default=32, show_default=True, help="Samples a step.")
@click.option("--learning-rate", default=1e-3, show_default=True, help="At its peak.")
@click.option("--seed", default=0, show_default=True, help="Of weights and order.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model; continued if it holds this training.")
@_JSON
def train_lm(dataset: str, size: str, steps: int, batch_size: int, learning_rate: float, seed: int, out: Path, as_json: bool) -> None:
    r"""Train the language model that LAMP's attacker brings, on local text.

    \b
    selgrad train-lm --dataset text_file:path=corpus.txt,tokenizer=tokenizers/bert --out lm
    selgrad attack --dataset ... --model bert --attack lamp:language_model=lm

    It must have the clients' tokenizer; give the attacker other text than the clients'. Writes a Hugging Face folder (GPT-2) and says the
    perplexity on held-out samples. After an interruption the same command goes on from the last checkpoint.
    """
    from rich.console import Console
    from rich.progress import Progress

    from selgrad import language_model
    from selgrad.data import TextDataset
    from selgrad.experiment import _spec

    console = Console(stderr=True)
    loaded = _spec("dataset", _entry("dataset", dataset)).build()
    if not isinstance(loaded, TextDataset):
        raise UsageError(f"--dataset {dataset!r} holds images; choose a text data set (selgrad list dataset)")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("compiling", total=steps)

        def on_progress(done: int, total: int, loss: float) -> None:
            progress.update(task, completed=done, description=f"loss {loss:.3f}")

        found = language_model.train(
            loaded, out, size=size, num_steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, on_progress=on_progress
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"out": str(out), **found}))
        return
    click.echo(f"loss        {found['loss']:.3f} nats a token in the last step")
    click.echo(f"perplexity  {found['held_out_perplexity']:.1f} on held-out samples; word frequencies alone give {found['unigram_perplexity']:.1f}")
    click.echo(f"model       {out} (config.json, model.safetensors)")


def _save_pair(path: Path, truth: Any, reconstruction: Any) -> None:
    import numpy as np
    from PIL import Image

    rows = [np.concatenate([t, np.ones_like(t[:, :1]), r], axis=1) for t, r in zip(truth, reconstruction, strict=True)]
    pixels = np.rint(np.concatenate(rows).squeeze() * 255).astype(np.uint8)
    scale = max(1, 256 // max(truth.shape[1:3]))
    image = Image.fromarray(pixels)
    try:
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
    except (OSError, ValueError) as error:
        raise SelgradError(f"cannot write {str(path)!r} ({error}); give --out a file name that ends in .png in a folder that exists") from None


def _measures() -> dict[str, Any]:
    import inspect

    from selgrad.evaluation import MEASURES, TEXT_MEASURES

    every: dict[str, Any] = {**MEASURES, **TEXT_MEASURES}
    return {
        name: {"summary": (inspect.getdoc(measure) or "").split("\n\n")[0].replace("\n", " "), "source": "", "arguments": {}} for name, measure in every.items()
    }


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
    }  # fmt: skip


@cli.command(name="list")
@click.argument("kind", required=False, type=click.Choice(_KINDS))
@_JSON
def list_command(kind: str | None, as_json: bool) -> None:
    """Show every registry: names, arguments, defaults and sources. KIND narrows it to one."""
    import inspect

    from selgrad.config import describe, parameters, registry

    document: dict[str, Any] = {}
    for one in [kind] if kind else _KINDS:
        entries: dict[str, Any] = {}
        if one in ("measure", "profile"):
            document[one] = _measures() if one == "measure" else _profiles()
            continue
        for name, factory in registry(one).items():
            module = inspect.getdoc(inspect.getmodule(factory)) or ""
            arguments = {}
            for key, parameter in parameters(one, name).items():
                required = parameter.default is inspect.Parameter.empty
                arguments[key] = {"type": describe(parameter.annotation), "required": required, "default": None if required else parameter.default}
            summary = (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
            source = module.split("\n\n")[-1].replace("\n", " ") if "\n\n" in module else ""
            entries[name] = {"summary": summary, "source": source, "arguments": arguments}
        document[one] = entries
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


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for records, checkpoints and figures.  [default: selgrad-runs/NAME]")
@click.option("--wandb", type=click.Choice(["disabled", "offline", "online"]), default="disabled", show_default=True)
@click.option("--app", type=click.Path(path_type=Path), help="Write a Flower app there for a deployment instead of running: flwr run FOLDER.")
def federate(config: Path, out: Path | None, wandb: str, app: Path | None) -> None:
    r"""Run federated averaging with selective encryption in Flower's simulation engine. CONFIG is a YAML file.

    The same command goes on where an interrupted run stopped. Every key has a default:

    \b
    dataset: {name: digits, count: 1200}
    test: {name: digits, count: 500, offset: 1200}
    model: {name: cnn, width: 16}
    clients: {count: 5, alpha: 0.5}
    rounds: 5
    local: {num_steps: 10, batch_size: 32, learning_rate: 0.1}
    metric: magnitude
    ratio: 0.1
    agreement: vote          # fixed | union | interleaved | encrypted_sensitivity
    protection: selective    # full | none | {name: pruning, ratio: 0.9} | {name: dp_gaussian, noise: 0.003} | {name: quantised, bits: 8}
    encryption: {profile: exact}
    """
    from rich.console import Console

    from selgrad.federation.config import load
    from selgrad.federation.run import federate as run
    from selgrad.federation.run import summary, write_app

    checked = load(config)
    target = out or Path("selgrad-runs") / checked.name
    if app is not None:
        click.echo(f"flwr run {write_app(checked, app, target)}")
        return
    records = run(checked, target, wandb=wandb)
    Console(width=max(130, Console().width)).print(summary(records))
    click.echo(f"records: {target / 'rounds.parquet'}\nevents:  {target / 'events.parquet'}\nfigure:  {target / 'figures' / 'federation.png'}")
    if not all(same for same in records["verified"] if same is not None):
        raise SelgradError(
            "a round's weights differ from plain FedAvg by more than the quantisation bound; were entries clipped? see `clipped`, and raise bound"
        )


@cli.command()
@_JSON
def profiles(as_json: bool) -> None:
    """Show the parameters of the encryption: security, room for clients, bytes, and the error that each leaves.

    A value is clipped to the bound and rounded to a grid; sums of grid points are exact. The margin is half a grid step over the noise's standard deviation
    with the largest number of clients.
    """
    from rich.console import Console
    from rich.table import Table

    from selgrad.encryption.profiles import PROFILES, table

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
    Console(width=max(160, Console().width)).print(shown)
    for name, profile in PROFILES.items():
        click.echo(f"{click.style(name, bold=True)}: {profile.about}")


for _command in (cli, *cli.commands.values()):
    # Click keeps the lines of a paragraph that a backspace opens; raw docstrings write it as two characters.
    _command.help = (_command.help or "").replace("\\b\n", "\b\n")


def main() -> None:
    """Runs the command line; errors are one line on standard error, 2 for usage and 1 for failure."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SelgradError as error:
        click.echo(f"selgrad: error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("selgrad: interrupted; finished blocks are kept, run the same command to go on", err=True)
        sys.exit(130)
    except OSError as error:
        click.echo(f"selgrad: error: {error.filename or 'input/output'}: {error.strerror or error}; check the path, its permissions and the disk", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
