"""One contract per registry: every entry faces it unasked, so a new metric, attack or model needs no test of its own to be held to it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import trees
from selgrad.attacks import ATTACKS
from selgrad.base import Batch, Evidence, InputSpec, Model, Reconstruction, TextModel, TextSpec, Update, no_cache
from selgrad.data import DATASETS
from selgrad.errors import UsageError
from selgrad.evaluation import MEASURES
from selgrad.gradients import UPDATES, observe
from selgrad.masks import SELECTORS
from selgrad.models import MODELS
from selgrad.registry import REGISTRIES, make_spec, parameters, registry
from selgrad.significance import METRICS

NEEDED = {"by_path": {"paths": ["fc_1/**"]}, "by_structure": {"part": "norms_and_biases"}}
TEXT = TextSpec((6,), 7, 40, special_ids=(0, 1, 2, 3))
BUNDLED = ("digits", "photos")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in REGISTRIES for name in registry(kind)])
def test_every_factory_documents_each_argument_and_types_it(kind, name):
    factory = registry(kind)[name]
    text = inspect.getdoc(factory) or ""
    assert text, f"{name} has no docstring"
    for key, parameter in parameters(kind, name).items():
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}.{key} has no type"
        # What every model takes (weights to start from) is described once, where models are.
        if key in inspect.signature(factory).parameters:
            assert f"{key}:" in text or f"{key}, " in text or f", {key}:" in text, f"{name} does not document {key}"
    source = inspect.getdoc(inspect.getmodule(factory)) or ""
    assert len(source.split("\n\n")) >= 2, f"the module of {name} gives no source"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("batch_size", [1, 3])
class TestMetric:
    def test_scores_every_entry_finitely_under_jit(self, problem, spec, name, batch_size):
        p = problem(spec, batch_size=batch_size)
        scores = jax.jit(METRICS[name]())(p.context)
        assert jax.tree.structure(scores) == jax.tree.structure(p.grads)
        assert jax.tree.map(jnp.shape, scores) == jax.tree.map(jnp.shape, p.grads)
        trees.require_finite(scores, name)

    def test_vmap_equals_one_at_a_time(self, problem, spec, name, batch_size):
        p = problem(spec, batch_size=batch_size)
        score = METRICS[name]()
        contexts = [p.context, type(p.context)(**{**vars(p.context), "key": jax.random.key(5)})]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)
        together = jax.vmap(score)(stacked)
        for i, context in enumerate(contexts):
            for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(score(context)), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=2e-4, atol=1e-6)

    def test_order_of_samples_does_not_matter(self, problem, spec, name, batch_size):
        if METRICS[name]().draws:
            pytest.skip("draws from a key")
        p = problem(spec, batch_size=batch_size)
        flipped = type(p.context)(**{**vars(p.context), "batch": Batch(p.batch.inputs[::-1], p.batch.labels[::-1])})
        for a, b in zip(jax.tree.leaves(METRICS[name]()(p.context)), jax.tree.leaves(METRICS[name]()(flipped)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SELECTORS)
class TestSelector:
    @pytest.mark.parametrize("ratio", [0.0, 0.013, 0.425, 0.999, 1.0])
    def test_selects_exactly_the_rounded_share(self, problem, spec, name, ratio):
        p = problem(spec)
        scores = METRICS["random"]()(p.context)
        ranks = jax.jit(SELECTORS[name](**NEEDED.get(name, {})))(scores)
        mask = jax.jit(trees.top)(ranks, trees.count(ratio, trees.size(scores)))
        assert sum(int(m.sum()) for m in jax.tree.leaves(mask)) == round(ratio * trees.size(scores))

    def test_ranks_are_a_permutation_so_masks_are_nested(self, problem, spec, name):
        scores = jax.tree.map(jnp.ones_like, problem(spec).grads)  # ties everywhere
        ranks = SELECTORS[name](**NEEDED.get(name, {}))(scores)
        assert sorted(np.concatenate([np.ravel(r) for r in jax.tree.leaves(ranks)])) == list(range(trees.size(scores)))


def spec_and_inputs(name):
    """The kind of input that a model reads: images, or text where it refuses them."""
    images = InputSpec((12, 12, 3), 7, (0.5,) * 3, (0.2,) * 3)
    try:
        MODELS[name](images)
    except UsageError:
        return TEXT, jax.random.randint(jax.random.key(1), (2, 6), 4, 40)
    return images, jax.random.normal(jax.random.key(1), (2, 12, 12, 3))


@pytest.mark.parametrize("name", MODELS)
class TestModel:
    def test_is_static_and_honours_the_protocol(self, name):
        spec, x = spec_and_inputs(name)
        model = MODELS[name](spec)
        assert isinstance(model, Model)
        assert hash(model) == hash(MODELS[name](spec)) and model == MODELS[name](spec)
        params = kernel = jax.jit(model.init)(jax.random.key(0))
        for part in model.head.split("/"):
            kernel = kernel[part]
        assert kernel["kernel"].shape[-1] == 7
        assert isinstance(model, TextModel) == (spec is TEXT)
        assert jax.eval_shape(lambda params: model.logits(params, model.embed(params, x)), params).shape == (2, 7)

    def test_what_is_sent_and_what_is_frozen_make_up_all_parameters(self, name):
        model = MODELS[name](spec_and_inputs(name)[0])
        params = jax.jit(model.init)(jax.random.key(0))
        sent, frozen = model.split(params)
        assert sorted(trees.paths(sent) + trees.paths(frozen)) == sorted(trees.paths(params))
        merged = model.merge(sent, frozen)
        assert jax.tree.structure(merged) == jax.tree.structure(params)
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True))

    def test_loss_is_linear_in_the_labels(self, name):
        spec, inputs = spec_and_inputs(name)
        model = MODELS[name](spec)
        params = jax.jit(model.init)(jax.random.key(0))
        loss = jax.jit(lambda labels: model.loss(params, model.embed(params, inputs), labels))
        a, b = jax.random.uniform(jax.random.key(2), (2, 2, 7))
        np.testing.assert_allclose(loss(0.3 * a + 0.7 * b), 0.3 * loss(a) + 0.7 * loss(b), rtol=1e-4)


@pytest.mark.parametrize("name", UPDATES)
class TestUpdate:
    def test_is_static_and_a_tree_of_the_parameters(self, problem, spec, name):
        p = problem(spec, update=name, batch_size=2)
        assert isinstance(p.update, Update) and hash(p.update) == hash(UPDATES[name](batch_size=2))
        assert jax.tree.map(jnp.shape, p.grads) == jax.tree.map(jnp.shape, p.params)
        trees.require_finite(p.grads, name)

    def test_order_of_samples_does_not_matter(self, problem, spec, name):
        p = problem(spec, update=name, batch_size=2)
        labels = jax.nn.one_hot(p.batch.labels, 10)
        flipped = p.update(p.model, p.params, p.batch.inputs[::-1], labels[::-1])
        for a, b in zip(jax.tree.leaves(p.grads), jax.tree.leaves(flipped), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_data_are_pixels_in_the_unit_interval_and_normalisation_is_inverted(name):
    data = DATASETS[name](count=5, offset=2, normalisation="channel")
    assert len(data) == 5 and data.pixels.shape[1:] == data.spec.shape
    assert data.pixels.min() >= 0 and data.pixels.max() <= 1 and data.pixels.std() > 0.05
    batch = data.batch(1, 2)
    np.testing.assert_allclose(data.spec.pixels(batch.inputs), data.pixels[2:4], atol=1e-6)
    # Of all there are, which everybody knows: the moments of the few that a client holds would tell of them.
    whole = DATASETS[name](normalisation="channel")
    assert whole.spec == data.spec
    normalised = np.asarray(data.spec.normalise(whole.pixels), np.float64)
    np.testing.assert_allclose(normalised.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(normalised.std((0, 1, 2)), 1, atol=1e-4)


def quick(name):
    """Arguments with which an attack takes seconds on a small problem: a tenth of the steps that it takes by default, two restarts where it has any."""
    given = {}
    allowed = parameters("attack", name)
    if "num_restarts" in allowed:
        given["num_restarts"] = 2
    for key, few in ATTACKS_QUICK.get(name, {}).items():
        given[key] = few
    return given


# Only speed, and what fits random pixels, which vary more than any photograph: an attack that is not named here meets its contract with its own defaults.
ATTACKS_QUICK = {
    "inverting_gradients": {"num_steps": 400, "total_variation_weight": 1e-4},
    "surrogate": {"num_steps": 400, "total_variation_weight": 1e-4},
    "bayesian": {"num_steps": 30},
    "gauss_newton": {"num_steps": 20},
    "dlg": {"num_steps": 30},
    "idlg": {"num_steps": 30},
    "dlg_text": {"num_steps": 600, "start": "vocabulary", "learning_rate": 0.03},
    "tag": {"num_steps": 600, "start": "vocabulary", "learning_rate": 0.03},
    "lamp": {"num_steps": 600, "learning_rate": 0.03, "num_starts": 20, "num_start_permutations": 20, "num_moves": 20},
}


# Rungs are the kernel's, and these match embeddings as dlg_text does and pixels as idlg does, which face all of them; each rung is a program of half a minute.
FACES_ONE_RUNG = ("tag", "lamp", "bayesian", "surrogate")


def rungs(name):
    """The rungs that every attack with hidden entries faces; those above are the kernel's, and one attack on pixels and one on embeddings speak for all."""
    if "hidden" not in parameters("attack", name):
        return (None,)
    return ("ignore",) if name in FACES_ONE_RUNG else ("zero", "average", "ignore")


# A decoder needs public data and recovers nothing exactly: tests/attacks/test_learned.py holds it to what it can do.
# Whoever chooses among suspects needs some: tests/attacks/test_candidates.py.
MATCHING = [name for name in ATTACKS if make_spec("attack", name).build().rung != "learned" and name != "candidates"]
RUNGS = [(name, hidden) for name in MATCHING for hidden in rungs(name)]
RUNGS += [("idlg", "bounded"), ("tag", "bounded"), ("idlg", "complete"), ("tag", "complete"), ("rank_one", "complete")]


def together(entries):
    """Parameters of which those of one attack go to one worker, which runs each of its rungs once."""
    named = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
    return [pytest.param(*entry, marks=pytest.mark.xdist_group(f"attack_{entry[0]}"), id="-".join(map(str, entry))) for entry in named]


@pytest.fixture(scope="module")
def runs(problem, text_problem, spec):
    """Runs an attack once at ratios 0, 0.3 and 1, on the same observation for every rung."""
    cache = {}

    def run(name, hidden):
        if (name, hidden) not in cache:
            attack = make_spec("attack", name, {**quick(name), **({} if hidden is None else {"hidden": hidden})}).build()
            evidence = Evidence(METRICS["magnitude"]()) if hidden == "bounded" else None
            p = problem(spec, model="lenet")
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), p.grads)
            try:
                shown = observe(p.model, p.update, p.params, p.grads, nothing, evidence=evidence)
                jax.eval_shape(dataclasses.replace(attack, prepare=None).reconstruct, jax.random.key(0), shown)
            except UsageError as refusal:
                other = next(model for word, model in {"text": "", "dense": "mlp", "patches": "vit"}.items() if word in str(refusal))
                # One layer compiles in half the time; attacks on the host compile nothing, and DAGER reads sentences behind the first layer.
                p = problem(spec, model=other) if other else text_problem(layers=1 if attack.traceable else 2)
            ranks = trees.rank(METRICS["magnitude"]()(p.context))

            total = trees.size(p.grads)
            seen = [
                observe(p.model, p.update, p.params, p.grads, trees.top(ranks, count), valid=p.batch.valid, evidence=evidence)
                for count in (0, round(0.3 * total), total)
            ]
            if attack.traceable:
                if attack.prepare is not None:
                    seen, attack = [attack.prepare(one, no_cache)[0] for one in seen], dataclasses.replace(attack, prepare=None)
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
                found = jax.jit(jax.vmap(lambda one: attack.reconstruct(jax.random.key(3), one)))(stacked)
            else:
                found = [attack.reconstruct(jax.random.key(3), one)._replace(report=None) for one in seen]
                found = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
            cache[name, hidden] = p, found
        return cache[name, hidden]

    return run


class TestAttack:
    """Each attack must recover what is fully visible, fail on what is fully hidden, and stay finite between."""

    @pytest.mark.parametrize(("name", "hidden"), together(RUNGS))
    def test_succeeds_without_encryption_and_is_defined_everywhere(self, runs, name, hidden):
        p, found = runs(name, hidden)
        assert isinstance(found, Reconstruction)
        if p.batch.valid is None:
            error = ((np.clip(found.inputs, 0, 1) - np.asarray(p.batch.inputs)) ** 2).mean(axis=(1, 2, 3, 4))
        else:
            error = (np.asarray(found.inputs) != np.asarray(p.batch.inputs)).mean(axis=(1, 2))
        assert error[0] < 1e-2, "everything is visible"
        assert found.labels[0, 0] == p.batch.labels[0]
        assert error[2] > 0.05, "nothing is visible"
        assert np.isfinite(found.objective).all() and not found.diverged.any()
        if make_spec("attack", name, quick(name)).build().traceable:
            spent = sum(quick(name).get(key, 0) for key in ("num_starts", "num_start_permutations"))
            assert found.objective[2] == 0 and found.num_evaluations[2] == spent, "only the starts were looked at"

    @pytest.mark.parametrize("rung", ["zero", "average", "ignore"])
    @pytest.mark.parametrize("name", [name for name in MATCHING if "hidden" in parameters("attack", name)])
    def test_the_rung_that_is_asked_for_is_the_kernels(self, name, rung):
        """The kernel says which rung it fills targets by, so an attack whose rungs are not all run cannot lose the argument on the way."""
        assert make_spec("attack", name, {"hidden": rung}).build().rung == rung

    @pytest.mark.parametrize("name", together(MATCHING))
    def test_the_best_restart_is_chosen_by_the_attackers_own_objective(self, runs, name):
        _, found = runs(name, rungs(name)[-1])
        np.testing.assert_array_equal(found.objective, found.all_objectives.min(axis=1))
        np.testing.assert_array_equal(found.restart, found.all_objectives.argmin(axis=1))
        for i, best in enumerate(found.restart):
            np.testing.assert_array_equal(found.inputs[i], found.all_inputs[i, best])
            np.testing.assert_array_equal(found.labels[i], found.all_labels[i, best])

    @pytest.mark.parametrize("name", together(MATCHING))
    def test_at_ratio_one_every_rung_returns_the_same_prior_sample(self, runs, name):
        first, *_, last = [*rungs(name), rungs(name)[-1]]
        np.testing.assert_array_equal(runs(name, first)[1].inputs[2], runs(name, last)[1].inputs[2])


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.reads == "sentences"])
def test_every_measure_of_sentences_is_one_for_the_truth_and_zero_for_nothing_in_common(name):
    of = MEASURES[name].of
    assert of("a b c", "a b c") == 1.0 and not MEASURES[name].lower_is_better
    assert of("a b c", "x y") == of("a b c", "") == of("", "") == 0.0


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.reads in ("images", "labels")])
def test_every_measure_of_images_is_a_finite_scalar_and_best_at_the_truth(name):
    spec, measure = InputSpec((8, 8, 1), 10), MEASURES[name]
    batch = Batch(jax.random.uniform(jax.random.key(0), (2, 8, 8, 1)), jnp.asarray([1, 2], jnp.int32))
    scalar = jnp.zeros(())
    found = Reconstruction(batch.inputs, batch.labels, scalar, scalar > 0, jnp.int32(0), batch.inputs[None], batch.labels[None], scalar[None], jnp.int32(1))
    best, worse = measure.of(spec, batch, found), measure.of(spec, batch, found._replace(inputs=1 - batch.inputs, labels=batch.labels[::-1]))
    assert np.shape(best) == () and np.isfinite(best)
    assert best < worse if measure.lower_is_better else best > worse


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_it_is(name):
    measure = MEASURES[name]
    assert measure.name == name and measure.title and measure.about.endswith(".")
    assert (measure.of is None) == (measure.reads in ("verdicts", "others"))
    if measure.threshold is not None:
        assert measure.passed(measure.threshold / 2, measure.threshold) == measure.lower_is_better
