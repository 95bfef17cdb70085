"""The node that runs one app alone; with real processes: test_flower.py."""

import hashlib
import importlib.util
import shutil
import types
from pathlib import Path

import pytest

from selgrad.errors import SelgradError, UsageError
from selgrad.federation import node

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed (extra federation)"),
    # Of typer, which Flower's command line imports.
    pytest.mark.filterwarnings("ignore:.*will be removed in Click 9:DeprecationWarning"),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"


@pytest.fixture
def app(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def flower(monkeypatch):
    """Flower's node, as it was, after the test."""
    import flwr.supernode.start_client_internal as module

    for name in ("_pull_and_store_message", "_verify_fab"):
        monkeypatch.setattr(module, name, getattr(module, name))
    return module


def bundle(content):
    return types.SimpleNamespace(content=content, verifications={"valid_license": ""})


def test_the_digest_is_that_of_what_flower_sends(app):
    from flwr.cli.build import build_fab_from_disk

    file = app.parent / "app.fab"
    file.write_bytes(build_fab_from_disk(app))
    assert node.digest_of(app) == node.digest_of(file) == node.digest_of(EXAMPLE)
    source = app / "digits_app" / "task.py"
    source.write_text(source.read_text() + "\n")
    assert node.digest_of(app) != node.digest_of(file), "one more line is another app"


def test_a_pinned_node_verifies_its_own_app_and_no_other(flower, monkeypatch):
    """Whatever the SuperLink says of signatures: the node is told that there are some, and then compares bytes."""
    given = {}
    monkeypatch.setattr(flower, "_pull_and_store_message", lambda **rest: given.update(rest))
    node.pin(hashlib.sha256(b"mine").hexdigest())
    flower._pull_and_store_message(get_fab=lambda hash_, run: bundle(b"mine"), trusted_entities=None, state="kept")
    assert given["trusted_entities"] and given["state"] == "kept" and given["get_fab"]("hash", 1).verifications["valid_license"]
    assert flower._verify_fab(bundle(b"mine"), given["trusted_entities"])
    for other in (b"", b"mine ", b"Mine"):
        assert not flower._verify_fab(bundle(other), given["trusted_entities"])


def test_no_node_starts_where_nothing_can_be_pinned(app, flower, monkeypatch, tmp_path):
    monkeypatch.setattr("flwr.supernode.cli.flower_supernode", lambda: pytest.fail("started"))
    for place in ("_pull_and_store_message", "_verify_fab"):
        with monkeypatch.context() as elsewhere:
            elsewhere.delattr(flower, place)
            with pytest.raises(SelgradError, match=r"install flwr 1\.30"):
                node.supernode(app, [])
    with pytest.raises(UsageError, match="hub alone"):
        node.supernode(app, ["--trusted-entities", "trusted.yaml"])
    with pytest.raises(UsageError, match=r"no pyproject\.toml"):
        node.supernode(tmp_path / "nowhere", [])
    (app / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(UsageError, match="cannot bundle"):
        node.supernode(app, [])


def test_options_reach_flower_as_they_are(app, flower, monkeypatch):
    import sys

    started = []
    monkeypatch.setattr("flwr.supernode.cli.flower_supernode", lambda: started.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["selgrad"])
    monkeypatch.setenv("PATH", "/usr/bin")
    node.supernode(app, ["--insecure", "--node-config", 'partition-id=0 enrolment="/a b"'])
    assert started == [["flower-supernode", "--insecure", "--node-config", 'partition-id=0 enrolment="/a b"']]
