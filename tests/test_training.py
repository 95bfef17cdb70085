"""Training of image models: it learns, goes on where it was stopped, and leaves weights that attacks and Orbax read."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import selgrad
from selgrad import checkpoints, run_cell, weights
from selgrad.cli.group import cli
from selgrad.data import DATASETS
from selgrad.errors import SelgradError, UsageError
from selgrad.models import MODELS
from selgrad.training import Recipe, accuracy, augment, train

RECIPE = Recipe(num_epochs=8, batch_size=32, learning_rate=0.01)
MODEL = {"name": "mlp", "width": 32}


@pytest.fixture(scope="module")
def digits():
    return DATASETS["digits"](count=600)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, train(digits, MODEL, out, recipe=RECIPE)


def test_it_learns_and_its_accuracy_is_that_of_the_stored_weights(trained, digits):
    out, found = trained
    assert found["test_samples"] == 60 and found["accuracy"] > 0.85 and found["train_accuracy"] > 0.9
    model = MODELS["mlp"](digits.spec, width=32)
    params = weights.load(out / "weights", jax.jit(model.init)(jax.random.key(5)))
    right = float((model.logits(params, jnp.asarray(digits.pixels)).argmax(-1) == digits.labels).mean())
    assert right == pytest.approx(0.9 * found["train_accuracy"] + 0.1 * found["accuracy"], abs=1e-6)


def test_orbax_and_an_experiment_read_what_it_leaves(trained):
    import orbax.checkpoint as ocp

    out, _ = trained
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.restore((out / "weights").absolute())
    assert stored["fc_0"]["kernel"].shape == (64, 32) and not (out / "checkpoints").exists()
    cell = run_cell(dataset={"name": "digits", "count": 1, "offset": 700}, model={**MODEL, "checkpoint": str(out / "weights")}, attack="rank_one", ratio=0.0)
    assert cell.psnr > 40


def test_an_interrupted_training_ends_as_an_uninterrupted_one_and_a_finished_one_is_not_made_again(trained, digits, tmp_path):
    out, found = trained

    def stop(done, total, loss):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(digits, MODEL, tmp_path / "other", recipe=RECIPE, on_progress=stop)
    assert train(digits, MODEL, tmp_path / "other", recipe=RECIPE) == found
    for a, b in zip(*(jax.tree.leaves(checkpoints.restore(one / "weights")) for one in (out, tmp_path / "other")), strict=True):
        np.testing.assert_array_equal(a, b)
    assert train(digits, MODEL, tmp_path / "other", recipe=RECIPE, on_progress=lambda *_: pytest.fail("it is finished")) == found


def test_another_recipe_in_the_same_folder_is_refused_and_says_what_differs(trained, digits):
    with pytest.raises(UsageError, match="differs in seed"):
        train(digits, MODEL, trained[0], recipe=RECIPE._replace(seed=1))
    with pytest.raises(UsageError, match="differs in digest"):
        train(dataclasses.replace(digits, pixels=digits.pixels[::-1]), MODEL, trained[0], recipe=RECIPE)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(100 * x.reshape(len(x), -1))
        x = nn.Dropout(0.2, deterministic=not train)(jax.nn.relu(nn.Dense(32)(x)))
        return nn.Dense(10)(x)


@pytest.mark.parametrize("mode", ["evaluation", "train"])
def test_batch_statistics_are_learnt_and_used_whatever_the_mode(digits, tmp_path, mode):
    model = selgrad.model(Net(), mode=mode, dropout_seed=0 if mode == "train" else None)
    found = train(digits, model, tmp_path / "one", recipe=RECIPE)
    assert found["accuracy"] > 0.85
    built = selgrad.model(Net())(digits.spec)
    params = weights.load(tmp_path / "one" / "weights", built.init(jax.random.key(0)))
    # After 140 steps of momentum 0.9 nothing is left of the start.
    seen = 100 * digits.pixels.reshape(len(digits), -1)
    kept = params["batch_stats"]["BatchNorm_0"]
    assert float(jnp.abs(kept["mean"] - seen.mean(0)).max()) < 0.25 * seen.std(0).max()
    assert np.corrcoef(kept["var"], seen.var(0))[0, 1] > 0.95
    assert accuracy(built, params, digits) == pytest.approx(0.9 * found["train_accuracy"] + 0.1 * found["accuracy"], abs=1e-6)


def test_augmented_pictures_are_the_picture_moved_by_four_pixels_at_most_and_mirrored():
    picture = jax.random.uniform(jax.random.key(0), (6, 7, 2)) + 1
    padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)))
    moved = [padded[i : i + 6, j : j + 7] for i in range(9) for j in range(9)]
    for how in ("crop", "crop_flip"):
        found = np.asarray(augment(jax.random.key(1), jnp.broadcast_to(picture, (64, 6, 7, 2)), how))
        plain, mirrored = (sum(any(np.array_equal(one, other) for other in where) for one in found) for where in (moved, [m[:, ::-1] for m in moved]))
        assert (plain, mirrored) == (64, 0) if how == "crop" else plain + mirrored == 64 and min(plain, mirrored) > 10
        assert len({one.tobytes() for one in found}) > 20
    np.testing.assert_array_equal(augment(jax.random.key(1), picture[None], "none"), picture[None])


def test_what_cannot_be_trained_says_why(digits, tmp_path):
    few = DATASETS["digits"](count=10)
    for given, reason in (
        ({"dataset": few}, "at least 20"), ({"recipe": Recipe(batch_size=1000)}, "batch_size=1000"), ({"recipe": Recipe(learning_rate=-1.0)}, "learning_rate=-1.0"),
        ({"recipe": Recipe(num_epochs=0)}, "num_epochs=0"), ({"test": DATASETS["photos"]()}, "two parts of one data set"), ({"model": "bert"}, "text"),
    ):  # fmt: skip
        arguments = {"dataset": digits, "model": MODEL, **given}
        with pytest.raises(UsageError, match=reason):
            train(arguments.pop("dataset"), arguments.pop("model"), tmp_path / "none", **arguments)
    assert not (tmp_path / "none").exists()
    with pytest.raises(SelgradError, match="diverged"):
        train(digits, MODEL, tmp_path / "wild", recipe=Recipe(num_epochs=30, learning_rate=1e30, optimiser="momentum"))


def test_the_command_trains_measures_and_names_the_weights(tmp_path):
    out = tmp_path / "made"
    asked = ["train", "--dataset", "digits:count=200", "--test", "digits:offset=200,count=100", "--model", "mlp:width=16", "--epochs", "2", "--out", str(out)]
    told = CliRunner().invoke(cli, [*asked, "--json"], standalone_mode=False)
    assert told.exception is None, told.exception
    found = json.loads(told.stdout)
    assert found["test_samples"] == 100 and 0 <= found["accuracy"] <= 1
    again = CliRunner().invoke(cli, asked, standalone_mode=False)
    assert f"--model mlp:width=16,checkpoint={out / 'weights'}" in again.stdout
    refused = CliRunner().invoke(cli, ["train", "--dataset", "sentences", "--out", str(tmp_path / "x")], standalone_mode=False)
    assert isinstance(refused.exception, UsageError) and "holds text" in str(refused.exception)
