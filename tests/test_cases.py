"""Inputs that were answered wrongly once, each as somebody met it: run on the folder of cases where it is at hand (`SELGRAD_CASES`), and otherwise skipped.

What is wrong in kind has tests of its own beside the code that it concerns; these are the very files.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from selgrad.cli import main
from selgrad.errors import SelgradError
from selgrad.registry import make_spec

FOLDER = Path(os.environ.get("SELGRAD_CASES", ""))
pytestmark = pytest.mark.skipif(not (FOLDER / "README.md").is_file(), reason="SELGRAD_CASES names no folder of cases")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["selgrad", *map(str, arguments)])
        # Shown as in a process of its own, and no errors as in tests.
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as stop:
                main()
        told = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, stop.value.code, told.out, told.err)

    return run


def case(name):
    return next(FOLDER.glob(f"{name}_*"))


def load(name, **arguments):
    return make_spec("dataset", name, arguments).build()


def one_line(result, code):
    assert result.returncode == code and len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr, result.stderr
    return result.stderr


def attacked(run, *arguments):
    result = run("attack", *arguments, "--ratio", 0, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_d01_old_names_of_layer_norms(run):
    found = attacked(run, "--dataset", "sentences:count=3", "--model", f"bert:pretrained={case('D01')}", "--attack", "dager")
    assert found["rouge1"] == 1


def test_d02_russian_is_read(run):
    found = attacked(run, "--dataset", f"text_file:path={case('D02') / 'txt_ru.txt'}", "--model", "bert", "--attack", "dager")
    assert found["rouge1"] == found["rougeL"] == 1


def test_d03_one_class_has_no_gradient(run):
    text = (case("D03") / "sweep.yaml").read_text().replace("../shared/cases", str(FOLDER))
    Path("sweep.yaml").write_text(text)
    assert "one class" in one_line(run("sweep", "sweep.yaml", "--out", "x3"), 2)


def test_d04_sixteen_bits_are_kept():
    assert len(np.unique(load("image_folder", path=str(case("D04") / "img")).pixels[0])) == 64


def test_d05_hidden_folders_are_no_classes():
    data = load("image_folder", path=str(case("D05") / "img"))
    assert (data.spec.num_classes, len(data)) == (2, 2)


@pytest.mark.parametrize("name", ["u2028.txt", "bom.txt"])
def test_d06_lines_are_those_of_the_file(name):
    data = load("text_file", path=str(case("D06") / name))
    assert len(data) == 2
    if name == "bom.txt":
        assert data.decode(data.tokens[0]) == "the first line" and data.spec.vocabulary_size == 4 + len(
            {*["the", "first", "line"], *data.decode(data.tokens[1]).split()}
        )


def test_d07_cased_words_keep_their_case():
    data = load("text_file", path=str(case("D07") / "cased.txt"), tokenizer=str(case("D07")))
    assert data.tokens[0].tolist() == [2, 5, 8, 9, 11, 3]


def test_d08_ids_with_holes(run):
    folder = case("D08")
    found = attacked(run, "--dataset", f"text_file:path={folder / 'film.txt'},tokenizer={folder}", "--model", "bert", "--attack", "dager")
    assert found["rouge1"] == 1


def test_d09_a_key_stands_once(run):
    assert "'ratio' stands twice, in line" in one_line(run("sweep", case("D09") / "dup.yaml", "--out", "x9"), 2)


def test_d10_paths_are_printed_as_they_are(run):
    result = run("sweep", case("D10") / "ok.yaml", "--out", "runs/exp [v2] a")
    assert result.returncode == 0 and "runs/exp [v2] a/report.html" in result.stderr


def test_d11_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    import errno
    import fcntl

    from selgrad.sweep.store import RunFolder

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SelgradError, match="cannot lock files"), RunFolder(tmp_path / "out", "x").lock():
        pass


@pytest.mark.once
def test_d12_a_platform_that_is_not_there(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "selgrad", "sweep", str(case("D10") / "ok.yaml"), "--out", str(tmp_path / "x")],
        env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "JAX_PLATFORMS=cuda" in one_line(told, 1)


def test_d13_and_d17_copies_and_empty_side_files(run):
    run("sweep", case("D10") / "ok.yaml", "--out", "x13")
    before = json.loads(run("report", "x13", "--json").stdout)["cells"]
    file = next(Path("x13/records").glob("*.parquet"))
    shutil.copy(file, file.with_name(f"{file.stem} (1).parquet"))
    Path("x13/equivalence.parquet").write_bytes(b"")
    result = run("report", "x13", "--json")
    assert result.returncode == 0 and json.loads(result.stdout)["cells"] == before
    assert "(1).parquet" in result.stderr and "equivalence.parquet" in result.stderr


def test_d15_text_stays_text(run):
    path = case("D15") / "run #1"
    from selgrad.cli.options import entry

    given = entry("dataset", f"image_folder:path={path}")
    assert given["path"] == str(path) and load(**given).spec.num_classes == 2


def test_d18_pictures_stand_upright():
    assert load("image_folder", path=str(case("D18") / "img"), num_classes=2).spec.shape[:2] == (6, 8)


def test_d20_pictures_too_small_to_measure(run):
    assert "too small" in one_line(run("attack", "--dataset", f"image_folder:path={case('D20') / 'img'}", "--attack", "idlg:num_steps=2"), 2)


def test_d21_an_empty_line_is_no_damage():
    assert len(load("sst2", path=str(case("D21")))) == 2


def test_d14_two_data_sets_are_two_rows():
    from selgrad.report import tables

    source = (case("D14") / "merged.py").read_text().split("print(")[0].replace("r=pd.DataFrame", "records=pd.DataFrame")
    names: dict = {}
    exec(source, names)  # the case's own records
    found = tables.protecting_ratios(names["records"])
    assert len(found) == 2 and set(found["success_at_0"]) == {0.0, 1.0}
