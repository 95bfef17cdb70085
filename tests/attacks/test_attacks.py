"""What the shared parts of attacks must be: rungs, label rules, divergence, and lanes that do not depend on their neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.attacks.distances import cosine, squared_l2
from selgrad.attacks.hidden import fill
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.labels import most_negative_columns
from selgrad.attacks.minimisers import first_order, lbfgs
from selgrad.attacks.spaces import pixels
from selgrad.attacks.starts import draw
from selgrad.base import InputSpec
from selgrad.gradients import observe

# One worker makes the fixtures of this file.
pytestmark = pytest.mark.xdist_group("attacks")


@pytest.fixture(scope="module")
def seen(problem, spec):
    p = problem(spec, model="lenet")
    ranks = trees.rank(jax.tree.map(jnp.abs, p.grads))
    return p, lambda ratio: observe(p.model, p.update, p.params, p.grads, trees.top(ranks, trees.count(ratio, trees.size(p.grads))))


def test_an_observation_holds_nothing_of_the_hidden_entries(seen):
    _, look = seen
    observation = look(0.4)
    for leaf, mask in zip(jax.tree.leaves(observation.visible), jax.tree.leaves(observation.mask), strict=True):
        assert (np.asarray(leaf)[np.asarray(mask)] == 0).all()


def test_rungs(seen):
    p, look = seen
    observation = look(0.4)
    assert float(squared_l2(p.grads, fill(observation, "ignore"))) == 0, "the truth matches what is visible"
    hidden = trees.dot(p.grads, p.grads) - trees.dot(observation.visible, observation.visible)
    shown = trees.dot(observation.visible, observation.visible)
    np.testing.assert_allclose(squared_l2(p.grads, fill(observation, "zero")), hidden / shown, rtol=1e-4)
    assert float(cosine(p.grads, fill(observation, "ignore"))) < 1e-6 < float(cosine(p.grads, fill(observation, "zero")))
    average = fill(observation, "average")
    for leaf, visible, mask in zip(*map(jax.tree.leaves, (average.grads, observation.visible, observation.mask)), strict=True):
        visible, mask = np.asarray(visible), np.asarray(mask)
        expected = visible[~mask].mean() if (~mask).any() else 0
        np.testing.assert_allclose(np.asarray(leaf)[mask], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("hidden", ["zero", "average", "ignore"])
@pytest.mark.parametrize("distance", [squared_l2, cosine])
def test_distances_and_derivatives_are_finite_where_nothing_is_visible(seen, distance, hidden):
    p, look = seen
    value, slope = jax.value_and_grad(lambda g: distance(g, fill(look(1.0), hidden)))(p.grads)
    assert np.isfinite(value)
    trees.require_finite(slope, "the slope")


def test_idlg_reads_every_label_of_many_images(problem, spec):
    p = problem(spec, model="lenet")
    images, labels = jax.random.uniform(jax.random.key(5), (60, 1, 8, 8, 1)), jnp.arange(60) % 10

    def one(image, label):
        grads = p.update(p.model, p.params, image, jax.nn.one_hot(label[None], 10))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads)
        observation = observe(p.model, p.update, p.params, grads, nothing)
        return most_negative_columns(jax.random.key(0), observation, fill(observation, "ignore"))[0]

    np.testing.assert_array_equal(jax.jit(jax.vmap(one))(images, labels), labels)


def test_labels_are_a_guess_where_the_last_layer_is_hidden(problem, spec):
    p = problem(spec, model="lenet")
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), p.grads)
    observation = observe(p.model, p.update, p.params, p.grads, everything)
    guesses = jax.vmap(lambda k: most_negative_columns(k, observation, fill(observation, "zero"))[0])(jax.random.split(jax.random.key(0), 200))
    assert len(np.unique(guesses)) == 10


def test_starts_are_noise_in_the_models_units_or_grey_in_pixels():
    spec = InputSpec((20, 20, 2), 10, (0.2, 0.7), (0.5, 2.0))
    noise = draw("normal", jax.random.key(0), 30, spec)
    assert noise.shape == (30, 20, 20, 2) and abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    pixels = draw("grey", jax.random.key(0), 30, spec) * jnp.asarray(spec.std) + jnp.asarray(spec.mean)
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), 0.5, atol=0.005)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), 0.1, atol=0.005)


ON_TEXT = ("dlg_text", "tag", "lamp", "dager")
READS = {"rank_one": "mlp", "silhouette": "mlp", "april": "vit"}
"""Models of the attacks that read one kind of layer."""
BRIEF = {"lamp": {"steps_per_phase": 2, "num_starts": 2, "num_start_permutations": 2, "num_moves": 2, "candidates_at_once": 2}}


def brief(name, steps, **arguments):
    """The attack, over in a moment."""
    return ATTACKS[name](**({} if name in ("dager", "rank_one", "silhouette") else {"num_steps": steps}), **BRIEF.get(name, {}), **arguments)


def on_text(text_problem, name):
    """One layer, which compiles in half the time; DAGER reads sentences behind the first one."""
    return text_problem(layers=2 if name == "dager" else 1)


# A decoder and a choice among suspects need public data: tests/attacks/test_learned.py and test_candidates.py.
ALONE = [name for name in ATTACKS if name not in ("learned", "candidates")]


@pytest.mark.parametrize("name", ALONE)
def test_given_labels_are_used_as_given(problem, text_problem, spec, name):
    p = on_text(text_problem, name) if name in ON_TEXT else problem(spec, model=READS.get(name, "lenet"))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), p.grads)
    wrong = (p.batch.labels + 2) % 3
    attack, observation = brief(name, 1), observe(p.model, p.update, p.params, p.grads, nothing, wrong)
    run = attack.reconstruct
    if name in ON_TEXT and attack.traceable:
        # Nothing between start and end touches labels that are given (the kernel's, which attacks on pixels go through), and half a minute compiles.
        run = lambda key, observation: attack.finish(observation, attack.start(key, observation))
    found = (jax.jit(run) if attack.traceable else run)(jax.random.key(0), observation)
    np.testing.assert_array_equal(found.labels, wrong)


def test_a_diverging_attack_is_reported_and_not_returned(seen):
    _, look = seen
    explode = lambda _: first_order(optax.sgd(1e30))
    attack = iterate(gradient_matching(distance=squared_l2, minimiser=explode, hidden="ignore", space=pixels("normal")), num_steps=5, num_restarts=2)
    found = attack.reconstruct(jax.random.key(0), look(0.0))
    assert found.diverged and found.objective == jnp.inf
    start = attack.start(jax.random.key(0), look(0.0)).start[found.restart, : found.inputs.size]
    np.testing.assert_array_equal(found.inputs.reshape(-1), start)


def test_advancing_in_pieces_is_advancing_at_once(seen):
    _, look = seen
    attack = ATTACKS["idlg"](num_steps=6, num_restarts=2, evaluations_per_step=3, memory=10)
    observation = look(0.1)
    advance = jax.jit(attack.advance)
    state = attack.start(jax.random.key(0), observation)
    pieces = advance(observation, advance(observation, state, 2), 4)
    for a, b in zip(jax.tree.leaves(pieces), jax.tree.leaves(advance(observation, state, 6)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tolerance", [0.0, 20.0])
def test_no_bit_depends_on_how_often_the_loop_looks_whether_it_is_done(seen, monkeypatch, tolerance):
    """On accelerators it looks every few steps, also where these divide neither a piece nor the whole, and where all restarts are done between two looks."""
    _, look = seen
    observation = look(0.1)
    method = lambda _: lbfgs(memory=10, tolerance=tolerance)
    attack = iterate(gradient_matching(distance=squared_l2, minimiser=method, hidden="ignore", space=pixels("normal")), num_steps=13, num_restarts=2)
    found = {}
    for stride in ("1", "4"):
        monkeypatch.setenv("SELGRAD_STRIDE", stride)
        # A new function each time: a trace is kept for the one that it is of.
        advance = jax.jit(lambda seen, state, steps: attack.advance(seen, state, steps))
        found[stride] = advance(observation, advance(observation, attack.start(jax.random.key(0), observation), 6), 7)
    assert found["4"].inner.done.all() == (tolerance > 0) and (found["4"].num_steps.max() < 13) == (tolerance > 0)
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_array_equal(a, b)


def alike(problem, model_of):
    """What is observed of two clients that differ in hidden entries alone."""
    p = model_of(problem)
    mask = trees.top(trees.rank(jax.tree.map(jnp.abs, p.grads)), trees.count(0.3, trees.size(p.grads)))
    other = jax.tree.map(lambda g, m: jnp.where(m, 7 - g, g), p.grads, mask)
    return [observe(p.model, p.update, p.params, grads, mask, valid=p.batch.valid) for grads in (p.grads, other)]


@pytest.mark.parametrize("kind", ["images", "text"])
def test_clients_that_send_the_same_exposed_entries_look_alike(problem, spec, text_problem, kind):
    """An attack is a function of a key and an observation, so no rung of any attack can tell these clients apart."""
    mine, theirs = alike(problem, lambda make: make(spec, model="lenet")) if kind == "images" else alike(text_problem, lambda make: make(layers=2))
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("hidden", ["zero", "average", "ignore"])
@pytest.mark.parametrize("name", ["idlg", "rank_one", "dager"])
def test_clients_that_look_alike_are_attacked_alike(problem, spec, text_problem, name, hidden):
    """One attack of the kernel, one in closed form, one on the host: the same result to the last bit."""
    mine, theirs = alike(text_problem, lambda make: on_text(make, name)) if name in ON_TEXT else alike(problem, lambda make: make(spec, model="mlp"))
    attack = brief(name, 2, hidden=hidden)
    run = jax.jit(attack.reconstruct) if attack.traceable else attack.reconstruct
    first, second = (run(jax.random.key(0), one) for one in (mine, theirs))
    assert first.report == second.report
    for a, b in zip(jax.tree.leaves(first._replace(report=None)), jax.tree.leaves(second._replace(report=None)), strict=True):
        np.testing.assert_array_equal(a, b)


def scaled(p, factor):
    """The same client of a model whose loss is so many times as large."""
    whole = type(p.model)
    kind = type("Scaled", (whole,), {"loss": lambda self, *arguments: factor * whole.loss(self, *arguments)})
    model = object.__new__(kind)
    model.__dict__.update(p.model.__dict__)
    return model, jax.jit(lambda batch: p.update.client(model, p.params, batch, p.context.labels))(p.batch)


@pytest.mark.parametrize(("name", "ratio"), [("dlg", 0.0), ("idlg", 0.6), ("inverting_gradients", 0.6), ("rank_one", 0.0), ("tag", 0.6)])
def test_nothing_depends_on_the_scale_of_the_loss(problem, text_problem, spec, name, ratio):
    """Whatever is hidden: an objective in absolute units would be done before it began, or never. Powers of two change no digit of a gradient.

    What is left is the order in which XLA multiplies.
    """
    p = on_text(text_problem, name) if name in ON_TEXT else problem(spec, model=READS.get(name, "lenet"))
    attack = brief(name, 1 if name in ("dlg", "idlg") else 5)
    found = []
    for factor in (1.0, 2.0**-27, 2.0**27):
        model, grads = scaled(p, factor)
        np.testing.assert_allclose(trees.ravel(grads), factor * trees.ravel(p.grads), rtol=1e-4, atol=factor * 1e-7)
        mask = trees.top(trees.rank(jax.tree.map(jnp.abs, grads)), trees.count(ratio, trees.size(grads)))
        observation = observe(model, p.update, p.params, grads, mask, valid=p.batch.valid)
        run = attack.reconstruct
        found.append((jax.jit(run) if attack.traceable else run)(jax.random.key(0), observation))
    assert name == "rank_one" or (found[0].objective > 0 and found[0].num_evaluations > 2)
    for other in found[1:]:
        np.testing.assert_array_equal(other.labels, found[0].labels)
        np.testing.assert_allclose(other.objective, found[0].objective, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(other.inputs, found[0].inputs, atol=2e-3)


@pytest.mark.parametrize("factor", [2.0**-27, 2.0**27])
def test_minimisers_are_free_of_scale(factor):
    """The path of L-BFGS is that of its problem, in whatever unit the objective is."""
    objective = lambda x: jnp.sum((jnp.arange(1, 7) * (x - 1)) ** 2) + 0.3 * jnp.sum(jnp.sin(3 * x))
    method = lbfgs(memory=5, tolerance=0.0)

    def run(scale):
        body = lambda _, state: method.step(lambda x: scale * objective(x), state)
        return jax.jit(lambda x: jax.lax.fori_loop(0, 25, body, method.init(x)))(jnp.linspace(-1, 1, 6)).point

    np.testing.assert_array_equal(run(jnp.float32(factor)), run(jnp.float32(1)))
