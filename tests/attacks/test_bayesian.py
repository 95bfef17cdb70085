"""The likeliest image of all that explain what is visible, against closed forms and the certificate's posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from selgrad.attacks.bayesian import bayesian
from selgrad.attacks.minimisers import lbfgs
from selgrad.attacks.priors import of_nature
from selgrad.base import InputSpec
from selgrad.experiment import Certifier, Lane, Setting
from selgrad.experiment.cell import run_lanes
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS
from selgrad.registry import make_spec

SPEC = InputSpec((8, 8, 1), 5)


def test_a_linear_problem_has_the_explanation_of_the_smallest_norm():
    """What the attack relies on: in coordinates where the prior is white, that is the likeliest one."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 20)).astype(np.float32)
    seen = matrix @ rng.normal(size=20).astype(np.float32)
    objective, method = (lambda z: jnp.sum((matrix @ z - seen) ** 2) / jnp.sum(seen**2)), lbfgs(max_step=1e9)
    state = jax.jit(lambda z: jax.lax.fori_loop(0, 60, lambda _, s: method.step(objective, s), method.init(z)))(jnp.zeros(20))
    np.testing.assert_allclose(state.point, np.linalg.pinv(matrix.astype(np.float64)) @ seen, atol=1e-4)


def test_known_noise_gives_the_prior_its_weight():
    """The objective is that of the posterior, |r|^2 / noise^2 + |z|^2, up to a factor that no image changes; without noise the prior has no weight."""
    model, update = MODELS["lenet"](SPEC, activation="sigmoid"), UPDATES["gradient"](batch_size=1)
    params = jax.jit(model.init)(jax.random.key(0))
    client = lambda images: update(model, params, images, jax.nn.one_hot(jnp.asarray([3]), 5))
    grads = client(jax.random.uniform(jax.random.key(1), (1, *SPEC.shape)))
    ranks = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 3, grads)
    seen, noise = observe(model, update, params, grads, jax.tree.map(lambda r: r == 0, ranks)), 0.01
    seen = dataclasses.replace(seen, labels=jnp.asarray([3]), noise=jax.tree.map(lambda _: jnp.asarray(noise), grads))
    prior, attack, found = of_nature(SPEC), bayesian(), []
    for key in range(2, 5):
        images = jax.random.uniform(jax.random.key(key), (1, *SPEC.shape))
        visible = lambda tree: jnp.concatenate([leaf[r != 0] for leaf, r in zip(jax.tree.leaves(tree), jax.tree.leaves(ranks), strict=True)])
        residuals, z = visible(client(images)) - visible(grads), prior.inverse(images - prior.mean)
        mine = lambda one, images=images: float(attack.objective(one, images, jnp.asarray([3])))
        found.append(
            (mine(seen) / float(jnp.sum(residuals**2) / noise**2 + jnp.sum(z**2)), mine(dataclasses.replace(seen, noise=None)) / float(jnp.sum(residuals**2)))
        )
    for ratios in np.asarray(found).T:
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


def test_it_comes_near_the_posterior_mse_of_the_certificate():
    """Digits and a sigmoid LeNet, where idlg is left with a grey picture: 99.5 % hidden at random, or 90 % by magnitude."""
    digits = lambda **chosen: make_spec("dataset", "digits", chosen)
    setting = Setting(
        digits(count=4), make_spec("model", "lenet", {"activation": "sigmoid"}), make_spec("update", "gradient"), public=digits(count=400, offset=200)
    )
    selector, certifier = make_spec("selector", "global_top"), Certifier(setting)
    for name, ratio in (("random", 0.995), ("magnitude", 0.9)):
        metric = make_spec("metric", name)
        bounds, _ = certifier.certificates(metric, selector, 0, (setting.num_selected(ratio),))
        lanes = [Lane(0, sample, metric, selector, ratio) for sample in range(4)]
        mse = lambda attack, arguments, lanes=lanes: np.asarray(
            [one.measures["mse"] for one in run_lanes(setting, make_spec("attack", attack, arguments), lanes).found]
        )
        found, without = mse("bayesian", {"num_steps": 60}), mse("idlg", {"num_steps": 60, "start": "grey"})
        assert found.mean() < 1.5 * np.mean([one[0].posterior_mse for one in bounds]) + 1e-4, name
        assert found.mean() < 0.5 * without.mean(), name


def test_noise_on_what_is_sent_leaves_it_the_posterior_mse_and_no_more():
    """Encryption of half of the entries and noise on the others: the search without a prior fits the noise."""
    digits = lambda **chosen: make_spec("dataset", "digits", chosen)
    model, protection = make_spec("model", "lenet", {"activation": "sigmoid"}), make_spec("protection", "dp_gaussian", {"noise": 0.01})
    setting = Setting(digits(count=4), model, make_spec("update", "gradient"), public=digits(count=400, offset=200), protection=protection)
    metric, selector = make_spec("metric", "random"), make_spec("selector", "global_top")
    bounds, _ = Certifier(setting).certificates(metric, selector, 0, (setting.num_selected(0.5),))
    lanes = [Lane(0, sample, metric, selector, 0.5) for sample in range(4)]
    mse = lambda attack, arguments: np.mean([one.measures["mse"] for one in run_lanes(setting, make_spec("attack", attack, arguments), lanes).found])
    found, bound = mse("bayesian", {"num_steps": 30}), np.mean([one[0].posterior_mse for one in bounds])
    assert 0.5 * bound < found < 1.2 * bound
    assert mse("idlg", {"num_steps": 30, "start": "grey"}) > 3 * found
