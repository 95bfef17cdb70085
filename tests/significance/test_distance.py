"""The distance metrics against dense linear algebra with the whole Jacobian written out, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.errors import UsageError
from selgrad.jacobian import gram, input_jacobian
from selgrad.models import MODELS
from selgrad.significance import METRICS

EPSILON = 1e-3
pytestmark = pytest.mark.usefixtures("x64")


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


class Dense:
    """A client with its Jacobian as a matrix (n, d), by reverse mode, which the metrics do not use."""

    def __init__(self, context, sample=None):
        self.context = context
        labels = context.labels.astype(jnp.float64)
        shape = context.batch.inputs.shape

        def update(x):
            inputs = x.reshape(shape) if sample is None else context.batch.inputs.at[sample].set(x.reshape(shape[1:]))
            return trees.ravel(context.update(context.model, context.params, inputs, labels))

        point = context.batch.inputs if sample is None else context.batch.inputs[sample]
        self.update = update
        self.J = np.asarray(jax.jacrev(update)(point.reshape(-1)))
        self.g = flat(context.grads)
        gram = self.J.T @ self.J
        self.epsilon = EPSILON * np.trace(gram) / len(gram)
        self.B = np.linalg.inv(gram + self.epsilon * np.eye(len(gram)))


@pytest.fixture(scope="module")
def sigmoid_client(problem, spec, double):
    """A factory of clients of a sigmoid network on 4x4 images, in float64."""

    def make(batch_size=1, size=4):
        p = problem(dataclasses.replace(spec, shape=(size, size, 1)), batch_size=batch_size)
        model = MODELS["mlp"](p.model.input_spec, width=16, activation="sigmoid")
        return double(dataclasses.replace(p.context, model=model, params=jax.jit(model.init)(jax.random.key(0))))

    return make


@pytest.fixture
def client(sigmoid_client, x64, cache={}):  # noqa: B006 (one Jacobian for all tests)
    if not cache:
        cache["client"] = Dense(sigmoid_client())
    return cache["client"]


def score(client, context=None, **arguments):
    return flat(jax.jit(METRICS["distance"](epsilon=EPSILON, **arguments))(context or client.context))


def expected(client, reading):
    solved = np.linalg.norm(client.J @ client.B, axis=1)
    leverage = np.einsum("nd,de,ne->n", client.J, client.B, client.J)
    return {
        "gradient_l2": client.g**2,
        "proxy": np.abs(client.g) * np.linalg.norm(client.J, axis=1),
        "solved": np.abs(client.g) * solved,
        "leverage": leverage,
        "posterior": solved**2 / (1 - leverage),
    }[reading]


@pytest.mark.parametrize("reading", ["gradient_l2", "proxy", "solved", "leverage", "posterior"])
def test_readings_equal_dense_linear_algebra(client, reading):
    np.testing.assert_allclose(score(client, reading=reading), expected(client, reading), rtol=1e-7, atol=1e-15)


def test_solved_is_how_far_taking_an_entry_for_zero_moves_the_first_order_reconstruction(client):
    """The minimum over dx of |J dx + M g|^2 + eps |dx|^2 by least squares on the stacked system."""
    scores, size = score(client, reading="solved"), client.J.shape[1]
    stacked = np.concatenate([client.J, np.sqrt(client.epsilon) * np.eye(size)])
    for i in np.argsort(scores)[[0, len(scores) // 2, -2, -1]]:
        target = np.zeros(len(stacked))
        target[i] = -client.g[i]
        moved = np.linalg.lstsq(stacked, target, rcond=None)[0]
        assert np.linalg.norm(moved) == pytest.approx(scores[i], rel=1e-6, abs=1e-12)


def test_solved_predicts_where_matching_with_a_hidden_entry_ends(client):
    """Not to first order but for real: Gauss-Newton on |g(x) - (1 - M) g|^2 + eps |x - x_0|^2, for an entry small enough to stay near x_0."""
    scores = score(client, reading="solved")
    i = int(np.argsort(scores)[len(scores) // 3])
    wanted = client.g.copy()
    wanted[i] = 0
    start = np.asarray(client.context.batch.inputs).reshape(-1)
    x, jacobian = start.copy(), jax.jit(jax.jacrev(client.update))
    for _ in range(20):
        J, error = np.asarray(jacobian(jnp.asarray(x))), np.asarray(client.update(jnp.asarray(x))) - wanted
        slope = J.T @ error + client.epsilon * (x - start)
        x = x - np.linalg.solve(J.T @ J + client.epsilon * np.eye(len(x)), slope)
    assert np.linalg.norm(x - start) == pytest.approx(scores[i], rel=0.02)


def test_cosine_reading_is_the_turn_of_the_visible_gradient_and_has_magnitudes_mask(client):
    found, g = score(client, reading="gradient_cosine"), client.g
    for i in np.argsort(-np.abs(g))[:5]:
        visible = g.copy()
        visible[i] = 0
        assert found[i] == pytest.approx(1 - visible @ g / np.linalg.norm(visible) / np.linalg.norm(g), rel=1e-6)
    context = client.context
    for reading in ("gradient_l2", "gradient_cosine"):
        scores = METRICS["distance"](reading=reading)(context)
        for ratio in (0.01, 0.1, 0.5):
            count = trees.count(ratio, len(g))
            np.testing.assert_array_equal(flat(trees.rank(scores)) < count, flat(trees.rank(METRICS["magnitude"]()(context))) < count)


def test_leverage_is_what_hiding_an_entry_does_to_the_determinant_and_posterior_to_the_trace(client):
    leverage, posterior = score(client, reading="leverage"), score(client, reading="posterior")
    whole = np.linalg.inv(client.B)
    assert (leverage >= 0).all() and (leverage < 1).all()
    for i in np.argsort(-leverage)[[0, 3, 50]]:
        less = whole - np.outer(client.J[i], client.J[i])
        assert np.linalg.slogdet(less)[1] - np.linalg.slogdet(whole)[1] == pytest.approx(np.log(1 - leverage[i]), rel=1e-6)
        assert np.trace(np.linalg.inv(less)) - np.trace(client.B) == pytest.approx(posterior[i], rel=1e-5)


@pytest.mark.parametrize("reading", ["leverage", "posterior", "solved"])
def test_blocks_are_scored_again_after_each(client, reading):
    """Three blocks by hand, with dense matrices."""
    n, blocks = len(client.g), 3
    scores = score(client, reading=reading, num_blocks=blocks)
    hidden = np.zeros(n, bool)
    for block in range(blocks):
        if reading == "solved":
            moved = client.B @ client.J.T @ np.where(hidden, client.g, 0)
            own = client.g[:, None] * (client.J @ client.B)
            value = (own**2).sum(1) + 2 * own @ moved
        else:
            visible = client.J[~hidden]
            inverse = np.linalg.inv(visible.T @ visible + client.epsilon * np.eye(client.J.shape[1]))
            leverage = np.einsum("nd,de,ne->n", client.J, inverse, client.J)
            value = leverage if reading == "leverage" else (np.linalg.norm(client.J @ inverse, axis=1) ** 2) / np.maximum(1 - leverage, 1e-3)
        take = (block + 1) * n // blocks - block * n // blocks
        chosen = np.argsort(np.where(hidden, np.inf, -value), kind="stable")[:take]
        # Which entries make up a block, up to ties at its edge.
        found = np.flatnonzero((scores > blocks - block - 1) & (scores <= blocks - block))
        assert len(found) == take
        edge = value[chosen].min()
        assert (value[np.setdiff1d(found, chosen)] >= edge * (1 - 1e-6) - 1e-12).all()
        hidden[found] = True


def test_probes_agree_within_their_standard_error(client):
    for reading in ("proxy", "solved", "leverage"):
        exact, probes = score(client, reading=reading), 400
        found = score(client, reading=reading, num_probes=probes)
        keep = exact > 1e-6 * exact.max()
        power = 1 if reading == "leverage" else 2
        error = (found[keep] / exact[keep]) ** power - 1
        # 5 standard errors of a chi-squared mean, and epsilon itself is estimated within a third.
        assert np.median(np.abs(error)) < 5 * np.sqrt(2 / probes) and np.abs(error.mean()) < 0.3


@pytest.mark.parametrize(
    ("metric", "arguments", "probes"),
    [("distance", {"num_probes": 8}, 8), ("distance", {"reading": "gradient_l2", "num_probes": 8}, 0), ("distance", {"over": "samples"}, 0),
     ("distance", {"reading": "proxy"}, 32), ("sensitivity", {"target": "inputs"}, 64), ("sensitivity", {}, 0)],
)  # fmt: skip
def test_the_standard_error_that_is_reported_is_that_of_the_probes(metric, arguments, probes):
    """Two samples of 3,072 coordinates each: together beyond what is computed exactly."""
    assert METRICS[metric](**arguments).standard_error(6144, 2) == pytest.approx(np.sqrt(2 / probes) if probes else 0)


def test_the_standard_error_is_the_spread_over_keys(client):
    """30 draws of 8 probes each."""
    run = jax.jit(METRICS["distance"](reading="proxy", num_probes=8))
    squares = np.stack([flat(run(dataclasses.replace(client.context, key=jax.random.key(seed)))) ** 2 for seed in range(30)])
    exact = score(client, reading="proxy") ** 2
    keep = exact > 1e-6 * exact.max()
    spread = (squares[:, keep] / exact[keep]).std(axis=0)
    assert np.sqrt((spread**2).mean()) == pytest.approx(METRICS["distance"](reading="proxy", num_probes=8).standard_error(16, 1), rel=0.2)


def test_samples_are_taken_one_at_a_time_and_averaged(sigmoid_client):
    context = sigmoid_client(batch_size=3)
    each = [Dense(context, sample=k) for k in range(3)]
    found = flat(METRICS["distance"](reading="solved", over="samples", epsilon=EPSILON)(context))
    np.testing.assert_allclose(found, np.mean([expected(d, "solved") for d in each], axis=0), rtol=1e-6)


def test_public_data_take_the_place_of_the_clients(sigmoid_client):
    context = sigmoid_client()
    x = jax.random.uniform(jax.random.key(7), (3, 1, 4, 4, 1), jnp.float64)
    y = jnp.asarray([[1], [2], [1]], jnp.int32).at[0].set(context.batch.labels)
    public = dataclasses.replace(context.batch, inputs=x, labels=y)
    each = []
    for k in range(3):
        batch = jax.tree.map(lambda leaf, k=k: leaf[k], public)
        grads = context.update(context.model, context.params, batch.inputs, jax.nn.one_hot(batch.labels, 10, dtype=jnp.float64))
        each.append(expected(Dense(dataclasses.replace(context, batch=batch, grads=grads)), "solved"))
    with_public = dataclasses.replace(context, public=public)
    metric = lambda over: flat(METRICS["distance"](reading="solved", over=over, epsilon=EPSILON)(with_public))
    np.testing.assert_allclose(metric("public"), np.mean(each, axis=0), rtol=1e-6)
    matching = [e for e, label in zip(each, y, strict=True) if label == context.batch.labels]
    np.testing.assert_allclose(metric("public_class"), np.mean(matching, axis=0), rtol=1e-6)
    # The mask of public data is the same for every client.
    other = dataclasses.replace(with_public, batch=batch, grads=grads)
    np.testing.assert_array_equal(metric("public"), flat(METRICS["distance"](reading="solved", over="public", epsilon=EPSILON)(other)))


def test_gram_matrix_of_visible_entries(client):
    visible = jax.random.bernoulli(jax.random.key(3), 0.3, client.g.shape)
    found = gram(input_jacobian(client.context), trees.unravel(visible, client.context.grads))
    np.testing.assert_allclose(found, client.J.T @ (client.J * np.asarray(visible)[:, None]), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"num_probes": -1}, "num_probes=-1"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_blocks": 2, "reading": "proxy"}, "proxy"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(UsageError, match=said):
        METRICS["distance"](**arguments)


def test_missing_public_data_and_too_large_a_gram_matrix_are_named(client, sigmoid_client):
    with pytest.raises(UsageError, match="public"):
        METRICS["distance"](over="public")(client.context)
    wide = sigmoid_client(size=80)
    with pytest.raises(UsageError, match="num_probes"):
        METRICS["distance"](num_probes=0)(wide)
