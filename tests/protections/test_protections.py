"""Protections besides encryption, held to what their papers state, and to what encryption by the same mask gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from selgrad import trees
from selgrad.config import parse
from selgrad.data import DATASETS, from_arrays
from selgrad.errors import UsageError
from selgrad.experiment import Certifier, Setting, run_cell
from selgrad.protections import PROTECTIONS
from selgrad.registry import Spec, make_spec
from selgrad.report.page import make_report
from selgrad.report.tables import protections, read_records
from selgrad.report.verdicts import stopping_ratios
from selgrad.sweep import Sweep
from selgrad.sweep.executors.local import Local

TREE = {"a": jax.random.normal(jax.random.key(0), (200, 100)), "b": 5 * jax.random.normal(jax.random.key(1), (1000,))}


def run(config, out):
    """The records of a sweep that draws no report."""
    sweep = Sweep(parse({**config, "encryption": "none"}), out)
    plan = sweep.plan()
    Local().run(sweep, plan, None, lambda *_: None, lambda *_: None)
    return read_records(out), plan


def expected(protection, tree=TREE):
    return tree if protection.deterministic_part is None else protection.deterministic_part(tree)


def send(name, key=2, tree=TREE, **arguments):
    protection = PROTECTIONS[name](**arguments)
    return protection, jax.jit(lambda t, k: protection(expected(protection, t), k))(tree, jax.random.key(key))


@pytest.mark.parametrize("name", PROTECTIONS)
def test_every_protection_is_static_and_traceable(name):
    protection, sent = send(name)
    assert hash(protection) == hash(PROTECTIONS[name]()) and protection == PROTECTIONS[name]()
    assert jax.tree.map(jnp.shape, sent.grads) == jax.tree.map(jnp.shape, TREE)
    assert jax.tree.structure(protection.noise(TREE)) == jax.tree.structure(TREE)
    # An attacker's simulation has a derivative, and what it expects is what is sent in the mean where nothing is left out.
    assert np.isfinite(jax.grad(lambda t: trees.dot(expected(protection, t), TREE))(TREE)["a"]).all()
    if sent.withheld is None:
        many = jax.vmap(lambda k: protection(expected(protection), k).grads["a"])(jax.random.split(jax.random.key(3), 400))
        error = np.asarray(many, np.float64).mean(axis=0) - np.asarray(expected(protection)["a"])
        # Five standard errors for the worst of 20,000 means; at half a step rounding deviates by sqrt(6 / 4) of its average.
        assert np.abs(error).max() <= 5 * np.sqrt(6 / 4) * float(protection.noise(TREE)["a"]) / 20 + 1e-6


@pytest.mark.parametrize(("name", "arguments"), [("dp_gaussian", {"clip": 10.0, "noise": 0.02}), ("quantised", {"bits": 6})])
def test_the_stated_noise_is_the_noise(name, arguments):
    protection, sent = send(name, **arguments)
    for leaf in TREE:
        error = np.asarray(sent.grads[leaf] - expected(protection)[leaf])
        assert error.std() == pytest.approx(float(protection.noise(TREE)[leaf]), rel=0.05)


def test_clipping_shortens_long_updates_alone():
    protection = PROTECTIONS["dp_gaussian"](clip=1.0, noise=0.0)
    short = jax.tree.map(lambda leaf: 1e-4 * leaf, TREE)
    assert np.sqrt(trees.dot(expected(protection), expected(protection))) == pytest.approx(1, rel=1e-5)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(expected(protection, short)), jax.tree.leaves(short), strict=True))


@pytest.mark.parametrize("bits", [1, 4, 16])
def test_rounding_leaves_so_many_values_within_a_step_and_keeps_the_ends(bits):
    _, sent = send("quantised", bits=bits)
    for leaf, given in TREE.items():
        found, step = np.asarray(sent.grads[leaf]), float(given.max() - given.min()) / (2**bits - 1)
        assert len(np.unique(found)) <= 2**bits and np.abs(found - given).max() <= step * (1 + 1e-3)
        assert found.min() == given.min() and found.max() == pytest.approx(float(given.max()), rel=1e-6)


@pytest.mark.parametrize("order", ["smallest", "largest"])
def test_pruning_leaves_out_exactly_the_smallest_or_the_largest(order):
    protection, sent = send("pruning", ratio=0.9, order=order)
    flat, withheld = np.asarray(trees.ravel(TREE)), np.asarray(trees.ravel(sent.withheld))
    magnitudes = np.sort(np.abs(flat))
    assert withheld.sum() == 18900 and protection.num_bytes(2100, 21000) == 4 * 2100 + 2625
    expected = magnitudes[:18900] if order == "smallest" else magnitudes[-18900:]
    np.testing.assert_array_equal(np.sort(np.abs(flat[withheld])), expected)
    np.testing.assert_array_equal(trees.ravel(sent.grads)[~withheld], flat[~withheld])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("dp_gaussian", {"clip": 0.0}), ("dp_gaussian", {"noise": -1.0}), ("quantised", {"bits": 0}), ("quantised", {"bits": 17}), ("pruning", {"ratio": 1.5})],
)
def test_impossible_numbers_are_refused_by_name(name, arguments):
    with pytest.raises(UsageError, match=f"{next(iter(arguments))}="):
        PROTECTIONS[name](**arguments)


CELL = {"dataset": {"name": "digits", "count": 4}, "model": {"name": "mlp", "width": 16, "activation": "sigmoid"}}


@pytest.mark.parametrize("hidden", ["zero", "ignore"])
def test_leaving_the_largest_out_is_to_an_attacker_what_encryption_by_magnitude_is(hidden):
    attack = {"name": "idlg", "num_steps": 30, "hidden": hidden}
    encrypted = run_cell(**CELL, attack=attack, metric="magnitude", ratio=0.2)
    pruned = run_cell(**CELL, attack=attack, metric="random", ratio=0.0, protection={"name": "pruning", "ratio": 0.2, "order": "largest"})
    np.testing.assert_array_equal(encrypted.reconstruction, pruned.reconstruction)
    assert encrypted.num_selected > 0 == pruned.num_selected


def test_what_is_neither_encrypted_nor_left_out_is_in_the_clear():
    attack = {"name": "idlg", "num_steps": 1}
    smallest = run_cell(**CELL, attack=attack, ratio=0.1, protection={"name": "pruning", "ratio": 0.5})
    assert smallest.num_visible == smallest.num_total - smallest.num_selected - round(0.5 * smallest.num_total)
    both = run_cell(**CELL, attack=attack, ratio=0.1, protection={"name": "pruning", "ratio": 0.9})
    assert both.num_visible <= 1, "magnitude encrypts all that pruning left"
    with pytest.raises(UsageError, match="pruning hides further entries"):
        run_cell(**CELL, attack={**attack, "hidden": "bounded"}, ratio=0.1, protection="pruning")


def test_a_decoder_is_trained_against_the_noise(tmp_path):
    """One that took a noisy update for a clean one would do worse than an answer without looking; one that knows does nearly as well as without noise."""
    config = {
        "dataset": {"name": "digits", "count": 6}, "public": {"name": "digits", "count": 300, "offset": 200}, "model": {"name": "cnn", "width": 4},
        "metric": "random", "ratio": 0, "attack": "learned", "known_labels": True,
        "protection": {"name": "dp_gaussian", "clip": 5.0, "noise": [0.0, 1e-3]},
    }  # fmt: skip
    errors = run(config, tmp_path)[0].groupby("protection_label")["mse"].mean()
    truths = DATASETS["digits"](count=6).pixels
    noisy, clean = (errors[f"dp_gaussian(clip=5.0, noise={noise})"] for noise in (0.001, 0.0))
    assert noisy < 1.3 * clean and noisy < 1.2 * ((truths - truths.mean(axis=0)) ** 2).mean()


def test_clipping_that_never_acts_changes_no_completion():
    """Local steps raise the rank of a layer's update, which completion must know under a protection too."""
    given = {
        "dataset": {"name": "digits", "count": 1}, "model": {"name": "mlp", "width": 32}, "ratio": 0.3, "metric": "random",
        "update": {"name": "fedavg", "num_steps": 3}, "attack": {"name": "rank_one", "hidden": "complete"},
    }  # fmt: skip
    plain, clipped = run_cell(**given), run_cell(**given, protection={"name": "dp_gaussian", "clip": 1e6, "noise": 0.0})
    assert plain.report == clipped.report
    np.testing.assert_allclose(plain.reconstruction, clipped.reconstruction, atol=1e-5)


def test_noise_is_the_clients_own_and_the_same_in_every_sweep():
    specs = [make_spec("dataset", "digits", {"count": 4}), make_spec("model", "lenet"), make_spec("update", "gradient")]
    noisy = Setting(*specs, protection=make_spec("protection", "dp_gaussian", {"noise": 1.0}))
    plain, alone = Setting(*specs), Setting(*specs, samples=[2], protection=noisy.protection_spec)
    clean = np.asarray(jax.vmap(trees.ravel)(jax.vmap(noisy.protection.deterministic_part)(plain.client(0).grads)))
    drawn = [np.asarray(jax.vmap(trees.ravel)(s.client(seed).grads)) for s, seed in ((noisy, 0), (noisy, 1), (alone, 0))]
    np.testing.assert_array_equal(drawn[0][2], drawn[2][0])
    noise = drawn[0] - clean
    assert abs(np.corrcoef(noise)[~np.eye(4, dtype=bool)]).max() < 0.05 and not np.array_equal(drawn[0], drawn[1])


def test_certificates_know_the_noise(tmp_path):
    """Under noise of deviation s on every entry and none encrypted, the posterior variance of a direction with singular value v is 1 / (v^2 / s^2 + prior)."""
    specs = [make_spec("dataset", "digits", {"count": 1}), make_spec("model", "mlp", {"width": 16}), make_spec("update", "gradient")]
    metric, selector = make_spec("metric", "magnitude"), make_spec("selector", "global_top")
    found = {}
    for noise in (0.001, 0.1):
        setting = Setting(*specs, protection=make_spec("protection", "dp_gaussian", {"noise": noise, "clip": 1e6}))
        (certificate,), _, prior = Certifier(setting).certify(metric, selector, 0, (0,), 0)
        matrix, *_ = Certifier(setting)._jacobian(0, 0, 0)
        values = np.linalg.svd(matrix, compute_uv=False)
        expected = (1 / ((values / (1e6 * noise)) ** 2 + prior)).mean()
        assert certificate.posterior_mse == pytest.approx(expected, rel=1e-3)
        found[noise] = certificate.posterior_mse
    assert found[0.001] < found[0.1]
    rounded = Setting(*specs, protection=make_spec("protection", "quantised"))
    certificates, bounds = Certifier(rounded).certificates(metric, selector, 0, (0,))
    assert np.isfinite(certificates[0][0].posterior_mse) and np.isnan(bounds[0]), "no bound where noise is not Gaussian"
    pruned = Setting(*specs, protection=make_spec("protection", "pruning"))
    with pytest.raises(UsageError, match="leaves some out"):
        Certifier(pruned).certify(metric, selector, 0, (0,), 0)
    with pytest.raises(UsageError, match="leaves some out"):
        Sweep(parse({**CELL, "metric": "magnitude", "ratio": 0.1, "attack": "idlg", "protection": ["none", "pruning"], "certificates": True}), tmp_path)
    assert not list(tmp_path.iterdir()), "refused before anything ran"


def test_a_sweep_takes_protections_as_an_axis(tmp_path):
    entries = ["none", {"name": "quantised", "bits": [3, 8]}, {"name": "dp_gaussian", "noise": 0.1}]
    config = {**CELL, "metric": "magnitude", "ratio": [0, 0.5], "attack": {"name": "idlg", "num_steps": 60}, "protection": entries}
    records, plan = run(config, tmp_path)
    assert plan.num_programs == 3, "without noise, with some, and with clipping that the attacker simulates"
    assert len(records) == 4 * 2 * 4 and records["cell_id"].is_unique
    clear = records[records["ratio"] == 0].groupby("protection_label")
    error, size = clear["mse"].median(), clear["plain_bytes"].first()
    assert error["none"] < 1e-6 < error["quantised"] < 1e-3 < error["quantised(bits=3)"] < error["dp_gaussian(noise=0.1)"]
    assert size["none"] == 4 * records["num_total"].iloc[0] and size["quantised"] < size["none"] / 3
    assert stopping_ratios(records)["panel"].nunique() == 4

    found = protections(records).set_index("protection")
    assert list(found["num_cells"]) == [4] * 4 and (found["ratio"] == 0).all() and found.loc["none", "quality"] > found.loc["quantised(bits=3)", "quality"]
    assert protections(records[records["protection"] == "none"]).empty
    page = make_report(tmp_path).read_text()
    assert "What is recovered behind each protection" in page and "<td>quantised(bits=3)</td>" in page
    assert set(pd.read_parquet(tmp_path / "records")["protection"]) == {"none", "quantised", "dp_gaussian"}
    assert [folder.name for folder in (tmp_path / "models").iterdir()] == ["setting-0-seed-0"], "one model, four protections"


def test_settings_that_do_not_fit_together_are_held_one_at_a_time(tmp_path, monkeypatch):
    config = parse({**CELL, "metric": "magnitude", "ratio": 0, "attack": "idlg", "protection": ["none", "quantised"]})
    for size, kept in ((1, 1), (10**15, 0)):
        monkeypatch.setattr(Setting, "num_bytes", property(lambda _, size=size: size, lambda *_: None), raising=False)
        sweep = Sweep(config, tmp_path)
        before = sweep._use(0).client(0).grads
        sweep._use(1)
        again = sweep._use(0).client(0).grads
        assert (again is before) == bool(kept)
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(again), strict=True))


def test_a_sweep_without_protections_is_the_sweep_that_it_was():
    given = {"dataset": "digits", "model": "lenet", "metric": "magnitude", "attack": "dlg", "ratio": [0, 0.1]}
    # Where nothing was named a measure judged, and now a level does: that is another sweep.
    assert parse(given).identity != "633d5a6c9c527a1b"
    given["success"] = {"measure": "mse", "threshold": 0.001}
    # Of a sweep begun before there were protections and levels; a folder of it must go on.
    assert parse(given).identity == "82a4f5e4ee4b3761" != parse({**given, "protection": "quantised"}).identity


def test_noise_in_float32_is_no_differential_privacy_and_says_so():
    """After Mironov (CCS 2012): of two updates a thousandth of the noise apart, the values that float32 has rule one out."""
    from selgrad.protections.dp_gaussian import dp_gaussian

    assert "no differential privacy" in dp_gaussian.__doc__
    generator, count = np.random.default_rng(0), 300
    sent = generator.normal(size=count).astype(np.float32)
    sent = (sent * np.float32(0.5 / np.linalg.norm(sent))).astype(np.float32)
    other = (sent + generator.choice([-1, 1], count) * 1e-3).astype(np.float32)
    protection = dp_gaussian(clip=1.0, noise=1.0)
    noisy = np.asarray(jax.jit(lambda g, k: protection(protection.deterministic_part({"w": g}), k).grads["w"])(sent, jax.random.key(5)))
    low = np.nextafter(np.float32(-1), np.float32(0), dtype=np.float32)
    uniform = jnp.asarray(np.arange(2**23, dtype=np.uint32) | np.uint32(0x3F800000)).view(jnp.float32) - jnp.float32(1)
    deviates = np.unique(jax.jit(lambda u: jnp.float32(np.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(low, u * (1 - low) + low)))(uniform))

    def possible(candidate):
        at = np.searchsorted(deviates, noisy - candidate)
        near = deviates[np.clip(at[:, None] + np.arange(-12, 13), 0, deviates.size - 1)]
        return ((candidate[:, None] + near).astype(np.float32) == noisy[:, None]).any(axis=1)

    assert possible(sent).all() and not possible(other).all()


def test_certificates_are_in_pixels_however_the_models_inputs_are_normalised():
    """The same network, with the normalisation inside of it or before it, has the same gradient and gives an attacker the same error in pixels."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.uniform(size=(4, 4, 4, 3)).astype(np.float32) * np.asarray([1.0, 0.5, 0.2], np.float32), np.arange(4)
    plain, standardised = from_arrays(pixels, labels), from_arrays(pixels, labels, normalisation="channel")
    assert max(standardised.spec.std) < 0.5 and standardised.spec.std[0] > 2 * standardised.spec.std[2]
    mean, std = (jnp.asarray(each) for each in (standardised.spec.mean, standardised.spec.std))

    def init(key):
        return {"kernel": jax.random.normal(key, (48, 9)) / 7, "head": jax.random.normal(jax.random.fold_in(key, 1), (9, 4)) / 3}

    def before(params, inputs):
        return jnp.tanh(inputs.reshape(len(inputs), -1) @ params["kernel"]) @ params["head"]

    def inside(params, inputs):
        return before(params, (inputs - mean) / std)

    metric, selector, counts = make_spec("metric", "random"), make_spec("selector", "global_top"), (0, 300, 440)
    found = []
    for dataset, apply in ((standardised, before), (plain, inside)):
        # With noise of 1e-4 the smallest and the largest information differ by less than float64's digits.
        specs, noise = [Spec.of("dataset", dataset), Spec.of("model", (init, apply)), make_spec("update", "gradient")], {"clip": 1e6, "noise": 1e-10}
        setting = Setting(*specs, public=specs[0], protection=make_spec("protection", "dp_gaussian", noise))
        found.append(Certifier(setting).certificates(metric, selector, 0, counts))
    (outer, outer_bounds), (inner, inner_bounds) = found
    np.testing.assert_allclose(outer_bounds, inner_bounds, rtol=1e-3)
    assert [one.rank for one in outer[0]] == [one.rank for one in inner[0]] and outer[0][2].rank < 48
    for field in ("posterior_mse", "influence_mse", "influence_bound"):
        np.testing.assert_allclose([getattr(one, field) for one in outer[0]], [getattr(one, field) for one in inner[0]], rtol=1e-3)
