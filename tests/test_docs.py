"""The pages that people follow are run: adding.md as a package of its own, and those that are printed from the code are current."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^## [^\n]*`(my_package/\w+\.py)`\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.once
def test_what_adding_says_makes_entries_that_meet_their_contracts(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "adding.md").read_text())
    assert len(blocks) == 7
    for name, code in blocks:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    (tmp_path / "my_package" / "__init__.py").write_text("")
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "my_package.register", "-q", "-rA"]
    chosen = "my_metric or my_selector or my_attack or my_model or my_data or signs"
    run = subprocess.run(
        [*command, str(ROOT / "tests" / "contracts"), "-k", chosen], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    passed = re.findall(r"PASSED \S+::(\S+)", run.stdout)
    for name in ("my_metric", "my_selector", "my_attack", "my_model", "my_data", "signs"):
        assert any(name in test for test in passed), f"no contract was run on {name}"


def test_generated_pages_are_current():
    specification = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text() == page(), f"docs/{name} is not what the code says; run docs/generate.py"
    assert (ROOT / "docs" / "figures" / "protecting.csv").read_text() == generate.searched().to_csv(index=False), "run docs/generate.py"


def test_readme_is_short_and_its_table_is_what_was_measured():
    specification = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert generate.summary() in readme
    assert generate.costs() in (ROOT / "docs" / "results" / "federated.md").read_text()
    for name in re.findall(r"\]\(([^)#]+)", readme):
        assert (ROOT / name).exists(), f"README links to {name}"


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda file: file.stem)
def test_a_page_of_results_names_its_commands_and_they_exist(file):
    text = file.read_text()
    scripts = set(re.findall(r"benchmarks/[\w/]+\.py", text))
    assert scripts or file.stem == "index"
    for script in scripts:
        assert (ROOT / script).is_file(), script


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_sweeps_that_are_shipped_run(file, tmp_path):
    """As they are but for the number of inputs, of ratios and of steps."""
    from selgrad import load_config, run_sweep

    config = load_config(file)
    assert len(sorted((ROOT / "configs").glob("*.yaml"))) == 5
    given = config.to_dict()
    given["dataset"] = [{**given["dataset"][0], "count": 1}]
    given["ratio"] = [0.0, 0.5]
    given["attack"] = [{**one, **({"num_steps": 3} if "num_steps" in one else {})} for one in given["attack"]]
    records = run_sweep(given, tmp_path / "out", quiet=True)
    assert len(records) == 2 * len(config.metric) * len(config.attack) * len(config.update) * len(config.protection)
