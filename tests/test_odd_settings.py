"""Settings as people mistype them: numbers out of their range, keys that stand twice, text that another language would take for something else."""

import inspect
import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad.cli.options import entry
from selgrad.config import EncryptionConfig, read_yaml
from selgrad.errors import UsageError
from selgrad.registry import make_spec as make
from selgrad.registry import names, parameters

RATES = [(kind, name) for kind in ("attack", "update") for name in names(kind) if "learning_rate" in parameters(kind, name)]


@pytest.mark.parametrize(("kind", "name"), RATES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_a_rate_is_positive(kind, name, value):
    with pytest.raises(UsageError, match="learning_rate"):
        make(kind, name, {"learning_rate": value}).build()


def test_no_number_is_nan():
    for kind in ("attack", "update", "protection", "metric", "selector", "model", "dataset"):
        for name in names(kind):
            for key, parameter in parameters(kind, name).items():
                if parameter.annotation is float:
                    required = {k: 0.5 for k, p in parameters(kind, name).items() if p.default is inspect.Parameter.empty}
                    with pytest.raises(UsageError, match=f"{key}=nan is not number"):
                        make(kind, name, {**required, key: math.nan})


@pytest.mark.parametrize("bound", [math.nan, math.inf, 0.0, -1.0, 1e-30, 1e30])
def test_a_bound_holds_values(bound):
    with pytest.raises(UsageError, match="bound"):
        EncryptionConfig.parse({"bound": bound})


@pytest.mark.parametrize(("section", "key"), [("success", "threshold"), ("rounds", "server_learning_rate"), ("encryption", "bound")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_section_takes_numbers(section, key, value):
    from selgrad.config import parse

    content = {"dataset": "digits", "model": "mlp", "metric": "random", "ratio": 0, "attack": "idlg", section: {key: value}}
    with pytest.raises(UsageError, match=key):
        parse(content)


PATH = st.text(string.ascii_letters + string.digits + " #:=~/._-&*!%@`{}|>?'\"[]()+$\\;äß木", min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(path=PATH, count=st.integers(0, 9))
def test_text_is_taken_as_it_is(path, count):
    """Whatever YAML would make of it; what opens a quote or a list is quoted."""
    if path.strip() != path or path == "null":
        return
    quoted = "'" + path.replace("'", "''") + "'"
    assert entry("dataset", f"image_folder:path={quoted},count={count}") == {"name": "image_folder", "path": path, "count": count}
    if not set(path) & set("'\"[]{},"):
        assert entry("dataset", f"image_folder:path={path},count={count}") == {"name": "image_folder", "path": path, "count": count}


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40))
def test_the_little_language_takes_anything_or_says_why(text):
    try:
        entry("dataset", f"image_folder:{text}")
    except UsageError as error:
        assert str(error)


@given(
    key=st.text(string.ascii_lowercase, min_size=1, max_size=5).filter(lambda key: key not in ("y", "n", "on", "off", "yes", "no", "true", "false", "null")),
    first=st.integers(),
    second=st.integers(),
)
def test_a_key_stands_once(key, first, second):
    with pytest.raises(UsageError, match="stands twice, in line 1 and again in line 2"):
        read_yaml(f"{key}: {first}\n{key}: {second}\n", "it")
    with pytest.raises(UsageError, match="stands twice"):
        entry("dataset", f"digits:{key}={first},{key}={second}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("&a [*a]", "holds itself"), ("a: &b {c: [*b]}", "holds itself"), ("[" * 5000 + "]" * 5000, "nested too deeply"), ("2024-13-45", "cannot be read"),
        ("x: !!python/object/apply:os.system [ls]", "it"), ("a: " + "1" * 1_000_001, "characters"), ("{a: 1", "is not valid YAML"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(text, "it")
    assert "\n" not in str(caught.value)


def test_what_an_anchor_shares_is_read(tmp_path):
    assert read_yaml("a: &x [1, 2]\nb: *x\nc: {d: *x}", "it") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_a_grid_within_an_entry_has_an_end():
    from selgrad.registry import expand

    with pytest.raises(UsageError, match="at most 10,000"):
        expand("attack", {"name": "dlg", "num_steps": list(range(1, 2001)), "num_restarts": list(range(1, 2001))})
