"""`selgrad train`: trained weights of an image model.

`selgrad.training` does the work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selgrad.cli.options import NAMED, PATH, SEED, Command, Entry, entry, json_option, model_option
from selgrad.cli.render import progress
from selgrad.errors import UsageError

if TYPE_CHECKING:
    from selgrad.data import Dataset


@click.command(cls=Command)
@click.option("--dataset", type=Entry("dataset"), default="digits", show_default=True, help=f"{NAMED} of images to train on.")
@click.option("--test", "test_set", type=Entry("dataset"), default=None, help=f"{NAMED} of images to measure on; without it a tenth of --dataset is held out.")
@model_option
@click.option("--epochs", default=20, show_default=True, help="Passes over the samples.")
@click.option("--batch-size", default=64, show_default=True, help="Samples a step.")
@click.option("--optimiser", type=click.Choice(["adam", "momentum"]), default="adam", show_default=True, help="AdamW, or Nesterov momentum 0.9.")
@click.option("--learning-rate", type=float, default=None, help="Peak learning rate.  [default: 1e-3 for adam, 0.1 for momentum]")
@click.option("--weight-decay", default=5e-4, show_default=True, help="Weight decay of kernels.")
@click.option("--augmentation", type=click.Choice(["none", "crop", "crop_flip"]), default="none", show_default=True, help="Random crops and flips.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed of weights, order and augmentation.")
@click.option("--out", type=PATH, required=True, help="Folder for the weights; continued if it holds this training.")
@json_option
def train(
    dataset: str,
    test_set: str | None,
    model: str,
    epochs: int,
    batch_size: int,
    optimiser: str,
    learning_rate: float | None,
    weight_decay: float,
    augmentation: str,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    r"""Train an image model, so that attacks can be run on trained weights.

    \b
    selgrad train --dataset mnist:path=data/mnist,split=train --test mnist:path=data/mnist --model cnn:width=16 --epochs 4 --out trained
    selgrad attack --dataset mnist:path=data/mnist --model cnn:width=16,checkpoint=trained/weights --ratio 0.1

    Writes OUT/weights, an Orbax checkpoint with the names of the leaves, and says the accuracy on images that were held out. After an interruption the
    same command goes on from the last epoch. Attack images that the model was not trained on.
    """
    from selgrad import training
    from selgrad.registry import Spec

    def images(option: str, text: str) -> Dataset:
        from selgrad.data import Dataset

        loaded = Spec.of("dataset", entry("dataset", text)).build()
        if not isinstance(loaded, Dataset):
            raise UsageError(f"{option} {text!r} holds text; choose a data set of images (selgrad list dataset), or train-lm for a language model")
        return loaded

    recipe = training.Recipe(epochs, batch_size, optimiser, learning_rate, weight_decay, augmentation, seed)  # type: ignore[arg-type]
    to_learn, to_test = images("--dataset", dataset), None if test_set is None else images("--test", test_set)
    with progress(1) as show:
        results = training.train(
            to_learn,
            entry("model", model),
            out,
            recipe=recipe,
            test=to_test,
            on_progress=lambda done, total, loss: show(completed=done, total=total, description=f"loss {loss:.3f}"),
        )
    if as_json:
        click.echo(json.dumps({"out": str(out), **results}))
        return
    click.echo(
        f"accuracy  {results['accuracy']:.1%} of {results['test_samples']:,} images that were held out, {results['train_accuracy']:.1%} of those trained on"
    )
    joined = "," if ":" in model else ":"
    click.echo(f"weights   {out / 'weights'} (Orbax); attack them with --model {model}{joined}checkpoint={out / 'weights'}")
