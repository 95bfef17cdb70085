"""Structure that survives masking: completion of dense layers, sums of zero, inputs in closed form, labels under masks, the mask as evidence."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.completion import fill_hidden, low_rank, sum_to_zero
from selgrad.attacks.hidden import fill, mask_evidence
from selgrad.attacks.labels import plausible, published
from selgrad.base import Batch, Evidence, GradientContext, InputSpec
from selgrad.errors import UsageError
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS
from selgrad.significance import METRICS


def factors(rng, rank, height=300, width=80):
    delta = rng.normal(size=(rank, width)) * np.exp(rng.normal(size=(rank, width)))
    return (rng.uniform(0.05, 1, (height, rank)) @ delta).astype(np.float32)


def by_magnitude(matrix, share):
    return np.abs(matrix) >= np.quantile(np.abs(matrix), 1 - share)


@pytest.mark.parametrize(("rank", "share"), [(1, 0.9), (1, 0.99), (2, 0.9), (4, 0.7)])
def test_what_is_completed_is_right_where_the_largest_entries_are_hidden(rank, share):
    matrix = factors(np.random.default_rng(rank), rank)
    hidden = by_magnitude(matrix, share)
    filled, still, _ = low_rank(matrix, hidden, rank)
    gained = hidden & ~still
    assert gained.sum() > 0.01 * hidden.sum()
    np.testing.assert_allclose(filled[gained], matrix[gained], rtol=5e-3, atol=1e-5 * np.abs(matrix).max())
    np.testing.assert_array_equal(filled[~hidden], matrix[~hidden])
    assert not (still & ~hidden).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 0.95), st.floats(0.0, 0.7))
def test_nothing_wrong_is_claimed_for_sparse_inputs_and_random_masks(seed, share, zeros):
    """A black pixel or a silent unit must not be taken for one that is merely hidden."""
    rng = np.random.default_rng(seed)
    x, delta = rng.uniform(0.1, 1, 120) * (rng.random(120) >= zeros), rng.normal(size=40) * (rng.random(40) >= zeros)
    matrix = np.outer(x, delta).astype(np.float32)
    hidden = rng.random(matrix.shape) < share
    filled, still, _ = low_rank(matrix, hidden, 1)
    gained = hidden & ~still
    np.testing.assert_allclose(filled[gained], matrix[gained], rtol=1e-3, atol=1e-6)


def test_a_matrix_of_full_rank_is_left_alone():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(100, 40))
    hidden = rng.random(matrix.shape) < 0.3
    _, still, said = low_rank(matrix, hidden, 3)
    assert (still == hidden).all() and "does not predict" in said
    assert low_rank(matrix, hidden, 30)[2].endswith("no redundancy")


def test_one_hidden_entry_of_a_row_that_sums_to_zero_is_recovered():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 5))
    matrix -= matrix.mean(axis=1, keepdims=True)
    hidden = np.zeros(matrix.shape, bool)
    hidden[:10, 2], hidden[3, 4] = True, True
    filled, still = sum_to_zero(matrix, hidden)
    assert still.sum() == 2 and still[3].sum() == 2
    np.testing.assert_allclose(filled[~still], matrix[~still], atol=1e-12)


def client(activation="sigmoid", batch_size=1, ratio=0.0, metric="magnitude", model="mlp", key=0, shape=(8, 8, 1), width=64, local=None, **given):
    spec = InputSpec(shape, 10)
    net = MODELS[model](spec, activation=activation, **({"width": width} if model == "mlp" else {}))
    params, update = net.init(jax.random.key(key)), UPDATES["fedavg" if local else "gradient"](batch_size=batch_size, **(local or {}))
    keys = jax.random.split(jax.random.key(key + 100))
    batch = Batch(jax.random.uniform(keys[0], (batch_size, *shape), minval=0.05), jax.random.randint(keys[1], (batch_size,), 0, 10, jnp.int32))
    grads = jax.jit(lambda p, b: update.client(net, p, b, jax.nn.one_hot(b.labels, 10)))(params, batch)
    context = GradientContext(model=net, params=params, batch=batch, update=update, grads=grads, key=jax.random.key(1))
    mask = trees.top(trees.rank(METRICS[metric]()(context)), trees.count(ratio, trees.size(grads)))
    return context, observe(net, update, params, grads, mask, **given)


def test_the_rung_complete_fills_in_true_values_and_says_which():
    context, seen = client(ratio=0.5, metric="random")
    after, report = fill_hidden(seen)
    before, left = (sum(int(m.sum()) for m in jax.tree.leaves(o.mask)) for o in (seen, after))
    assert left < 0.01 * before
    for truth, found, mask in zip(*map(jax.tree.leaves, (context.grads, after.visible, after.mask)), strict=True):
        np.testing.assert_allclose(np.where(mask, 0, found), np.where(mask, 0, truth), rtol=1e-3, atol=1e-6)
    assert json.loads(report)["used"]


def images_found(activation, batch_size, ratio, metric="magnitude", local=None):
    context, seen = client(activation, batch_size, ratio, metric, shape=(12, 12, 1), width=max(64, 20 * batch_size), local=local)
    found = ATTACKS["rank_one"]().reconstruct(jax.random.key(0), seen)
    truth = np.asarray(context.batch.inputs)
    errors = [((np.asarray(found.inputs) - image) ** 2).mean(axis=(1, 2, 3)) for image in truth]
    nearest = [int(e.argmin()) for e in errors]
    labels = [int(found.labels[i]) for i in nearest] == list(np.asarray(context.batch.labels))
    return [float(e.min()) for e in errors], labels, json.loads(found.report)


@pytest.mark.parametrize(
    ("activation", "batch_size", "ratio"), [("sigmoid", 1, 0.9), ("relu", 1, 0.3), ("relu", 2, 0.0), ("relu", 4, 0.0), ("relu", 4, 0.1), ("relu", 16, 0.0)]
)
def test_inputs_are_read_off_the_first_layer(activation, batch_size, ratio):
    errors, labels, report = images_found(activation, batch_size, ratio)
    assert max(errors) < 1e-6, report
    assert ratio > 0.5 or labels


@pytest.mark.parametrize(("activation", "batch_size", "ratio", "local_batch_size"), [("sigmoid", 1, 0.5, 1), ("relu", 2, 0.0, 2), ("relu", 2, 0.0, 1)])
def test_inputs_are_read_off_the_sum_of_local_steps(activation, batch_size, ratio, local_batch_size):
    """Every step reads the same inputs, so the sum of the steps is of their rank."""
    errors, _, report = images_found(activation, batch_size, ratio, local={"num_steps": 4, "learning_rate": 0.01, "local_batch_size": local_batch_size})
    assert max(errors) < 1e-6, report


def test_a_second_client_compiles_nothing():
    """Thousands of cells of a sweep would otherwise exhaust the memory maps of the process."""
    module, before = importlib.import_module("selgrad.attacks.rank_one"), None
    for key in range(3):
        _, seen = client(key=0)
        seen = seen.with_first(visible=jax.tree.map(lambda g, k=key: g * (1 + k), seen.visible))
        ATTACKS["rank_one"]().reconstruct(jax.random.key(0), seen)
        before = before or module._updates_by_label._cache_size()
    assert module._updates_by_label._cache_size() == before


def test_hiding_the_whole_first_layer_leaves_nothing_to_read():
    errors, _, report = images_found("sigmoid", 1, 1.0)
    assert min(errors) > 0.05 and not report["used"]


@pytest.mark.parametrize(("size", "units"), [(3, 200), (25, 400)])
def test_sparse_relu_directions_are_those_of_single_inputs(size, units):
    """Batches of 25 are the largest that are published for passive attackers (dimitrov2024spear); half of each delta is 0, and pairs are of one class."""
    separate, rng = importlib.import_module("selgrad.attacks.rank_one").separate, np.random.default_rng(0)
    classes = rng.normal(size=(-(-size // 2), units)).repeat(2, axis=0)[:size]
    delta = (classes + 0.1 * rng.normal(size=(size, units))) * (rng.random((size, units)) < 0.5)
    inputs = np.concatenate([rng.normal(size=(size, 30)), np.ones((size, 1))], axis=1)
    u, s, vt = np.linalg.svd(inputs.T @ delta, full_matrices=False)
    found, how = separate(u[:, :size] * s[:size], vt[:size], rng, 20_000)
    found = found / found[:, -1:]
    assert how == "sparse relu gradients"
    for row in inputs:
        assert np.abs(found - row).max(axis=1).min() < 1e-6


def test_rank_one_says_that_it_needs_a_dense_first_layer():
    _, seen = client(model="lenet")
    with pytest.raises(UsageError, match="dense layer whose inputs are the pixels"):
        ATTACKS["rank_one"]().reconstruct(jax.random.key(0), seen)


def test_labels_are_found_where_the_last_layer_is_hidden_whole():
    right = {published: 0, plausible(): 0}
    for k in range(10):
        context, seen = client(key=k)
        mask = {**seen.mask, "fc_2": jax.tree.map(jnp.ones_like, seen.mask["fc_2"])}
        seen = observe(context.model, context.update, context.params, context.grads, mask)
        for rule in right:
            found = rule(jax.random.key(k), seen, fill(seen, "ignore"))
            right[rule] += int(found.labels[0, 0]) == int(context.batch.labels[0])
        assert not found.certain and sorted(found.labels[:, 0].tolist()) == list(range(10)), "every class is left to be tried"
    by_columns, by_trial = right.values()
    assert by_trial >= 8 > 5 > by_columns


def test_labels_are_the_published_ones_where_columns_are_visible():
    for k in range(3):
        context, seen = client(key=k)
        found = plausible()(jax.random.key(0), seen, fill(seen, "ignore"))
        assert found.certain and found.labels[0, 0] == context.batch.labels[0]


class TestEvidence:
    @pytest.mark.parametrize("metric", ["magnitude", "product", "fisher"])
    def test_nothing_is_lost_at_the_truth_and_something_elsewhere(self, metric):
        context, seen = client(ratio=0.2, metric=metric)
        seen = dataclasses.replace(seen, evidence=Evidence(METRICS[metric]()))
        penalty = lambda x: float(self.penalty(context, seen, x))
        assert penalty(context.batch.inputs) < 1e-9
        assert penalty(jax.random.uniform(jax.random.key(9), context.batch.inputs.shape)) > 1e-6

    @staticmethod
    def penalty(context, seen, x):
        labels = context.labels
        candidate = context.update(context.model, context.params, x, labels)
        return mask_evidence(context.key, seen, candidate, x, labels, fill(seen, "ignore").inverse)

    def test_for_magnitude_it_is_the_hinge_on_the_largest_visible_entry(self):
        context, seen = client(ratio=0.2)
        seen = dataclasses.replace(seen, evidence=Evidence(METRICS["magnitude"]()))
        x = jax.random.uniform(jax.random.key(9), context.batch.inputs.shape)
        candidate = context.update(context.model, context.params, x, context.labels)
        visible, hidden, dummy = (np.asarray(trees.ravel(tree)) for tree in (seen.visible, seen.mask, candidate))
        tau = np.abs(visible).max()
        expected = (np.maximum(tau - np.abs(dummy[hidden]), 0) ** 2).sum() / (visible**2).sum()
        np.testing.assert_allclose(self.penalty(context, seen, x), expected, rtol=1e-4)

    def test_a_mask_that_does_not_depend_on_the_data_says_nothing(self):
        context, seen = client(ratio=0.2, metric="random")
        seen = dataclasses.replace(seen, evidence=Evidence(METRICS["random"]()))
        slope = jax.grad(lambda x: self.penalty(context, seen, x))(context.batch.inputs)
        assert not np.asarray(slope).any()

    @pytest.mark.parametrize(
        ("metric", "arguments"),
        [(name, {}) for name in METRICS] + [("sensitivity", {"target": "labels"}), ("sensitivity", {"target": "inputs", "num_probes": 2})]
        + [("distance", {"reading": reading}) for reading in ("gradient_l2", "gradient_cosine", "proxy", "leverage", "posterior")],
    )  # fmt: skip
    def test_every_metric_can_be_differentiated_by_a_dummy_where_entries_do_not_depend_on_it(self, problem, spec, metric, arguments):
        """A relu network has units that are off, whose entries and rows of J are exactly 0."""
        p = problem(dataclasses.replace(spec, shape=(4, 4, 1)))
        score = METRICS[metric](**arguments)
        ranks = trees.rank(jax.jit(score)(p.context))
        seen = observe(p.model, p.update, p.params, p.grads, trees.top(ranks, 50), evidence=Evidence(score))
        slope = jax.jit(jax.grad(lambda x: self.penalty(p.context, seen, x)))(p.batch.inputs + 0.1)
        assert np.isfinite(slope).all()

    def test_per_leaf_thresholds_are_per_leaf(self):
        context, _ = client()
        scores = jax.tree.map(jnp.abs, context.grads)
        mask = jax.tree.map(lambda s: s >= jnp.quantile(s, 0.8), scores)
        seen = observe(context.model, context.update, context.params, context.grads, mask, evidence=Evidence(METRICS["magnitude"](), per_leaf=True))
        assert float(self.penalty(context, seen, context.batch.inputs)) < 1e-9

    def test_an_attacker_that_does_not_know_the_metric_is_told_so(self):
        context, seen = client(ratio=0.2)
        with pytest.raises(UsageError, match="evidence"):
            self.penalty(context, seen, context.batch.inputs)


@pytest.mark.parametrize("rung", ["bounded", "complete"])
def test_a_rung_that_knows_more_is_never_worse(rung):
    """By all that it knows, from the same starts, whatever is hidden; a harder landscape alone would make it worse."""
    for k, ratio in ((0, 0.1), (1, 0.5), (2, 0.8)):
        _, seen = client(key=k, ratio=ratio)
        seen = dataclasses.replace(seen, evidence=Evidence(METRICS["magnitude"]()))
        plain, more = (ATTACKS["idlg"](hidden=hidden, num_steps=4, start="grey") for hidden in ("ignore", rung))
        told = seen if more.prepare is None else more.prepare(seen, lambda identity, make, shapes: make())[0]
        ignored = jax.jit(plain.reconstruct)(jax.random.key(k), seen)
        found = jax.jit(dataclasses.replace(more, prepare=None).reconstruct)(jax.random.key(k), told)
        by_rung = jax.jit(more.objective)(told, ignored.inputs, ignored.labels)
        # Below 1e-12 a share of the squared gradient is float32's rounding.
        assert float(found.objective) <= float(by_rung) * (1 + 1e-3) + 1e-12, (k, ratio)
        assert found.all_inputs.shape[0] == 1 and int(found.restart) == 0


def test_what_was_completed_is_told_apart():
    _, seen = client(ratio=0.3)
    told, _ = ATTACKS["idlg"](hidden="complete").prepare(seen, lambda identity, make, shapes: make())
    for before, after, filled in zip(*map(jax.tree.leaves, (seen.mask, told.mask, told.completed[0])), strict=True):
        np.testing.assert_array_equal(filled, np.asarray(before) & ~np.asarray(after))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(told.completed))


def test_the_label_of_a_network_that_is_certain_is_what_no_gradient_speaks_against():
    """p_y - 1 is 0 in float32 while the other probabilities are not, down to 1e-30."""
    context, seen = client()
    label = int(context.batch.labels[0])
    chances = np.logspace(-30, -8, 10).astype(np.float32)
    chances[label] = 0
    features = np.random.default_rng(0).random(64).astype(np.float32)
    head = {"kernel": jnp.asarray(features[:, None] * chances), "bias": jnp.asarray(chances)}
    told = seen.with_first(visible={**jax.tree.map(lambda leaf: 1e-9 * leaf, seen.visible), "fc_2": head})
    found = plausible()(jax.random.key(0), told, fill(told, "ignore"))
    assert found.certain and found.labels[0, 0] == label
