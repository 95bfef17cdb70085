"""Stored weights of every format, by the names of their leaves; a ResNet-20 that PyTorch trained, against its reference."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import serialization
from flax.training import train_state
from optax import adam

from selgrad import checkpoints, trees, weights
from selgrad.base import InputSpec
from selgrad.errors import DataError, SelgradError, UsageError
from selgrad.registry import Spec

SPEC = InputSpec((8, 8, 3), 10)


def model(name="resnet", **arguments):
    return Spec.of("model", {"name": name, **arguments}).build(SPEC)


@pytest.fixture(scope="module")
def trained():
    """A small ResNet's parameters, every leaf other than fresh ones."""
    made = model(depth=8, width=4)
    fresh = made.init(jax.random.key(0))
    return made, jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.uniform(jax.random.key(leaf.size), leaf.shape), fresh), fresh


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))


def variables(params):
    return {"params": {k: v for k, v in params.items() if k != "batch_stats"}, "batch_stats": params["batch_stats"]}


def test_orbax_as_everybody_writes_it(trained, tmp_path):
    _, params, like = trained
    state = train_state.TrainState.create(apply_fn=None, params=variables(params)["params"], tx=adam(1e-3))
    whole = {"params": state.params, "batch_stats": params["batch_stats"], "opt_state": jax.tree.leaves(state.opt_state), "step": jnp.asarray(3)}
    with ocp.PyTreeCheckpointer() as one, ocp.StandardCheckpointer() as other:
        one.save(tmp_path / "tree", jax.tree.map(np.asarray, params))
        one.save(tmp_path / "variables", jax.tree.map(np.asarray, variables(params)))
        other.save(tmp_path / "standard", whole)
        other.wait_until_finished()
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        for step, value in ((1, like), (10, params)):
            manager.save(step, args=ocp.args.StandardSave(variables(value)))
        manager.wait_until_finished()
    checkpoints.save(tmp_path / "numbered", params)
    checkpoints.save_params(tmp_path / "named", params)
    for name in ("tree", "variables", "standard", "manager", "numbered", "named"):
        same(weights.load(tmp_path / name, like), params)


def torch_names(params):
    """The same weights under PyTorch's names and in its layouts."""
    found = {}
    for path, leaf in zip(map(str, weights.flat(params)), weights.flat(params).values(), strict=True):
        *layer, ending = path.removeprefix("batch_stats/").split("/")
        layer = ".".join(part.replace("_", ".") for part in layer)
        value = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T if leaf.ndim == 2 else leaf
        name = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[ending]
        found[f"{layer}.{name}"] = np.ascontiguousarray(value)
        if ending == "mean":
            found[f"{layer}.num_batches_tracked"] = np.asarray(7)
    return found


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_pytorch_names_and_layouts_are_turned(trained, tmp_path, prefix):
    _, params, like = trained
    safetensors.numpy.save_file({prefix + name: value for name, value in torch_names(params).items()}, tmp_path / "w.safetensors")
    same(weights.load(tmp_path / "w.safetensors", like), params)


def test_msgpack_and_flax_safetensors(trained, tmp_path):
    _, params, like = trained
    (tmp_path / "w.msgpack").write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, variables(params))))
    safetensors.numpy.save_file({name.replace("/", "."): value for name, value in weights.flat(params).items()}, tmp_path / "w.safetensors")
    for name in ("w.msgpack", "w.safetensors"):
        same(weights.load(tmp_path / name, like), params)


def test_other_names_are_found_by_shape_or_said(trained, tmp_path):
    _, params, like = trained
    tensors = torch_names(params)
    renamed = {name.replace("linear.", "classifier.2."): value for name, value in tensors.items()}
    safetensors.numpy.save_file(renamed, tmp_path / "head.safetensors")
    same(weights.load(tmp_path / "head.safetensors", like), params)
    odd = {name.replace("layer1.0.", "first."): value for name, value in tensors.items()}
    safetensors.numpy.save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(SelgradError, match=r"find no tensor of their name and shape, such as .*layer1_0.*checkpoint_names") as caught:
        weights.load(tmp_path / "odd.safetensors", like)
    assert "\n" not in str(caught.value)
    same(weights.load(tmp_path / "odd.safetensors", like, ["layer1_0=first", "batch_stats/layer1_0=first"]), params)
    with pytest.raises(UsageError, match="not ours=theirs"):
        weights.load(tmp_path / "odd.safetensors", like, ["layer1_0"])
    for file, said in ((tmp_path / "none", "there is no checkpoint"), (tmp_path / "w.bin", "is not a .safetensors or .msgpack file")):
        if file.suffix:
            file.write_bytes(b"x")
        with pytest.raises(SelgradError, match=said):
            weights.load(file, like)
    tensors["linear.bias"] = np.full(10, np.nan, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(SelgradError, match="NaN"):
        weights.load(tmp_path / "nan.safetensors", like)


def test_vision_transformers_of_timm_and_hugging_face(tmp_path):
    made = model("vit", width=12, num_layers=2, num_heads=3)
    params = jax.tree.map(lambda leaf: leaf + jax.random.uniform(jax.random.key(leaf.size), leaf.shape), made.init(jax.random.key(0)))
    timm, hub = {}, {}
    for path, leaf in weights.flat(params).items():
        *layer, ending = path.split("/")
        layer, value = ".".join(layer), leaf
        if path == "patches/kernel":
            value = leaf.reshape(4, 4, 3, 12).transpose(3, 2, 0, 1)
        elif leaf.ndim == 2:
            value = leaf.T
        short = {"kernel": "weight", "scale": "weight"}.get(ending, ending)
        name = f"{layer}.{short}" if layer else ending
        old, new = name, name
        for ours, theirs, hf in (
            ("attention.qkv", "attn.qkv", "attention.attention.qkv"), ("attention.output", "attn.proj", "attention.output.dense"), ("mlp.up", "mlp.fc1", "intermediate.dense"),
            ("mlp.down", "mlp.fc2", "output.dense"), ("attention_norm", "norm1", "layernorm_before"), ("mlp_norm", "norm2", "layernorm_after"),
            ("patches", "patch_embed.proj", "embeddings.patch_embeddings.projection"), ("class_token", "cls_token", "embeddings.cls_token"),
            ("positions", "pos_embed", "embeddings.position_embeddings"), ("head.", "head.", "classifier."),
        ):  # fmt: skip
            if ours in name:
                old, new = name.replace(ours, theirs), name.replace(ours, hf)
                break
        else:
            new = name.replace("norm.", "layernorm.")
        timm[old.replace("layer_", "blocks.")] = np.ascontiguousarray(value)
        new = new.replace("layer_", "encoder.layer.") if "classifier" in new else "vit." + new.replace("layer_", "encoder.layer.")
        if "attention.attention.qkv" in new:
            for part, piece in zip(("query", "key", "value"), np.split(value, 3, axis=0), strict=True):
                hub[new.replace("attention.attention.qkv", f"attention.attention.{part}")] = np.ascontiguousarray(piece)
        else:
            hub[new] = np.ascontiguousarray(value)
    for name, tensors in (("timm", timm), ("hub", hub)):
        (tmp_path / name).mkdir()
        safetensors.numpy.save_file(tensors, tmp_path / name / "model.safetensors")
        same(weights.load(tmp_path / name, params), params)


def test_a_resnet_20_that_pytorch_trained_has_its_logits_and_its_accuracy(data_folder):
    folder = data_folder / "weights" / "resnet20-cifar10"
    reference = json.loads(next(folder.glob("*.reference.json")).read_text())
    data = Spec.of("dataset", {"name": "cifar10", "path": str(data_folder / "cifar10"), "normalisation": "imagenet", "count": 500}).build()
    network = Spec.of("model", {"name": "resnet", "depth": 20}).build(data.spec)
    params = weights.load(next(folder.glob("*.safetensors")), jax.eval_shape(network.init, jax.random.key(0)))
    batch = data.batch(0, 500)
    logits = np.asarray(jax.jit(network.logits)(params, batch.inputs))
    np.testing.assert_allclose(logits[:2], reference["logits of the first 2 images of dev test_batch"], atol=2e-4)
    assert (logits.argmax(axis=1) == np.asarray(batch.labels)).mean() == pytest.approx(reference["dev/test_batch[:500] acc"], abs=1e-6)


class _Simple(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(6)(x.reshape(len(x), -1))))


def test_a_model_of_ones_own_starts_from_its_weights(tmp_path):
    import selgrad

    params = _Simple().init(jax.random.key(5), jnp.zeros((1, 8, 8, 1)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "mine", params)
    from selgrad.experiment import Setting

    network = selgrad.model(_Simple(), checkpoint=str(tmp_path / "mine"))
    setting = Setting(Spec.of("dataset", {"name": "digits", "count": 1}), Spec.of("model", network), Spec.of("update", "gradient"))
    same(setting.client(0).params, params["params"])


def _torch(params):
    """The parameters of a small MLP under PyTorch's names."""
    return {f"{name.replace('/', '.')}": np.asarray(leaf) for name, leaf in zip(trees.paths(params), jax.tree.leaves(params), strict=True)}


@pytest.mark.parametrize("ending", [("gamma", "weight"), ("beta", "bias")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net."])
def test_one_tensor_has_one_value(prefix, ending):
    """Of two values of one tensor nobody knows which the network uses; the same value under two names is no contradiction."""
    from selgrad.models.names import cleaned

    old, new = (f"{prefix if i == 0 else ''}norm.{name}" for i, name in enumerate(ending))
    with pytest.raises(DataError, match="two values of one tensor; keep one"):
        cleaned({old: np.zeros(3), new: np.ones(3)})
    assert list(cleaned({old: np.ones(3), new: np.ones(3)})) == [f"norm.{ending[1]}"] == list(cleaned({old: np.ones(3)}))


def test_a_tensor_of_another_kind_or_without_a_place_is_said(tmp_path):
    made = model("mlp", width=4)
    params = made.init(jax.random.key(0))
    tensors = _torch(params)
    first = next(iter(tensors))
    for kind in (np.int8, bool, np.complex64):
        with pytest.raises(SelgradError, match="needs floats"):
            weights.match({**tensors, first: np.ones(tensors[first].shape, kind)}, params, "it")
    with pytest.warns(UserWarning, match=r"1 tensors have no place in the model, such as deeper\.kernel"):
        same(weights.match({**tensors, "deeper.kernel": np.ones((4, 4), np.float32)}, params, "it"), params)
    with pytest.raises(UsageError, match="'nowhere=x' names no leaf of the model"):
        weights.match(tensors, params, "it", ["nowhere=x"])


def test_a_tensor_in_two_shards_is_damage(tmp_path):
    for name, value in (("a", 0.0), ("b", 1.0)):
        safetensors.numpy.save_file({"w": np.full(3, value, np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    with pytest.raises(DataError, match="holds 'w' in two shards"):
        weights.read(tmp_path)
