"""Every block of code that README and the pages of docs show: Python runs, configurations are read, and commands take the options that they are given."""

import collections
import dataclasses
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml

import selgrad
from selgrad import encryption
from selgrad.cli.group import cli
from selgrad.cli.options import entry
from selgrad.federation import config as federated
from selgrad.registry import REGISTRIES, Spec

needs_openfhe = pytest.mark.skipif(encryption.unavailable() is not None, reason=str(encryption.unavailable()))
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXECUTED = re.findall(r'"([\w/]+\.md)"', re.search(r"^testpaths = .*$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0])
"""Pages whose examples pytest runs as doctests."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a page."""

    page: str
    language: str
    code: str

    @property
    def is_doctest(self):
        return self.language == "python" and ">>> " in self.code


BLOCKS = [
    Block(str(page.relative_to(ROOT)), language, code)
    for page in PAGES
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


def of(language):
    """A parameter for each block of a language that is no doctest."""
    chosen = [block for block in BLOCKS if block.language == language and not block.is_doctest]
    return pytest.mark.parametrize("block", chosen, ids=[f"{block.page}-{number}" for number, block in enumerate(chosen)])


def test_blocks_are_of_kinds_that_are_run():
    assert len(BLOCKS) > 35
    # Pages that are written from the code show what it prints as `text`.
    assert {block.language for block in BLOCKS} <= {"python", "yaml", "console", "toml", "text"}
    assert {block.page for block in BLOCKS if block.is_doctest} <= set(EXECUTED)
    assert not [block for block in BLOCKS if "doctest:" in block.code]
    others = [block.page for block in BLOCKS if block.language == "python" and not block.is_doctest]
    # Those of adding.md: test_docs.py; the first of federation.md: encryption/test_roles.py; the other three: below.
    assert collections.Counter(others) == {"docs/adding.md": 7, "docs/federation.md": 2, "docs/sweeps.md": 1, "docs/bring_your_own.md": 1}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that has the files which the pages name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "metrics.py").write_text("import jax, jax.numpy as jnp\n\n\ndef relative(grads):\n    return jax.tree.map(jnp.abs, grads)\n")
    (tmp_path / "my_models.py").write_text(
        "import flax.linen as nn\n\n\nclass Net(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n        return nn.Dense(10)(x.reshape(len(x), -1))\n"
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"dataset": {"name": "digits", "count": 10}, "test": {"name": "digits", "count": 5, "offset": 10}}))
    for name in ("holder.pem", "holder.key"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_package", "my_package.metrics", "my_models"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@of("yaml")
def test_configurations_are_read(block, place):
    given = yaml.safe_load(block.code)
    if "local" in given:
        assert federated.parse(given).local.num_steps == given["local"]["num_steps"]
    else:
        whole = {"name": "page", "dataset": {"name": "digits", "count": 1}, "model": "lenet", "attack": "idlg", "metric": "magnitude", "ratio": 0, **given}
        read = selgrad.parse_config(whole).to_dict()
        assert set(given) <= set(read)


@of("toml")
def test_entry_points_are_of_groups_that_there_are_and_flower_reads_the_link(block):
    if "superlink" in block.code:
        flower = pytest.importorskip("flwr.cli.flower_config", reason="Flower is not installed (extra federation)")
        links = pytest.importorskip("tomli").loads(block.code)["superlink"]
        (link,) = [flower.parse_superlink_connection(given, name) for name, given in links.items()]
        assert (link.name, link.address) == ("mine", "HOST:9093") and link.root_certificates and not link.insecure
        return
    groups = re.findall(r'entry-points\."selgrad\.(\w+)"', block.code)
    assert groups
    assert {group.removesuffix("s") for group in groups} <= set(REGISTRIES)


def commands(code):
    """The arguments of every `selgrad ...` of a block."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "selgrad" in words and words[:2] != ["git", "clone"]:
            yield words[words.index("selgrad") + 1 :]


@of("console")
def test_commands_take_what_they_are_given(block, place):
    tried = 0
    for arguments in commands(block.code):
        name, *rest = arguments
        command = cli.commands[name]
        with command.make_context(name, rest) as context:
            for kind in ("dataset", "test", "model", "update", "protection", "attack", "metric"):
                value = context.params.get(kind)
                for text in (value,) if isinstance(value, str) else value or ():
                    assert Spec.of("dataset" if kind == "test" else kind, entry(kind, text)).label
        tried += 1
    assert tried or not re.search(r"^(uv run )?selgrad ", block.code, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.once
def test_the_records_of_a_sweep_open_in_pandas_as_the_page_says(place):
    (block,) = [one for one in BLOCKS if one.page == "docs/sweeps.md" and one.language == "python" and not one.is_doctest]
    config = {
        "dataset": {"name": "digits", "count": 1}, "model": {"name": "mlp", "width": 4}, "metric": "magnitude", "ratio": [0.0, 0.5], "attack": "rank_one",
        "encryption": "none",
    }  # fmt: skip
    selgrad.run_sweep(config, place / "runs" / "images", quiet=True)
    head, last = block.code.strip().rsplit("\n", 1)
    names = {}
    exec(head, names)
    assert eval(last, names).index.get_level_values("ratio").tolist() == [0.0, 0.5]


@needs_openfhe
def test_a_gradient_is_encrypted_as_the_page_says():
    before, block = [one for one in BLOCKS if one.page == "docs/bring_your_own.md" and one.language == "python"][-2:]
    names = {"jax": jax, "jnp": jnp, "selgrad": selgrad}
    for example in doctest.DocTestParser().get_examples(before.code):
        exec(example.source, names)
    exec(block.code, names)


@pytest.mark.once
@needs_openfhe
def test_an_app_of_ones_own_is_written_as_the_page_says(place):
    pytest.importorskip("grpc", reason="the extra `federation` is not installed")
    if importlib.util.find_spec("flwr") is None:
        pytest.skip("the extra `federation` is not installed")
    page = [block for block in BLOCKS if block.page == "docs/federation.md"]
    (enrol, _), *_ = ([*commands(block.code)] for block in page if block.language == "console" and "--enrol-only" in block.code)
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "selgrad", *enrol], capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (place / "keys").iterdir() if path.is_dir()} == {*map(str, range(5)), "server", "key-holder"}
    (mods,) = [block.code for block in page if "SelectiveFedAvg(" in block.code]
    done = subprocess.run([sys.executable, "-c", mods], capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr
