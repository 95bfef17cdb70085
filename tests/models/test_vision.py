"""ResNet, ConvNet, VGG and ViT: published sizes, and attacks of the existing set in evaluation and train mode."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import selgrad
from selgrad import run_cell, trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.completion import fill_hidden, tokens_at_most
from selgrad.attacks.priors import batch_statistics
from selgrad.base import Batch, InputSpec
from selgrad.errors import UsageError
from selgrad.experiment.setting import Setting
from selgrad.gradients import UPDATES, disclose, observe
from selgrad.models import MODELS
from selgrad.registry import Spec

CIFAR = InputSpec((32, 32, 3), 10)
SMALL = {
    "resnet": {"depth": 8, "width": 4},
    "convnet": {"width": 2},
    "vgg": {"width": 2},
}


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        # He et al., table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M.
        ("resnet", {"depth": 20}, 269_722), ("resnet", {"depth": 32}, 464_154), ("resnet", {"depth": 44}, 658_586), ("resnet", {"depth": 56}, 853_018),
        ("vit", {"width": 192, "num_layers": 12}, 5_362_762),
    ],
)  # fmt: skip
def test_sizes_are_the_published_ones(name, arguments, count):
    model = MODELS[name](CIFAR, **arguments)
    sent, _ = model.split(jax.eval_shape(model.init, jax.random.key(0)))
    assert trees.size(sent) == count


def test_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match="6 n \\+ 2"):
        MODELS["resnet"](CIFAR, depth=18)
    with pytest.raises(UsageError, match="patch=5 does not divide"):
        MODELS["vit"](CIFAR, patch=5)
    with pytest.raises(UsageError, match="num_heads=5"):
        MODELS["vit"](CIFAR, num_heads=5)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_every_resnet_gives_finite_logits(norm, shortcut):
    model = MODELS["resnet"](InputSpec((12, 12, 1), 10), norm=norm, shortcut=shortcut, **SMALL["resnet"])
    logits = jax.jit(model.logits)(jax.jit(model.init)(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (2, 12, 12, 1)))
    assert logits.shape == (2, 10) and bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("mode", ["evaluation", "train"])
def test_attacks_run_in_both_modes_and_every_restart_comes_nearer_than_any_start(name, mode):
    spec = InputSpec((8, 8, 1), 10)
    # VGG ends on one pixel, where statistics of two samples would leave nothing but signs.
    model, update = MODELS[name](spec, mode=mode, **SMALL[name]), UPDATES["gradient"](batch_size=4)
    params, labels = jax.jit(model.init)(jax.random.key(0)), jnp.asarray([3, 5, 8, 1], jnp.int32)
    batch = jax.random.uniform(jax.random.key(1), (4, *spec.shape))
    grads = jax.jit(lambda p: update(model, p, batch, jax.nn.one_hot(labels, 10)))(params)
    seen = observe(model, update, params, grads, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads), labels=labels)
    attack = ATTACKS["inverting_gradients"](num_steps=100, num_restarts=4, total_variation_weight=0.0)
    run = jax.jit(lambda state, steps: attack.finish(seen, attack.advance(seen, state, steps)))
    state = attack.start(jax.random.key(2), seen)
    starts, ends = run(state, 1), run(state, 100)
    assert not ends.diverged and float(ends.all_objectives.max()) < float(starts.all_objectives.min())


class Normed(nn.Module):
    """As little as has batch statistics: what becomes of them is the classifier's business, whatever the network."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.sigmoid(x))


def test_a_statistic_that_is_sent_is_an_entry_like_every_other():
    def setting(statistics):
        model = selgrad.model(Normed(), mode="train", statistics=statistics)
        return Setting(Spec.of("dataset", "digits"), Spec.of("model", model), Spec.of("update", {"name": "fedavg", "num_steps": 2}), samples=[0])

    sizes = {}
    for statistics in ("kept", "known", "sent", "encrypted"):
        made = setting(statistics)
        assert trees.size(made.client(0).grads) == made.num_total
        sizes[statistics] = made.num_total, made.num_selected(0.0)
    # Means and variances of 8 features.
    kept = sizes["kept"][0]
    assert sizes == {"kept": (kept, 0), "known": (kept, 0), "sent": (kept + 16, 0), "encrypted": (kept + 16, 16)}


def test_a_prior_of_running_statistics_is_what_numpy_makes_of_them():
    """After Yin et al. 2021, equation 9: of one layer, computed by hand; nothing where the batch has just those statistics."""
    spec = InputSpec((8, 8, 1), 10)
    model, update = Spec.of("model", selgrad.model(Normed())).build(spec), UPDATES["gradient"](batch_size=6)
    params, images = jax.jit(model.init)(jax.random.key(0)), np.asarray(jax.random.uniform(jax.random.key(1), (6, *spec.shape)))
    dense = params["Dense_0"]
    features = images.reshape(6, -1) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    mean, variance = features.mean(axis=0), features.var(axis=0)

    def prior(statistics):
        weights = {**params, "batch_stats": {"BatchNorm_0": statistics}}
        grads = model.split(jax.tree.map(jnp.zeros_like, weights))[0]
        seen = observe(model, update, weights, grads, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads))
        return float(batch_statistics(seen, jnp.asarray(images)))

    # Flax moves running statistics by a hundredth of the way; here they are 0.3 and 2.
    expected = np.mean((0.01 * (mean - 0.3)) ** 2 / 2) + np.mean((0.01 * (variance / 2 - 1)) ** 2)
    assert prior({"mean": jnp.full(8, 0.3), "var": jnp.full(8, 2.0)}) == pytest.approx(expected, rel=1e-3)
    assert prior({"mean": jnp.asarray(mean), "var": jnp.asarray(variance)}) < 1e-9 * expected


def test_a_prior_of_statistics_that_there_are_not_is_refused():
    with pytest.raises(UsageError, match="statistics_weight"):
        run_cell(
            dataset={"name": "digits", "count": 1}, model="mlp", attack={"name": "inverting_gradients", "num_steps": 1, "statistics_weight": 1.0}, ratio=0.0
        )


def test_an_attacker_that_knows_statistics_matches_them_though_everything_sent_is_encrypted():
    given = {"dataset": {"name": "digits", "count": 2}, "attack": {"name": "dlg", "num_steps": 3}, "known_labels": True, "ratio": 1.0}
    given |= {"update": {"name": "gradient", "batch_size": 2}}
    known, kept = (run_cell(**given, model=selgrad.model(Normed(), mode="train", statistics=statistics)) for statistics in ("known", "kept"))
    assert known.num_selected == kept.num_selected == known.num_total and known.objective > 0 == kept.objective


def test_what_is_known_is_what_would_have_been_sent():
    """With nothing encrypted, an attacker that knows the statistics and one to whom they were sent hold the same."""
    spec, update = InputSpec((8, 8, 1), 10), UPDATES["fedavg"](num_steps=2, batch_size=2)
    kept, sent = (Spec.of("model", selgrad.model(Normed(), mode="train", statistics=statistics)).build(spec) for statistics in ("known", "sent"))
    params, labels = kept.init(jax.random.key(0)), jnp.asarray([3, 5], jnp.int32)
    batch = Batch(jax.random.uniform(jax.random.key(1), (2, 8, 8, 1)), labels)
    grads, whole = (update.client(model, params, batch, jax.nn.one_hot(labels, 10)) for model in (kept, sent))
    hidden = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), grads)
    seen = disclose(observe(kept, update, params, grads, hidden, noise=jax.tree.map(lambda _: jnp.ones(()), grads)), batch)
    assert seen.model == sent and "batch_stats" not in grads
    jax.tree.map(np.testing.assert_array_equal, seen.visible["batch_stats"], whole["batch_stats"])
    shown = {path: not np.asarray(leaf).all() for path, leaf in zip(trees.paths(seen.mask), jax.tree.leaves(seen.mask), strict=True)}
    assert {path for path, yes in shown.items() if yes} == set(trees.paths({"batch_stats": whole["batch_stats"]}))
    assert jax.tree.structure(seen.noise) == jax.tree.structure(whole) and not any(jax.tree.leaves(seen.noise["batch_stats"]))
    again = disclose(seen, batch)
    assert again is seen


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attack": {"name": "idlg", "hidden": "bounded"}}, "hidden='bounded'"),
        ({"attack": "idlg", "protection": {"name": "dp_gaussian", "clip": 1.0, "noise": 0.1}}, "clips"),
    ],
)
def test_what_does_not_hold_where_statistics_are_known_is_refused(more, said):
    with pytest.raises(UsageError, match=said):
        run_cell(dataset={"name": "digits", "count": 1}, model=selgrad.model(Normed(), mode="train", statistics="known"), ratio=0.1, **more)


def test_certificates_do_not_speak_of_what_is_known_besides(tmp_path):
    config = {
        "dataset": {"name": "digits", "count": 1}, "model": selgrad.model(Normed(), mode="train", statistics="known"), "attack": "idlg",
        "metric": "magnitude", "ratio": [0.1], "encryption": None, "certificates": True,
    }  # fmt: skip
    with pytest.raises(UsageError, match="certificates"):
        selgrad.run_sweep(config, tmp_path / "out", quiet=True)


def test_a_vision_transformers_layers_are_completed_by_their_tokens():
    spec = InputSpec((8, 8, 1), 10)
    model = MODELS["vit"](spec, width=24, num_layers=1, num_heads=2)
    params = jax.jit(model.init)(jax.random.key(0))
    x, y = jax.random.uniform(jax.random.key(1), (1, 8, 8, 1)), jax.nn.one_hot(jnp.asarray([3]), 10)
    update = UPDATES["gradient"]()
    grads = jax.jit(lambda params: update(model, params, x, y))(params)
    drawn = jax.random.uniform(jax.random.key(2), (trees.size(grads),)) < 0.2
    mask = trees.unravel(drawn, grads)
    seen = observe(model, update, params, grads, mask)
    assert tokens_at_most(seen) == 5
    filled, report = fill_hidden(seen)
    kernel = "layer_0/attention/qkv/kernel"
    assert kernel in report and not np.asarray(trees.subtree(filled.mask, kernel)).any()
    np.testing.assert_allclose(
        trees.subtree(filled.visible, kernel), trees.subtree(grads, kernel), atol=1e-4 * float(jnp.abs(trees.subtree(grads, kernel)).max())
    )
    found = jax.jit(ATTACKS["inverting_gradients"](num_steps=2).reconstruct)(jax.random.key(0), seen)
    assert found.inputs.shape == (1, 8, 8, 1)
