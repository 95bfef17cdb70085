"""ResNet-20 and a small ViT against float64 values made with PyTorch: logits, losses and every gradient, in evaluation and train mode.

`benchmarks/parity/vision_torch.py` made vision_torch.json; weights, images and directions are drawn here as there.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.base import InputSpec
from selgrad.models import MODELS

SPEC = InputSpec((32, 32, 3), 10)
REFERENCE = json.loads((Path(__file__).parent / "vision_torch.json").read_text())
CASES = {
    "resnet20 evaluation": ("resnet", {"depth": 20, "mode": "evaluation"}),
    "resnet20 train": ("resnet", {"depth": 20, "mode": "train"}),
    "vit": ("vit", {"width": 192, "num_layers": 6, "num_heads": 3, "patch": 4}),
}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


def drawn(name, shape):
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def weight(path, shape):
    path = path.removeprefix("batch_stats/")
    ending, values = path.rsplit("/", 1)[-1], drawn(path, shape)
    if ending == "kernel":
        return values * np.sqrt(2 / np.prod(shape[:-1]))
    return {"scale": 1 + 0.1 * values, "var": np.exp(0.1 * values)}.get(ending, 0.1 * values)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_every_gradient(x64, case, dtype):
    name, arguments = CASES[case]
    model, want = MODELS[name](SPEC, **arguments), REFERENCE[case]
    like = jax.eval_shape(model.init, jax.random.key(0))
    leaves = [jnp.asarray(weight(path, leaf.shape), dtype) for path, leaf in zip(trees.paths(like), jax.tree.leaves(like), strict=True)]
    sent, frozen = model.split(jax.tree.unflatten(jax.tree.structure(like), leaves))
    images, labels = jnp.asarray(drawn("images 214", (2, 32, 32, 3)), dtype), jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(10), 2), dtype)

    @jax.jit
    def of(sent):
        logits = model.logits(model.merge(sent, frozen), images)
        loss, grads = jax.value_and_grad(lambda one: model.loss(model.merge(one, frozen), images, labels))(sent)
        return logits, loss, grads

    with jax.default_matmul_precision("highest"):
        logits, loss, grads = of(sent)
    tolerance = TOLERANCES[dtype]
    # Where a ReLU's argument is within float32's rounding of zero (a few 1e-6 here), one flip moves leaves by 1e-4 to 2e-3 and says nothing about the model.
    assert want["nearest_kink"] is None or want["nearest_kink"] > 2e-5
    np.testing.assert_allclose(logits, want["logits"], rtol=0, atol=tolerance * np.abs(want["logits"]).max())
    assert float(loss) == pytest.approx(want["loss"], rel=tolerance)
    found = {path: np.asarray(leaf, np.float64) for path, leaf in zip(trees.paths(grads), jax.tree.leaves(grads), strict=True)}
    assert set(found) == set(want["gradients"])
    # A bias before a softmax over keys, or before a batch's own mean, has a derivative of exactly zero: there, rounding is held against the whole gradient.
    whole = np.sqrt(sum(leaf["norm"] ** 2 for leaf in want["gradients"].values()))
    for path, leaf in want["gradients"].items():
        scale = max(leaf["norm"], 1e-6 * whole)
        assert abs(np.linalg.norm(found[path]) - leaf["norm"]) <= tolerance * scale, path
        for i, product in enumerate(leaf["products"]):
            # An error of relative size t moves an inner product with a normal direction by about t times the norm; four times that is never passed by chance.
            assert abs((found[path] * drawn(f"{path} {i}", found[path].shape)).sum() - product) <= 4 * tolerance * scale, path
