"""The direction of imports is the design: rooms import base, trees, jacobian and errors, never one another."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "selgrad"
# Like `experiment`, it composes the rooms; it is a folder because its parts run in different processes.
CORRIDORS = {"federation"}
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists() and p.name not in CORRIDORS)
SHARED = {"selgrad.base", "selgrad.trees", "selgrad.jacobian", "selgrad.errors"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "selgrad" else {f"selgrad.{alias.name}" for alias in node.names}
    return found


def test_rooms_are_those_of_the_design():
    assert ROOMS == ["attacks", "data", "encryption", "evaluation", "gradients", "masks", "models", "protections", "report", "significance"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_other_room(room):
    for file in (PACKAGE / room).rglob("*.py"):
        ours = {name for name in imports(file) if name == "selgrad" or name.startswith("selgrad.")}
        foreign = {name for name in ours if name not in SHARED and not name.startswith(f"selgrad.{room}")}
        assert not foreign, f"{file.relative_to(PACKAGE)} imports {foreign}"


@pytest.mark.parametrize(
    ("package", "room"), [("openfhe", "encryption"), ("flwr", "federation"), ("wandb", "tracking"), ("orbax", "checkpoints"), ("matplotlib", "report")]
)
def test_one_place_knows_each_heavy_package(package, room):
    for file in PACKAGE.rglob("*.py"):
        if any(name == package or name.startswith(f"{package}.") for name in imports(file)):
            assert file.relative_to(PACKAGE).parts[0].removesuffix(".py") == room


def test_report_needs_no_jax():
    for file in (PACKAGE / "report").rglob("*.py"):
        assert not {name for name in imports(file) if name in ("jax", "selgrad.base", "selgrad.trees") or name.startswith("jax.")}


def test_every_module_says_what_it_is_in_two_sentences():
    for file in PACKAGE.rglob("*.py"):
        text = ast.get_docstring(ast.parse(file.read_text()))
        assert text, f"{file} has no docstring"
        assert text.split("\n")[0].endswith((".", "?")) or ":" in text, f"{file}: the first line is no sentence"
        assert len(text.split("\n\n")) >= 2 or file.name == "__init__.py", f"{file}: say what it computes, and from where"
