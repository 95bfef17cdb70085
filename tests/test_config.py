"""Configurations: lists are axes, errors name the value and the remedy, and what is written back means the same."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad.config import load, parse
from selgrad.errors import SelgradError, UsageError
from selgrad.registry import expand, make_spec

BASE = {"dataset": {"name": "digits", "count": 4}, "model": "lenet", "metric": "magnitude", "attack": "idlg", "ratio": [0, 0.1]}


def test_lists_are_axes_and_sequence_arguments_are_values():
    specs = expand("metric", [{"name": "sensitivity", "target": ["labels", "inputs"], "num_probes": [8, 16]}, "random"])
    assert [s.label for s in specs] == [
        "sensitivity(target=labels, num_probes=8)".replace("target=labels, num_probes=8", "num_probes=8, target=labels"),
        "sensitivity(num_probes=16, target=labels)",
        "sensitivity(num_probes=8, target=inputs)",
        "sensitivity(num_probes=16, target=inputs)",
        "random",
    ]
    (one,) = expand("selector", {"name": "by_path", "paths": ["conv*/**", "fc/bias"]})
    assert one.get("paths") == ("conv*/**", "fc/bias")
    assert len(expand("selector", {"name": "by_path", "paths": [["conv*/**"], ["fc/**"]]})) == 2


def test_what_is_written_back_is_the_same_sweep():
    config = parse({**BASE, "selector": [{"name": "by_path", "paths": ["fc/**"]}, "global_top"], "seeds": [0, 1]})
    again = parse(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    assert again == config and again.identity == config.identity


def test_names_and_tags_do_not_change_a_sweeps_identity_but_its_cells_do():
    assert parse({**BASE, "name": "x", "wandb": {"tags": ["t"]}}).identity == parse(BASE).identity
    assert parse({**BASE, "ratio": [0, 0.2]}).identity != parse(BASE).identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "sensitivty"}, "unknown metric 'sensitivty'; did you mean 'sensitivity'?"),
        ({"metric": {"name": "sensitivity", "target": "label2"}}, "did you mean 'label'?"),
        ({"metric": {"name": "magnitude", "topk": 3}}, "takes no argument 'topk'"),
        ({"metric": []}, "metric is an empty list"),
        ({"metric": ["random", "random"]}, "random is listed twice"),
        ({"metric": 3}, "neither a name nor a mapping"),
        ({"ratio": 1.5}, r"ratio=1.5 lies outside \[0, 1\]"),
        ({"ratio": [0.1, 0.1]}, "0.1 is listed twice"),
        ({"ratio": "all"}, "ratio: 'all' is not a number"),
        ({"seeds": [0.5]}, "seeds: 0.5 is not an integer"),
        ({"atack": "dlg"}, "did you mean 'attack'?"),
        ({"attack": None}, "the configuration needs attack"),
        ({"attack": {"name": "dlg", "num_steps": "many"}}, "num_steps='many' is not an integer"),
        ({"attack": {"name": "dlg", "num_steps": True}}, "num_steps=True is not an integer"),
        ({"dataset": "mnist"}, "dataset 'mnist' needs path"),
        ({"encryption": {"num_clients": 500}}, r"num_clients=500 lies outside 1 .. 181"),
        ({"encryption": {"num_clients": None}}, "num_clients=None is not an integer"),
        ({"encryption": {"bound": -1}}, "bound=-1 is not a positive number"),
        ({"encryption": {"bound": 100.0}}, r"num_clients=10 lies outside 1 .. 1,"),
        ({"success": {"threshold": "high"}}, "threshold='high' is not a number"),
        ({"success": {"measure": "psnr"}}, "needs a threshold"),
        ({"success": {"level": "exakt"}}, "did you mean 'exact'?"),
        ({"success": {"level": "exact", "threshold": 0.5}}, "judges by itself"),
        ({"wandb": {"tags": "one"}}, "tags='one' is not list of text"),
        ({"encryption": {"profile": "exakt"}}, "did you mean 'exact'?"),
        ({"success": {"measure": "msee"}}, "did you mean 'mse'?"),
        ({"wandb": {"runs": "cell"}}, r"runs='cell' is not cell_group, attack or sweep"),
        ({"gallery": -1}, "gallery=-1 must be 0 or more"),
        ({"model_devices": 0}, "model_devices=0 must be 1 or more"),
        ({"seeds": [0, 2**31]}, "seeds: 2147483648 lies outside 0"),
    ],
)
def test_wrong_input_is_one_line_with_value_and_remedy(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse({**BASE, **change})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[1, 2", "just text", "", "- a\n- b"])
def test_files_that_are_no_configuration(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "missing.yaml")


def test_exponents_without_a_point_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(BASE) + "success: {threshold: 1e-2}\n")
    assert load(tmp_path / "c.yaml").success.threshold == 0.01


keys = st.sampled_from(["dataset", "model", "metric", "attack", "ratio", "seeds", "encryption", "success", "gallery", "name", "wandb", "zzz"])
inside = st.sampled_from(["name", "count", "target", "measure", "threshold", "profile", "num_clients", "bound", "project", "tags", "runs", "num_steps", "x"])
plain = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["random", "digits", "dlg", "name", "x"])
inner = plain | st.lists(plain, max_size=3) | st.dictionaries(inside, plain, max_size=3)
values = inner | st.lists(inner, max_size=3) | st.dictionaries(inside, inner, max_size=3)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(keys, values, max_size=3))
def test_any_change_is_accepted_or_refused_in_one_line(change):
    try:
        parse({**BASE, **change})
    except SelgradError as error:
        assert "\n" not in str(error)


def test_specs_hash_by_value_and_keep_defaults():
    a, b = make_spec("attack", "dlg", {"num_steps": 300}), make_spec("attack", "dlg")
    assert a == b and hash(a) == hash(b) and a.label == "dlg" and a.get("num_restarts") == 1


def test_a_key_that_stands_twice_is_refused_wherever_it_stands(tmp_path):
    for text in ("ratio: 0\nratio: 1\n", "model: {name: mlp, width: 3, width: 4}\n", "attack:\n  - {name: dlg, name: idlg}\n"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UsageError, match="stands twice"):
            load(tmp_path / "c.yaml")
