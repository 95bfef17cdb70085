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
