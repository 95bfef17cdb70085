"""The direction of imports is the design: component packages import base, trees, jacobian and errors, never one another."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "selgrad"
# They compose the component packages.
CORRIDORS = {"federation", "experiment", "sweep", "suites", "modality", "cli"}
COMPONENTS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists() and p.name not in CORRIDORS)
SHARED = {f"selgrad.{name}" for name in ("base", "trees", "jacobian", "errors", "callables", "measures", "sources", "files")}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "selgrad" else {f"selgrad.{alias.name}" for alias in node.names}
    return found


def test_component_packages_are_those_of_the_design():
    assert COMPONENTS == ["attacks", "data", "encryption", "evaluation", "gradients", "masks", "models", "protections", "report", "significance"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_package_imports_no_other(component):
    for file in (PACKAGE / component).rglob("*.py"):
        ours = {name for name in imports(file) if name == "selgrad" or name.startswith("selgrad.")}
        foreign = {name for name in ours if name not in SHARED and not name.startswith(f"selgrad.{component}")}
        assert not foreign, f"{file.relative_to(PACKAGE)} imports {foreign}"


@pytest.mark.parametrize(
    ("package", "home"), [("openfhe", "encryption"), ("flwr", "federation"), ("wandb", "tracking"), ("orbax", "checkpoints"), ("matplotlib", "report")]
)
def test_one_place_knows_each_heavy_package(package, home):
    for file in PACKAGE.rglob("*.py"):
        if any(name == package or name.startswith(f"{package}.") for name in imports(file)):
            assert file.relative_to(PACKAGE).parts[0].removesuffix(".py") == home


def test_report_needs_no_jax():
    for file in (PACKAGE / "report").rglob("*.py"):
        assert not {name for name in imports(file) if name in ("jax", "selgrad.base", "selgrad.trees") or name.startswith("jax.")}


def test_every_module_says_what_it_is_in_two_sentences():
    for file in PACKAGE.rglob("*.py"):
        text = ast.get_docstring(ast.parse(file.read_text()))
        assert text, f"{file} has no docstring"
        assert text.split("\n")[0].endswith((".", "?")) or ":" in text, f"{file}: the first line is not a sentence"
        assert len(text.split("\n\n")) >= 2 or file.name == "__init__.py", f"{file}: say what it computes, and from where"


def modules() -> dict[str, set[str]]:
    """Every module of the package and which of the package it imports, lazily or not."""
    names = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file for file in PACKAGE.rglob("*.py")}
    found = {}
    for name, file in names.items():
        edges = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                edges |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                edges |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in names else node.module for alias in node.names}
        found[name] = {edge for edge in edges if edge in names and edge != name}
    return found


def test_no_module_imports_itself_through_others():
    edges = modules()
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"a circle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in state:
            state[name] = 1
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            state[name] = 2

    # The package's own page of names imports lazily what it shows, and only its version is read from inside.
    edges["selgrad"] = set()
    for name in edges:
        visit(name, ())


def test_no_private_name_is_used_across_modules():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("selgrad"):
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name not in ("__version__", "_transformer")]
                assert not private, f"{file.relative_to(PACKAGE)} imports {private} of {node.module}"


def test_no_file_of_the_composition_layer_is_long():
    for folder in ("experiment", "sweep", "suites", "modality", "cli"):
        for file in (PACKAGE / folder).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 300, f"{file.relative_to(PACKAGE)} holds more than one trade"


def test_nothing_is_decided_by_how_an_argument_is_spelt():
    """Attacks, metrics and selectors declare what they need; nobody asks a spec for `hidden` or a name for what it is."""
    for folder in ("experiment", "sweep", "cli"):
        for file in (PACKAGE / folder).rglob("*.py"):
            text = file.read_text()
            for spelt in ('.get("hidden"', '.get("num_restarts"', '.get("precision"', '.name == "', '.name != "', "isinstance(spec, TextSpec)"):
                assert spelt not in text, f"{file.relative_to(PACKAGE)} asks {spelt}"


def test_files_are_written_and_read_in_one_place():
    """A file that is written in place is half of one after a kill, and text without an encoding is what the machine's locale makes of it."""
    in_place = {"write_text", "write_bytes", "read_text", "to_parquet", "to_csv", "to_json", "savefig"}
    for file in PACKAGE.rglob("*.py"):
        if file.name in ("files.py", "devices.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in in_place:
                continue
            owner = ast.unparse(node.func.value)
            # A table as text in memory is not a file.
            in_memory = node.func.attr in ("to_csv", "to_json") and not node.args
            assert in_memory or owner in ("files", "self.folder", "self"), f"{file.relative_to(PACKAGE)}:{node.lineno} calls {owner}.{node.func.attr}"
