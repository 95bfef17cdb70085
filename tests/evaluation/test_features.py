"""Features of a trained network, against a forward pass by hand and against what such features are for."""

import jax
import numpy as np
import pytest

from selgrad import checkpoints, run_sweep
from selgrad.base import InputSpec, TextSpec
from selgrad.config import FeaturesConfig
from selgrad.data import DATASETS
from selgrad.errors import UsageError
from selgrad.evaluation import identified_images
from selgrad.evaluation.features import HiddenLayer
from selgrad.experiment import Setting
from selgrad.modality import hidden_layer
from selgrad.models import MODELS
from selgrad.registry import make_spec

SPEC = InputSpec((8, 8, 1), 10, (0.2,), (0.5,))


def test_features_are_what_the_last_layer_reads():
    model = MODELS["mlp"](SPEC, activation="relu", width=32)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    images = np.random.default_rng(0).random((130, 8, 8, 1), np.float32)
    hidden = ((images - 0.2) / 0.5).reshape(130, 64)
    for layer in sorted(params)[:-1]:
        hidden = np.maximum(hidden @ params[layer]["kernel"] + params[layer]["bias"], 0)
    layer = HiddenLayer(model, params)
    np.testing.assert_allclose(layer(images), hidden / np.linalg.norm(hidden, axis=1, keepdims=True), atol=1e-5)
    assert layer.kept(images) is layer.kept(images) and layer(images[:0]).shape[0] == 0


def test_a_trained_network_knows_more_pictures_that_moved_than_pixels_do(data_folder):
    """Of 40 pictures that were moved by three pixels and mirrored, among 300 others, by the features of a ResNet-20 that was trained on such ones."""
    data = lambda **chosen: DATASETS["cifar10"](path=str(data_folder / "cifar10"), **chosen)
    truths, others = (np.asarray(data(**chosen).pixels) for chosen in ({"count": 40}, {"count": 300, "offset": 100}))
    weights = data_folder / "weights" / "resnet20-cifar10" / "resnet20-12fca82f.safetensors"
    given = FeaturesConfig.parse({"model": {"name": "resnet", "checkpoint": str(weights)}, "normalisation": "imagenet"})
    layer, moved = hidden_layer(given, data(count=1).spec), np.ascontiguousarray(np.roll(truths, (3, 3), (1, 2))[:, :, ::-1])
    found = lambda features: identified_images(truths, moved, others, features)
    mine, theirs, rest = layer(truths), layer(moved), layer(others)
    assert found((mine, theirs, rest)) > 1.5 * found(None) > 0 and mine.shape == (40, 64)
    assert ((mine * theirs).sum(axis=1) > (rest @ theirs.T).mean(axis=0)).mean() > 0.9


def test_one_feature_decides_where_pixels_do_not():
    rng = np.random.default_rng(0)
    truths, others = rng.random((2, 4, 4, 1), np.float32), rng.random((9, 4, 4, 1), np.float32)
    unit = lambda *rows: np.asarray(rows, np.float32)
    features = unit([1, 0], [0, 1]), unit([1, 0], [1, 0]), np.tile(unit([0.6, 0.8]), (9, 1))
    assert identified_images(truths, others[:2], others) == 0
    assert identified_images(truths, others[:2], others, features) == 0.5


def test_records_hold_the_distance_and_another_network_is_another_sweep(tmp_path):
    trained = MODELS["lenet"](DATASETS["digits"](count=1).spec)
    checkpoints.save_params(tmp_path / "trained", trained.init(jax.random.key(3)))
    sweep = {
        "name": "features", "dataset": {"name": "digits", "count": 2}, "model": "mlp", "metric": "random", "ratio": [0, 1], "encryption": "none", "gallery": 0,
        "attack": "rank_one", "features": {"model": {"name": "lenet", "checkpoint": str(tmp_path / "trained")}},
    }  # fmt: skip
    records = run_sweep(sweep, tmp_path / "sweep", quiet=True).set_index("ratio")["feature_distance"]
    assert (records[0.0] < 1e-5).all() and (records[1.0] > 1e-4).all()
    without = run_sweep({key: value for key, value in sweep.items() if key != "features"}, tmp_path / "without", quiet=True)
    assert "feature_distance" not in without or without["feature_distance"].isna().all()


def test_networks_that_tell_nothing_are_refused(tmp_path):
    trained = MODELS["lenet"](DATASETS["digits"](count=1).spec)
    checkpoints.save_params(tmp_path / "trained", trained.init(jax.random.key(3)))
    network = {"name": "lenet", "checkpoint": str(tmp_path / "trained")}
    of = lambda dataset, model, features: Setting(
        make_spec("dataset", dataset, {"count": 2}), model, make_spec("update", "gradient"), features=FeaturesConfig.parse(features)
    )  # fmt: skip
    mlp, bert = make_spec("model", "mlp"), make_spec("model", "bert", {"size": "tiny"})
    with pytest.raises(UsageError, match="features: lenet has no trained weights"):
        of("digits", mlp, {"model": "lenet"})
    with pytest.raises(UsageError, match="is of 3 channels and these pictures have 1"):
        of("digits", mlp, {"model": network, "normalisation": "imagenet"})
    with pytest.raises(UsageError, match="the data set holds text"):
        of("sentences", bert, {"model": network})
    with pytest.raises(UsageError, match="features takes no key 'modle'; did you mean 'model'"):
        FeaturesConfig.parse({"modle": network})
    text = MODELS["bert"](TextSpec((8,), 2, 100), size="tiny")
    with pytest.raises(UsageError, match="reads text"):
        HiddenLayer(text, {})
