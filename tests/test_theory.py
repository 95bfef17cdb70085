"""Documents that name code, tests and sources, held to what there is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_theory_names_exists():
    text = (ROOT / "docs" / "theory.md").read_text()
    there = {name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 20 and named <= there, named - there
    for path in re.findall(r"\]\((\.\./[\w/.]+)\)", text):
        assert (ROOT / "docs" / path).exists(), path


def test_every_source_that_code_and_documents_name_is_in_the_references():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text()))
    named = {}
    for file in [*(ROOT / "selgrad").rglob("*.py"), *(ROOT / "docs").glob("*.md")]:
        for key in re.findall(r"\b([a-z]{2,}(?:19|20)\d\d[a-z]+|[a-z]{3,}(?:19|20)\d\d)\b", file.read_text()):
            named[key] = file.name
    assert len(named) > 30
    assert {key: file for key, file in named.items() if key not in known} == {}
