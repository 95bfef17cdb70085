"""Training of image models, so that attacks can be run on trained weights: AdamW or momentum, a warm-up, a cosine decay, and an Orbax checkpoint.

Momentum and weight decay are those of ResNet on CIFAR (he2016resnet), as is the augmentation: four pixels of padding, a random crop, a random flip.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from selgrad import checkpoints, files, trees, weights
from selgrad.base import InputSpec, Key, Model, Params
from selgrad.data import Dataset
from selgrad.errors import SelgradError, UsageError, require_seed
from selgrad.models.classifier import ImageClassifier
from selgrad.registry import Spec

Optimiser: TypeAlias = Literal["adam", "momentum"]
Augmentation: TypeAlias = Literal["none", "crop", "crop_flip"]
_EVALUATED = 250


class Journal:
    """The folder of one training: its recipe, checkpoints to resume from, and its result.

    Args:
      root: the folder, which is made if it does not exist.
      recipe: everything that determines the result; a folder with another recipe is refused.

    Raises:
      UsageError: if the folder holds a training with another recipe.
      DamagedError: if its content cannot be read.
    """

    def __init__(self, root: Path, recipe: dict[str, Any]) -> None:
        self._recipe, self._file, self._series = recipe, root / "training.json", checkpoints.Series(root / "checkpoints")
        stored = self._read()
        if stored is None:
            self._write({"recipe": recipe})
        elif stored.get("recipe") != recipe:
            theirs = stored.get("recipe")
            changed = [key for key in recipe if not isinstance(theirs, dict) or theirs.get(key) != recipe[key]]
            raise UsageError(f"folder {str(root)!r} holds a training of another recipe (it differs in {', '.join(changed)}); choose another --out")

    def _read(self) -> dict[str, Any] | None:
        return files.read_json(self._file) if self._file.exists() else None

    def _write(self, content: dict[str, Any]) -> None:
        files.write_json(self._file, content)

    @property
    def result(self) -> dict[str, float] | None:
        """The result of a finished training; None if it is not finished."""
        return (self._read() or {}).get("result")

    def newest(self, state: Any) -> tuple[int, Any, float]:
        """The number of steps done, the state after them, and the last loss; initially 0, the given state and NaN."""
        stored = self._series.newest(like=state)
        if stored is None:
            return 0, state, math.nan
        return stored.done, jax.tree.map(jnp.asarray, stored.arrays), float(stored.notes[0]) if stored.notes else math.nan

    def save(self, done: int, state: Any, loss: float) -> None:
        """Saves the state after `done` steps.

        Raises:
          SelgradError: if the loss is not finite.
        """
        if not np.isfinite(loss):
            raise SelgradError(f"training diverged at step {done}; lower the learning rate")
        self._series.save(done, state, [repr(float(loss))])

    def finish(self, result: dict[str, float]) -> dict[str, float]:
        """Writes the result, and removes the checkpoints, which are needed only for resuming."""
        self._write({"recipe": self._recipe, "result": result})
        self._series.remove()
        return result


class Recipe(NamedTuple):
    """How to train.

    Attributes:
      num_epochs: passes over the samples.
      batch_size: samples per step.
      optimiser: AdamW, or gradient descent with Nesterov momentum 0.9.
      learning_rate: at its peak, after a warm-up over a twentieth of the steps; it then falls to 0 along a cosine. None is 1e-3 for AdamW and 0.1 for momentum.
      weight_decay: of kernels; biases and the parameters of norms are not decayed.
      augmentation: "crop" pads by four pixels and crops at random; "crop_flip" also mirrors half of the images.
      seed: of weights, sample order and augmentation.
    """

    num_epochs: int = 20
    batch_size: int = 64
    optimiser: Optimiser = "adam"
    learning_rate: float | None = None
    weight_decay: float = 5e-4
    augmentation: Augmentation = "none"
    seed: int = 0

    def checked(self) -> Recipe:
        """Returns the recipe itself after validating it.

        Raises:
          UsageError: for a number out of its range, or an unknown name.
        """
        for name, value in (("num_epochs", self.num_epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"learning_rate={self.learning_rate} must be positive")
        if not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight_decay={self.weight_decay} must not be negative")
        require_seed(self.seed)
        return self

    def transformation(self, num_steps: int) -> optax.GradientTransformation:
        """The optimiser with its learning rate schedule over all steps."""
        peak = self.learning_rate if self.learning_rate is not None else {"adam": 1e-3, "momentum": 0.1}[self.optimiser]
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, max(1, num_steps // 20), max(2, num_steps))

        def kernels(params: Params) -> Any:
            return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

        if self.optimiser == "adam":
            return optax.adamw(rate, weight_decay=self.weight_decay, mask=kernels)
        return optax.chain(optax.add_decayed_weights(self.weight_decay, mask=kernels), optax.sgd(rate, momentum=0.9, nesterov=True))


def augment(key: Key, inputs: Array, how: Augmentation) -> Array:
    """Crops, and for "crop_flip" mirrors, the images of a batch (B, H, W, C) at random."""
    if how == "none":
        return inputs
    height, width = inputs.shape[1:3]
    padded = jnp.pad(inputs, ((0, 0), (4, 4), (4, 4), (0, 0)))

    def crop_one(key: Key, picture: Array) -> Array:
        offset_key, flip_key = jax.random.split(key)
        row, column = jax.random.randint(offset_key, (2,), 0, 9)
        cropped = jax.lax.dynamic_slice(picture, (row, column, 0), (height, width, picture.shape[-1]))
        return jnp.where(jax.random.bernoulli(flip_key) & (how == "crop_flip"), cropped[:, ::-1], cropped)

    return jax.vmap(crop_one)(jax.random.split(key, len(inputs)), padded)


def accuracy(model: Model, params: Params, dataset: Dataset) -> float:
    """Share of samples, in [0, 1], whose largest logit is that of their label; batch norm uses the running statistics."""
    scored = dataclasses.replace(model, mode="evaluation", statistics="kept") if isinstance(model, ImageClassifier) else model
    guess = jax.jit(lambda params, inputs: scored.logits(params, scored.embed(params, inputs)).argmax(axis=-1))
    right = 0
    for start in range(0, len(dataset), _EVALUATED):
        # The last batch is padded, so that one compiled program serves all batches.
        chosen = np.minimum(np.arange(start, start + _EVALUATED), len(dataset) - 1)
        fresh = min(_EVALUATED, len(dataset) - start)
        right += int((np.asarray(guess(params, dataset.spec.normalise(dataset.pixels[chosen])))[:fresh] == dataset.labels[chosen][:fresh]).sum())
    return right / len(dataset)


def train(
    dataset: Dataset,
    model: Any,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    test: Dataset | None = None,
    on_progress: Callable[[int, int, float], None] = lambda *_: None,
) -> dict[str, float]:
    """Trains an image model and writes its parameters to `OUT/weights`, an Orbax checkpoint; the same call resumes an interrupted training.

    Args:
      dataset: images to train on.
      model: as for an experiment, a name, a mapping or an object; training starts from its `checkpoint`, if any. In every mode it is trained with the batch's
        statistics and evaluated with the running ones.
      out: folder for `weights/`, `training.json`, and during training `checkpoints/`.
      recipe: how to train.
      test: images to evaluate on; without them a random tenth of the data set is held out.
      on_progress: called with (steps done, total steps, loss).

    Returns:
      The `accuracy` on the test images and the `train_accuracy`, in [0, 1], the number of `test_samples`, and the `loss` of the last step.

    Raises:
      UsageError: if the model does not read images, there are too few samples, or the folder holds a training with another recipe.
      SelgradError: if the loss stops being finite.
    """
    chosen = (recipe or Recipe()).checked()
    spec = Spec.of("model", model)
    built: Model = spec.build(dataset.spec)
    if not isinstance(built.input_spec, InputSpec):
        raise UsageError(f"selgrad trains models of images and {spec.label} reads text; train-lm trains the attacker's language model")
    if test is None:
        if len(dataset) < 20:
            raise UsageError(f"training needs at least 20 samples, of which a tenth is held out, and the data set holds {len(dataset)}; raise count")
        # Drawn at random, since files are often sorted by class or alternate between classes.
        order = np.random.default_rng(0).permutation(len(dataset))
        dataset, test = (_part(dataset, np.sort(part)) for part in (order[len(dataset) // 10 :], order[: len(dataset) // 10]))
    elif (test.spec.shape, test.spec.num_classes) != (dataset.spec.shape, dataset.spec.num_classes):
        raise UsageError(
            f"the test images are of shape {test.spec.shape} with {test.spec.num_classes} classes and those to train on of "
            f"{dataset.spec.shape} with {dataset.spec.num_classes}; give two parts of one data set"
        )
    test = dataclasses.replace(test, spec=dataset.spec)
    if chosen.batch_size > len(dataset):
        raise UsageError(f"batch_size={chosen.batch_size} is more than the {len(dataset)} samples to train on; lower it")
    per_epoch = len(dataset) // chosen.batch_size
    num_steps = per_epoch * chosen.num_epochs
    root = Path(out)
    journal = Journal(
        root, {"model": spec.to_dict(), **chosen._asdict(), "samples": len(dataset), "test_samples": len(test), "digest": [_digest(dataset), _digest(test)]}
    )
    finished = journal.result
    if finished is not None and (root / "weights").is_dir():
        return finished

    params = weights.initial(built, spec, jax.random.key(chosen.seed))
    transformation = chosen.transformation(num_steps)
    step = _stepper(built, built.input_spec, transformation, chosen)
    loss: Any
    done, (params, state), loss = journal.newest((params, transformation.init(_split(built, params)[0])))
    to_devices = _sharded(chosen.batch_size)
    for number in range(done, num_steps):
        epoch, position = divmod(number, per_epoch)
        if position == 0:
            # Seeded by the epoch number, so that a resumed run, which starts with an epoch, draws the same order as an uninterrupted one.
            shuffled = np.random.default_rng([chosen.seed, epoch]).permutation(len(dataset))
        order = shuffled[position * chosen.batch_size :][: chosen.batch_size]
        params, state, loss = step(params, state, to_devices(dataset.pixels[order]), to_devices(dataset.labels[order]), number)
        if position + 1 == per_epoch:
            journal.save(number + 1, (params, state), float(loss))
        if number % 10 == 0 or number + 1 == num_steps:
            on_progress(number + 1, num_steps, float(loss))
    params = jax.tree.map(np.asarray, params)
    trees.require_finite(params, "the trained weights")
    checkpoints.save_params(root / "weights", params)
    result = {"accuracy": accuracy(built, params, test), "train_accuracy": accuracy(built, params, dataset), "test_samples": len(test), "loss": float(loss)}
    return journal.finish(result)


def _part(dataset: Dataset, rows: Any) -> Dataset:
    return dataclasses.replace(dataset, pixels=dataset.pixels[rows], labels=dataset.labels[rows])


def _digest(dataset: Dataset) -> int:
    """A checksum that distinguishes data sets of equal size, and different normalisations."""
    digest = zlib.crc32(repr(dataset.spec).encode())
    for part in (dataset.pixels, dataset.labels):
        digest = zlib.crc32(np.ascontiguousarray(part).tobytes(), digest)
    return digest


def _split(model: Model, params: Params) -> tuple[Params, Params]:
    """Splits the parameters into those that the optimiser updates, and the rest, such as running statistics."""
    keeping = dataclasses.replace(model, statistics="kept") if isinstance(model, ImageClassifier) else model
    return keeping.split(params)


def _stepper(model: Model, spec: InputSpec, transformation: optax.GradientTransformation, recipe: Recipe) -> Callable[..., Any]:
    normalise, num_classes = spec.normalise, spec.num_classes

    @jax.jit
    def step(params: Params, state: Any, pixels: Array, labels: Array, number: Array) -> Any:
        cropping, dropping = jax.random.split(jax.random.fold_in(jax.random.key(recipe.seed + 1), number))
        inputs, targets = augment(cropping, normalise(pixels), recipe.augmentation), jax.nn.one_hot(labels, num_classes)
        trained, fixed = _split(model, params)

        def loss(moved: Params) -> tuple[Array, Params]:
            merged = model.merge(moved, fixed)
            embedded = model.embed(merged, inputs)
            return model.learn(merged, embedded, targets, dropping) if isinstance(model, ImageClassifier) else (model.loss(merged, embedded, targets), fixed)

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, state = transformation.update(grads, state, trained)
        return model.merge(optax.apply_updates(trained, updates), after), state, value  # type: ignore[arg-type]

    return step


def _sharded(batch_size: int) -> Callable[[Any], Array]:
    """A function that shards a batch over the largest number of local devices that divides its size."""
    local = jax.local_devices()
    count = next(n for n in range(len(local), 0, -1) if batch_size % n == 0)
    placed = jax.sharding.NamedSharding(jax.sharding.Mesh(np.asarray(local[:count]), ("samples",)), jax.sharding.PartitionSpec("samples"))
    return lambda values: jax.device_put(values, placed)
