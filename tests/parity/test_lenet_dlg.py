"""LeNet against float64 values made with PyTorch: gradients, matching objectives, their derivatives, Jacobian rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from selgrad.attacks.distances import cosine, mean_leaf_cosine, squared_l2
from selgrad.attacks.hidden import Target
from selgrad.base import Batch, GradientContext, InputSpec
from selgrad.gradients import UPDATES
from selgrad.jacobian import gaussian_probes, linearise, row_norms, unit_vectors
from selgrad.models import MODELS
from selgrad.significance import METRICS

# One worker makes the fixtures of this file.
pytestmark = pytest.mark.xdist_group("parity")

SPEC = InputSpec((32, 32, 3), 100, (0.0,) * 3, (1.0,) * 3)
LAYERS = {"conv_0": "0", "conv_1": "2", "conv_2": "4", "fc": "7"}
DISTANCES = {"l2": squared_l2, "cosine_all": cosine, "cosine_mean_per_leaf": mean_leaf_cosine}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


def from_torch(tensors, dtype):
    """OIHW convolutions to HWIO; the dense layer reads channels last here and channels first there."""
    tree = {}
    for ours, theirs in LAYERS.items():
        weight = tensors[f"{theirs}.weight"]
        if ours == "fc":
            weight = weight.reshape(100, 12, 8, 8).transpose(0, 2, 3, 1).reshape(100, 768).T
        else:
            weight = weight.transpose(2, 3, 1, 0)
        tree[ours] = {"kernel": jnp.asarray(weight, dtype), "bias": jnp.asarray(tensors[f"{theirs}.bias"], dtype)}
    return tree


@pytest.fixture(scope="module")
def reference(reference_folder):
    folder = reference_folder / "lenet-dlg"
    return dict(np.load(folder / "reference.npz")), load_file(folder / "weights.safetensors"), load_file(folder / "gradients.safetensors")


def image(array, dtype):
    return jnp.asarray(array.transpose(0, 2, 3, 1), dtype)


def relative(found, expected):
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_logits_loss_and_every_gradient(reference, x64, dtype):
    values, weights, gradients = reference
    model, params = MODELS["lenet"](SPEC), from_torch(weights, dtype)
    x, y = image(values["image_nchw"], dtype), jnp.asarray(values["label_onehot"], dtype)
    with jax.default_matmul_precision("highest"):
        assert relative(model.logits(params, x), values["logits"]) < TOLERANCES[dtype]
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
    assert abs(float(loss) / float(values["loss"]) - 1) < TOLERANCES[dtype]
    expected = from_torch(gradients, "float64")
    for layer in LAYERS:
        for leaf in ("kernel", "bias"):
            assert grads[layer][leaf].dtype == dtype
            assert relative(grads[layer][leaf], np.asarray(expected[layer][leaf])) < TOLERANCES[dtype], f"{layer}/{leaf}"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", DISTANCES)
def test_matching_objectives_and_their_derivatives(reference, x64, name, dtype):
    values, weights, gradients = reference
    model, params = MODELS["lenet"](SPEC), from_torch(weights, dtype)
    observed = from_torch(gradients, dtype)
    target = Target.of(observed, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), observed))

    # Ours is relative to the observed gradient's norm, the published one is in its units.
    unit = 1 / target.inverse**2 if name == "l2" else 1

    def objective(x, logits):
        return unit * DISTANCES[name](jax.grad(model.loss)(params, x, jax.nn.softmax(logits)), target)

    dummy = image(values["dummy_image_nchw"], dtype), jnp.asarray(values["dummy_label_logits"], dtype)
    with jax.default_matmul_precision("highest"):
        value, (by_image, by_label) = jax.jit(jax.value_and_grad(objective, (0, 1)))(*dummy)
    assert abs(float(value) / float(values[f"match_{name}"]) - 1) < TOLERANCES[dtype]
    assert relative(by_image, np.asarray(image(values[f"match_{name}_grad_image"], "float64"))) < TOLERANCES[dtype]
    assert relative(by_label, values[f"match_{name}_grad_label"]) < TOLERANCES[dtype]


def to_ours(flat_indices):
    """Flat indices of the torch layout (100, 12, 8, 8) to flat indices of our kernel (8, 8, 12, 100)."""
    out, channel, row, column = np.unravel_index(flat_indices, (100, 12, 8, 8))
    return np.ravel_multi_index((row, column, channel, out), (8, 8, 12, 100))


def jacobian_rows(values, weights, num_probes):
    """Norms of the reference's 200 rows of the last layer's Jacobian, and the reference's own."""
    model, params = MODELS["lenet"](SPEC), from_torch(weights, "float64")
    y, index = jnp.asarray(values["label_onehot"]), to_ours(values["jacobian_rows_index_7_weight"])

    def rows(x):
        return {"rows": jax.grad(model.loss)(params, x, y)["fc"]["kernel"].reshape(-1)[index]}

    x = image(values["image_nchw"], "float64")

    def norms(x):
        linear = linearise(rows, x)
        if num_probes is None:
            return row_norms(linear, unit_vectors(linear), x.size)
        return row_norms(linear, gaussian_probes(linear, jax.random.key(0), num_probes), num_probes)

    found = jax.jit(norms)(x)["rows"]
    return np.asarray(found), values["jacobian_row_norms_7_weight"]


def test_jacobian_rows(reference, x64):
    values, weights, _ = reference
    exact, expected = jacobian_rows(values, weights, None)
    np.testing.assert_allclose(exact, expected, rtol=1e-9)


def test_the_metric_gives_the_jacobian_rows(reference, x64):
    values, weights, _ = reference
    model, update, params = MODELS["lenet"](SPEC), UPDATES["gradient"](), from_torch(weights, "float64")
    batch = Batch(image(values["image_nchw"], "float64"), jnp.argmax(values["label_onehot"], axis=-1).astype(jnp.int32))
    grads = update(model, params, batch.inputs, jnp.asarray(values["label_onehot"]))
    context = GradientContext(model=model, params=params, batch=batch, update=update, grads=grads, key=jax.random.key(1))
    scores = jax.jit(METRICS["sensitivity"](target="inputs", num_probes=256))(context)
    found = np.asarray(scores["fc"]["kernel"]).reshape(-1)[to_ours(values["jacobian_rows_index_7_weight"])]
    error = found**2 / values["jacobian_row_norms_7_weight"] ** 2 - 1
    assert np.abs(error).max() < 5 * np.sqrt(2 / 256)


def test_hutchinson_probes_agree_with_jacobian_rows_within_their_standard_error(reference, x64):
    values, weights, _ = reference
    probes = 256
    found, expected = jacobian_rows(values, weights, probes)
    error = found**2 / expected**2 - 1
    # A chi-squared mean of 256 draws has relative standard deviation sqrt(2 / 256) = 8.8 %; 200 correlated rows stay within 5 of them.
    assert np.abs(error).max() < 5 * np.sqrt(2 / probes)
    assert error.std() > 0.1 * np.sqrt(2 / probes)
