"""Settings as people mistype them: numbers out of their range, keys that stand twice, text that another language would take for something else."""

import inspect
import math
import re
import string
import types
import typing

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
                    with pytest.raises(UsageError, match=f"{key}=nan is not a number"):
                        make(kind, name, {**required, key: math.nan})


def _with_bounds():
    """Every number that a component of selgrad takes, with values that none can take."""
    for kind in ("attack", "update", "protection", "metric", "selector", "model", "dataset", "engine"):
        for name in names(kind):
            for key, parameter in parameters(kind, name).items():
                inner = (parameter.annotation, *typing.get_args(parameter.annotation))
                if float in inner or int in inner:
                    yield from ((kind, name, key, value) for value in ((-1, 2**31) if int in inner else (-1.0, -0.5, math.inf, -math.inf)))
                if int in inner and key in ("width", "patch", "mlp_ratio", "num_heads", "num_layers", "num_starts"):
                    yield kind, name, key, 0


@pytest.mark.parametrize(("kind", "name", "key", "value"), list(_with_bounds()))
def test_every_number_has_a_range(kind, name, key, value):
    fitting = lambda annotation: "x" if annotation is str else typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Literal else 0.5
    required = {k: fitting(p.annotation) for k, p in parameters(kind, name).items() if p.default is inspect.Parameter.empty}
    is_list = typing.get_origin(parameters(kind, name)[key].annotation) not in (None, typing.Union, types.UnionType, typing.Literal)
    with pytest.raises(UsageError, match=re.escape(f"{key}=")):
        make(kind, name, {**required, key: [value] if is_list else value})


def _options():
    from selgrad.cli.group import cli

    return [
        (name, option.opts[0])
        for name, command in cli.commands.items()
        for option in command.params
        if option.param_type_name == "option" and not option.is_flag
    ]


@pytest.mark.parametrize(("command", "option"), _options())
def test_an_option_stands_once(command, option):
    """Click would take the last one."""
    import click

    from selgrad.cli.group import cli

    found = cli.commands[command]
    several = next(one for one in found.params if option in one.opts).multiple
    context = click.Context(found, resilient_parsing=True, **found.context_settings)
    given = [*(["config.yaml"] if any(one.param_type_name == "argument" for one in found.params) else []), option, "1", option, "2"]
    if several:
        found.parse_args(context, given)
    else:
        with pytest.raises(UsageError, match=f"{option} is given 2 times and takes one value"):
            found.parse_args(context, given)


@given(number=st.integers(0, 10**6), zeros=st.integers(1, 3), minutes=st.integers(0, 59))
def test_a_number_is_what_people_read(number, zeros, minutes):
    """YAML 1.1 reads 010 as eight and 1:30 as ninety."""
    assert read_yaml(str(number), "it") == number and read_yaml(f"-{number}", "it") == -number
    assert read_yaml(f"{'0' * zeros}{number}", "it") == f"{'0' * zeros}{number}"
    assert read_yaml(f"{number}:{minutes:02d}", "it") == f"{number}:{minutes:02d}"
    assert read_yaml(f"{number}e-3", "it") == pytest.approx(number / 1000) and read_yaml(f"{number}.5", "it") == number + 0.5


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_a_value_is_not_empty(value):
    """An unset variable of the shell would name the current folder."""
    with pytest.raises(UsageError, match="path has no value"):
        entry("dataset", f"image_folder:path={value},count=2")


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
@pytest.mark.parametrize("measure", ["mse", "ssim", "rougeL", "identified"])
def test_a_threshold_tells_something_apart(measure, threshold):
    from selgrad.config import SuccessConfig

    if (measure, threshold) == ("mse", 2.0):
        assert SuccessConfig.read({"measure": measure, "threshold": threshold}, "success").threshold == 2.0
    elif (measure, threshold) == ("ssim", -1.0):
        assert SuccessConfig.read({"measure": measure, "threshold": threshold}, "success").threshold == -1.0
    else:
        with pytest.raises(UsageError, match="would accept or refuse every result"):
            SuccessConfig.read({"measure": measure, "threshold": threshold}, "success")


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
        ("&a [*a]", "refers to itself"), ("a: &b {c: [*b]}", "refers to itself"), ("[" * 5000 + "]" * 5000, "nested too deeply"), ("2024-13-45", "cannot be read"),
        ("a: !!bool maybe", "cannot be read"), ("a: !!int ''", "cannot be read"), ("a: !!timestamp x", "cannot be read"), ('a: "\\ud800"', "half of a character"),
        ("x: !!python/object/apply:os.system [ls]", "it"), ("a: " + "1" * 1_000_001, "characters"), ("{a: 1", "is not valid YAML"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(text, "it")
    assert "\n" not in str(caught.value)


def test_what_an_anchor_shares_is_read(tmp_path):
    assert read_yaml("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3", "it") == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}
    assert read_yaml("a: &x [1, 2]\nb: *x\nc: {d: *x}", "it") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_a_grid_within_an_entry_has_an_end():
    from selgrad.registry import expand

    with pytest.raises(UsageError, match="limit is 10,000"):
        expand("attack", {"name": "dlg", "num_steps": list(range(1, 2001)), "num_restarts": list(range(1, 2001))})
