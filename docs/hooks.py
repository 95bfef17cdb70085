"""The site's front page is README, and its notebooks are those of the repository, with their outputs where they were executed.

`.ci/run` executes notebooks into `.ci/notebooks` before it builds the site; without that their pages show the code alone.
"""

import functools
import html
import re
from pathlib import Path

import jupytext
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def _front() -> str:
    """README, with its links as the site has them."""
    text = (ROOT / "README.md").read_text()
    return _without_code(text.replace("](docs/", "]("), "")


def _without_code(text: str, up: str) -> str:
    """Links to what the site does not hold become plain text."""
    places = "tests|benchmarks|selgrad|examples|configs|notebooks|LICENSE|CONTRIBUTING|CITATION|CHANGELOG|README"
    return re.sub(rf"(?<!!)\[([^\[\]]+)\]\({re.escape(up)}(?:{places})[^)]*\)", r"\1", text)


@functools.cache
def _sources() -> dict[str, str]:
    """Key -> authors and year, of every source."""
    listed = re.findall(r"`(\w+)`: (.*?) \((\d{4})\)\.", (ROOT / "docs" / "references.md").read_text())
    return {key: f"{authors} {year}" for key, authors, year in listed}


def on_page_markdown(markdown, page, config, files):
    """Pages link to the code as it lies in the repository, and name their sources as links."""
    depth = page.file.src_uri.count("/")
    text = _without_code(markdown, "../" * (depth + 1))
    if page.file.src_uri == "references.md":
        return text
    known = _sources()
    cited = lambda found: f"[{known[found[0]]}]({'../' * depth}references.md#{found[0]})" if found[0] in known else found[0]
    return re.sub(r"(?<![\[\w`#@])[a-z]+(?:19|20)\d\d[a-z]*(?![\w`\]])", cited, text)


def on_page_content(content, page, config, files):
    """Formulas become MathML, which browsers draw by themselves."""

    def drawn(found: re.Match[str]) -> str:
        return convert(html.unescape(found["latex"]), display="block" if found["kind"] == "div" else "inline")

    return re.sub(r'<(?P<kind>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=kind)>', drawn, content, flags=re.DOTALL)


def on_files(files, config):
    """Adds the front page and the notebooks to what is built."""
    files.append(File.generated(config, "index.md", content=_front()))
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        executed = ROOT / ".ci" / "notebooks" / f"{source.stem}.ipynb"
        notebook = jupytext.read(executed if executed.exists() else source)
        body, resources = MarkdownExporter().from_notebook_node(notebook, resources={"unique_key": source.stem})
        note = "" if executed.exists() else "\n!!! note\n    This page was built without executing the notebook; it shows the code alone.\n"
        head, line, rest = body.partition("\n")
        where = f"\nThe notebook is `notebooks/{source.name}`: `uv run jupytext --to ipynb notebooks/{source.name}` makes an `.ipynb` of it.\n"
        files.append(File.generated(config, f"notebooks/{source.stem}.md", content=head + line + where + note + rest))
        for name, content in resources.get("outputs", {}).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files
