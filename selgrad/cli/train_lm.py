"""`selgrad train-lm`: the language model that LAMP's attacker brings.

`selgrad.language_model` does the work.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from selgrad.cli.options import NAMED, PATH, SEED, Command, Entry, entry, json_option
from selgrad.cli.render import progress
from selgrad.errors import UsageError


@click.command(name="train-lm", cls=Command)
@click.option(
    "--dataset", type=Entry("dataset"), default="sentences", show_default=True, help=f"{NAMED} of a text data set; its tokenizer becomes the model's."
)
@click.option("--size", type=click.Choice(["tiny", "mini", "small", "base"]), default="tiny", show_default=True, help="Size of the GPT-2.")
@click.option("--steps", default=1000, show_default=True, help="Steps of Adam.")
@click.option("--batch-size", default=32, show_default=True, help="Samples per step.")
@click.option("--learning-rate", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed of weights and order.")
@click.option("--out", type=PATH, required=True, help="Folder for the model; continued if it holds this training.")
@json_option
def train_lm(dataset: str, size: str, steps: int, batch_size: int, learning_rate: float, seed: int, out: Path, as_json: bool) -> None:
    r"""Train the language model that LAMP's attacker brings, on local text.

    \b
    selgrad train-lm --dataset text_file:path=corpus.txt,tokenizer=tokenizers/bert --out lm
    selgrad attack --dataset ... --model bert --attack lamp:language_model=lm

    It must have the clients' tokenizer; give the attacker other text than the clients'. Writes a Hugging Face folder (GPT-2) and says the
    perplexity on held-out samples. After an interruption the same command goes on from the last checkpoint.
    """
    from selgrad import language_model
    from selgrad.data import TextDataset
    from selgrad.registry import Spec

    loaded = Spec.of("dataset", entry("dataset", dataset)).build()
    if not isinstance(loaded, TextDataset):
        raise UsageError(f"--dataset {dataset!r} holds images; choose a text data set (selgrad list dataset)")
    with progress(steps) as show:

        def on_progress(done: int, total: int, loss: float) -> None:
            show(completed=done, description=f"loss {loss:.3f}")

        results = language_model.train(
            loaded, out, size=size, num_steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, on_progress=on_progress
        )
    if as_json:
        click.echo(json.dumps({"out": str(out), **results}))
        return
    click.echo(f"loss        {results['loss']:.3f} nats a token in the last step")
    click.echo(f"perplexity  {results['held_out_perplexity']:.1f} on held-out samples; word frequencies alone give {results['unigram_perplexity']:.1f}")
    click.echo(f"model       {out} (config.json, model.safetensors)")
