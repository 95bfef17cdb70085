"""BERT and GPT-2 against float64 values computed with PyTorch: logits, losses, every gradient, matching objectives and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from selgrad import trees
from selgrad.attacks.distances import cosine, mean_leaf_cosine, squared_l2
from selgrad.attacks.hidden import Target
from selgrad.base import Batch, TextSpec, embedding_of, loss_gradient
from selgrad.models import MODELS
from selgrad.models.huggingface import named_leaves

TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
CASES = {"bert-classifier": ("bert", "classification"), "gpt2-classifier": ("gpt2", "classification"), "gpt2-lm": ("gpt2", "causal_lm")}
# transformers computes a language model's loss in float32 whatever the model's precision (the stored loss is a float32 number), so what comes
# after the logits agrees to float32's rounding, 6e-8; measured: 4.6e-8 at most. The logits themselves agree to 1e-15.
FLOAT32_LOSS = {"gpt2-lm": 1e-7}
DISTANCES = {"l2": squared_l2, "cosine_all": cosine, "cosine_mean_per_leaf": mean_leaf_cosine}


def relative(found, expected):
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


class Reference:
    def __init__(self, folder, case, dtype):
        name, task = CASES[case]
        self.tolerance = max(TOLERANCES[dtype], FLOAT32_LOSS.get(case, 0))
        self.dtype, self.values = dtype, np.load(folder / case / "reference.npz")
        self.gradients = safetensors.numpy.load_file(folder / case / "gradients.safetensors")
        self.model = MODELS[name](TextSpec((9,), 2, 101), pretrained=str(folder / case), task=task, embedding="sent")
        self.params = jax.tree.map(lambda leaf: leaf.astype(dtype), self.model.init(jax.random.key(0)))
        self.batch = Batch(
            jnp.asarray(self.values["input_ids"], jnp.int32),
            jnp.asarray(self.values["labels"], jnp.int32),
            jnp.asarray(self.values["attention_mask"] > 0),
        )
        self.labels = jax.nn.one_hot(self.model.targets(self.batch), self.model.input_spec.num_classes, dtype=dtype)


@pytest.fixture
def agree(record_property):
    """Asserts that an error is below a tolerance, and leaves both in pytest's XML report, from which `benchmarks/parity/transformers.py` makes its table."""

    def check(quantity, error, tolerance, where=""):
        record_property("parity", f"{quantity} {error:.3e} {tolerance:.0e}")
        assert error < tolerance, f"{quantity} {where}"

    return check


@pytest.fixture(params=TOLERANCES)
def dtype(request):
    if request.param == "float64":
        jax.config.update("jax_enable_x64", True)
    yield request.param
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=CASES)
def case(request, reference_folder, dtype):
    return Reference(reference_folder, request.param, dtype)


def test_logits_and_loss(case, agree):
    model, tolerance = case.model, TOLERANCES[case.dtype]
    embedded = model.embed(case.params, case.batch.inputs)
    logits, valid = model.logits(case.params, embedded, case.batch.valid), np.asarray(case.batch.valid)
    expected = case.values["logits"]
    if model.task == "causal_lm":
        # What a padded position says depends on what the padding holds and enters no loss.
        logits, expected = np.asarray(logits)[valid], expected[valid]
    agree("logits", relative(logits, expected), tolerance)
    loss = float(model.loss(case.params, embedded, case.labels, case.batch.valid))
    agree("loss", abs(loss / float(case.values["loss"]) - 1), case.tolerance)


def test_the_language_models_loss_is_that_of_the_reference_logits(reference_folder, x64):
    values = np.load(reference_folder / "gpt2-lm" / "reference.npz")
    assert float(np.float32(values["loss"])) == float(values["loss"]), "the reference's loss is no longer rounded to float32: tighten FLOAT32_LOSS"
    case = Reference(reference_folder, "gpt2-lm", "float64")
    logits = values["logits"] - values["logits"].max(axis=-1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = [-scores[b, t - 1, values["labels"][b, t]] for b in range(3) for t in range(1, 9) if values["labels"][b, t] != -100]
    found = case.model.loss(case.params, case.model.embed(case.params, case.batch.inputs), case.labels, case.batch.valid)
    np.testing.assert_allclose(float(found), np.mean(expected), rtol=1e-12)


def test_every_parameter_gradient(case, agree):
    grads = jax.jit(lambda p: loss_gradient(case.model, p, embedding_of(case.model, case.batch), case.labels, case.batch.valid))(case.params)
    names = {}
    for path, name, transposed in named_leaves(case.model, case.params):
        found = np.asarray(trees.subtree(grads, path))
        names[name] = relative(found.T if transposed else found, case.gradients[name]) if np.linalg.norm(case.gradients[name]) > 1e-12 else 0.0
    assert set(names) == set(case.gradients)
    # The key's bias has gradient 0 up to rounding: softmax does not see what is added to all scores of a row.
    worst = {n: e for n, e in names.items() if not n.endswith("self.key.bias")}
    agree("worst_parameter_gradient", max(worst.values()), case.tolerance, max(worst, key=worst.get))


def test_matching_objectives_and_their_derivatives(case, agree):
    model = case.model
    first = Batch(case.batch.inputs[:1], case.batch.labels[:1])
    labels = case.labels[:1]
    mine = jax.jit(lambda params: loss_gradient(model, params, embedding_of(model, first), labels))(case.params)
    keep = lambda tree: trees.partition(tree, lambda path: path not in model.bypassed)[0]
    target = Target.of(keep(mine), jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), keep(mine)))

    def objectives(dummy):
        candidate = keep(loss_gradient(model, case.params, lambda _: dummy, labels))
        # Ours is relative to the observed gradient's norm, the published one is in its units.
        units = {"l2": 1 / target.inverse**2}
        values = {name: units.get(name, 1) * distance(candidate, target) for name, distance in DISTANCES.items()}
        return values, values

    # All of them in one program: what they differ in is small beside the gradient that they share.
    slopes, values = jax.jit(jax.jacrev(objectives, has_aux=True))(jnp.asarray(case.values["dummy_embeddings"], case.dtype))
    for name in DISTANCES:
        agree(f"match_{name}", abs(float(values[name]) / float(case.values[f"match_{name}"]) - 1), case.tolerance)
        agree(f"match_{name}_derivative", relative(slopes[name], case.values[f"match_{name}_grad"]), case.tolerance)
