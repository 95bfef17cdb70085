"""Each warning is raised by an attack that is broken in just that way, run as any other is, and none by one that works."""

import json

import jax
import jax.numpy as jnp
import pandas as pd
import pytest

from selgrad import read_records, run_sweep
from selgrad.attacks import ATTACKS
from selgrad.base import Attack, Reconstruction
from selgrad.report.flags import CHECKS, flags

SWEEP = {
    "name": "flags", "dataset": {"name": "digits", "count": 8}, "model": {"name": "mlp", "width": 12, "activation": "sigmoid"}, "metric": "magnitude",
    "ratio": [0, 0.05], "encryption": "none", "gallery": 0, "success": {"measure": "mse", "threshold": 1e-3},
}  # fmt: skip


def closed_form(*, hidden: str = "ignore", num_steps: int = 1, works_with: str = "", fault: str = "") -> Attack:
    """Reads the images where nothing is hidden or where it may, and is broken as `fault` says."""
    reads = {"": True, "zero": hidden == "zero", "ignore": hidden == "ignore", "steps": num_steps > 1, "never": False}[works_with]

    def finish(observation, key):
        spec, params, mask = observation.model.input_spec, observation.visible["fc_0"], observation.mask["fc_0"]
        whole = ~(mask["kernel"].any(axis=0) | mask["bias"])
        at = jnp.argmax(jnp.where(whole, jnp.abs(params["bias"]), -1))
        image = (params["kernel"][:, at] / params["bias"][at]).reshape(1, *spec.shape)
        noise = spec.normalise(1 - spec.pixels(image)) if fault != "unmoved" else jnp.zeros_like(image)
        found = jnp.where(reads, image, noise)
        label = jnp.argmin(observation.visible["fc_2"]["bias"])[None].astype(jnp.int32)
        label = (label + (fault == "labels")) % spec.num_classes
        lost = jnp.asarray([0.0, 9.0]) if fault == "restarts" else jnp.asarray([9.0, 9.0]) if fault == "early" else jnp.zeros(2)
        return Reconstruction(
            found, label, lost[0], jnp.zeros((), bool), jnp.int32(0), jnp.stack([found] * 2), jnp.stack([label] * 2), lost, jnp.int32(num_steps), moved=True
        )

    return Attack(lambda key, _: key, lambda _, key, __: key, finish, num_steps, 2, rung=hidden, objective=lambda *_: jnp.ones(()))


def reports_a_leaf_of_zeros(*, hidden: str = "ignore") -> Attack:
    """Says that it read the bias of a layer of which nothing depends."""
    works = closed_form()

    def finish(observation, key):
        found = works.finish(observation, key)
        return found._replace(report=json.dumps({"used": ["fc_0/kernel (whole)", "idle/bias"], "unused": []}))

    return Attack(lambda key, _: key, lambda _, key, __: key, finish, 1, 1, traceable=False, rung=hidden)


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setitem(ATTACKS, "closed", closed_form)
    monkeypatch.setitem(ATTACKS, "zeros", reports_a_leaf_of_zeros)


def raised(tmp_path, *attacks, **changes):
    return {flag.name for flag in flags(run_sweep({**SWEEP, **changes, "attack": list(attacks)}, tmp_path, quiet=True))}


def test_an_attack_that_works_raises_none(names, tmp_path):
    assert raised(tmp_path, {"name": "closed", "hidden": ["zero", "ignore"]}, {"name": "closed", "num_steps": 2}) == set()


@pytest.mark.parametrize(
    ("broken", "flag"),
    [
        ([{"name": "closed", "works_with": "never"}], "fails with nothing encrypted"),
        ([{"name": "closed", "works_with": "zero", "hidden": ["zero", "ignore"]}], "a weaker rung reads more"),
        ([{"name": "closed", "works_with": "steps", "num_steps": [1, 2]}], "more steps read more"),
        ([{"name": "closed", "fault": "restarts"}], "restarts disagree"),
        ([{"name": "closed", "works_with": "never", "fault": "early"}], "searches end too early"),
        ([{"name": "closed", "fault": "labels"}], "labels are wrong"),
        ([{"name": "closed", "works_with": "never"}], "no better than the mean"),
    ],
)
def test_each_fault_raises_its_flag(names, tmp_path, broken, flag):
    assert flag in raised(tmp_path, *broken)


def test_a_decoder_is_asked_at_every_ratio(names, tmp_path):
    broken = {"name": "closed", "hidden": "learned", "works_with": "never"}
    assert "no better than the mean" in raised(tmp_path, broken, ratio=[0.05])


def test_a_leaf_of_zeros_that_is_used_is_told(names, tmp_path):
    def init(key):
        shapes = {"fc_0": (64, 12), "fc_2": (12, 10)}
        layers = {name: {"kernel": jax.random.normal(key, shape) / 8, "bias": jnp.zeros(shape[1])} for name, shape in shapes.items()}
        return {**layers, "idle": {"bias": jnp.zeros(3)}}

    def apply(params, x):
        hidden = jax.nn.sigmoid(x.reshape(len(x), -1) @ params["fc_0"]["kernel"] + params["fc_0"]["bias"])
        return hidden @ params["fc_2"]["kernel"] + params["fc_2"]["bias"]

    records = run_sweep({**SWEEP, "model": (init, apply), "attack": "zeros"}, tmp_path, quiet=True)
    assert json.loads(records["attack_report"].iloc[0])["zero"] == ["idle/bias"], "and not the kernel, which holds something"
    assert "a leaf of zeros is used" in {flag.name for flag in flags(records)}


def test_what_a_certificate_determines_is_not_protected(names, tmp_path):
    """All but 5 % of the entries say all of the image, so an attack that does not read it is weak, and one that reads it contradicts nothing."""
    blind, able = ({"name": "closed", "works_with": works} for works in ("never", ""))
    assert "the certificate says otherwise" in raised(tmp_path / "blind", blind, certificates=True)
    assert raised(tmp_path / "able", able, certificates=True) == set()
    assert "the certificate says otherwise" not in raised(tmp_path / "both", blind, able, certificates=True)


def test_records_of_two_versions_of_the_code(names, tmp_path, monkeypatch):
    assert raised(tmp_path, {"name": "closed"}, ratio=[0.05]) == set()
    monkeypatch.setattr("selgrad.sweep.records.own_hash", lambda: "other")
    assert raised(tmp_path, {"name": "closed"}, ratio=[0.05]) == set(), "nothing is computed again"
    table = read_records(tmp_path)
    half = table["sample"] < table["sample"].median()
    assert {flag.name for flag in flags(table.assign(selgrad_source=table["selgrad_source"].where(half, "other")))} == {"several versions of the code"}
    assert {flag.name for flag in flags(table.assign(selgrad_source=table["selgrad_source"].where(half, None)))} == {"several versions of the code"}
    assert flags(table.drop(columns="selgrad_source")) == []


def test_every_check_has_its_fault_here():
    assert len(CHECKS) == 10 and flags(pd.DataFrame()) == []
