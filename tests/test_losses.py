"""What lies in a run's folder may be damaged, copied or gone: nothing finished is lost, and nothing counts twice."""

import json
import platform
import re
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selgrad import files, run_sweep
from selgrad.errors import DamagedError, SelgradError, UsageError
from selgrad.report.page import make_report
from selgrad.report.tables import read_records

CONFIG = {
    "name": "losses",
    "dataset": {"name": "digits", "count": 2},
    "model": {"name": "mlp", "width": 8},
    "metric": ["random", "magnitude"],
    "ratio": [0, 0.5],
    "attack": {"name": "idlg", "num_steps": 2},
    "encryption": "none",
    "gallery": 0,
    "block_size": 4,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("losses") / "out"
    return out, run_sweep(CONFIG, out, quiet=True)


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out"


def as_before(records, finished):
    again = records.drop(columns=["run_id"]).sort_values("cell_id", ignore_index=True)
    pd.testing.assert_frame_equal(again, finished[1].drop(columns=["run_id"]).sort_values("cell_id", ignore_index=True))


def other_sweep(folder):
    """A record file of a sweep of another model, which may have the same name."""
    run_sweep({**CONFIG, "model": {"name": "mlp", "width": 9}}, folder, quiet=True)
    return next((folder / "records").glob("*.parquet"))


def test_a_cell_counts_once_whatever_lies_beside_its_records(folder, finished, tmp_path):
    records = folder / "records"
    mine, theirs = next(records.glob("*.parquet")), other_sweep(tmp_path / "other")
    shutil.copy(mine, records / f"{mine.stem} (1).parquet")
    (records / f"._{mine.name}").write_bytes(b"\x00\x05\x16\x07 what another system keeps beside a file")
    shutil.copy(theirs, records / f"{7:016x}.parquet")
    with pytest.warns(UserWarning, match="is left out") as told:
        found = read_records(folder)
    as_before(found, finished)
    named = " ".join(str(one.message) for one in told)
    assert all(name in named for name in (f"{mine.stem} (1)", f"._{mine.name}", f"{7:016x}", "of another sweep"))
    # Under a block's own name it is not a block of this sweep either.
    for file in records.glob("*.parquet"):
        file.unlink()
    shutil.copy(theirs, records / mine.name)
    with pytest.warns(UserWarning, match="of another sweep"):
        assert len(run_sweep(CONFIG, folder, quiet=True)) == len(finished[1])


def test_a_cell_that_two_files_hold_counts_once(folder, finished):
    records = folder / "records"
    shutil.copy(next(records.glob("*.parquet")), records / f"{9:016x}.parquet")
    with pytest.warns(UserWarning, match="twice"):
        as_before(read_records(folder), finished)


def flipped(text, at, bit):
    raw = bytearray(text.encode())
    raw[at % len(raw)] ^= 1 << bit
    return bytes(raw)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "sizes", "garbage", "list"])
def test_a_sweep_goes_on_without_its_plan(folder, finished, damage):
    plan = folder / "plan.json"
    text = plan.read_text()
    content = {
        "empty": "", "cut": text[: len(text) // 2], "garbage": "\x00\xff", "list": "[1]",
        "sizes": json.dumps({**json.loads(text), "block_sizes": dict.fromkeys(json.loads(text)["block_sizes"], 1)}),
    }  # fmt: skip
    plan.unlink() if damage == "gone" else plan.write_text(content[damage])
    when = {file: file.stat().st_mtime_ns for file in (folder / "records").glob("*.parquet")}
    with pytest.warns(UserWarning, match=r"plan.json' is damaged or gone"):
        again = run_sweep({**CONFIG, "block_size": 2}, folder, quiet=True)
    as_before(again, finished)
    assert {file: file.stat().st_mtime_ns for file in (folder / "records").glob("*.parquet")} == when, "nothing was run again"
    # And from then on as ever.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_before(run_sweep(CONFIG, folder, quiet=True), finished)


def test_a_plan_without_config_or_of_another_sweep_is_refused(folder):
    (folder / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"config.yaml is not that of this sweep"):
        run_sweep({**CONFIG, "seeds": [3]}, folder, quiet=True)
    (folder / "config.yaml").write_text("\x00")
    with pytest.warns(UserWarning, match="goes on"):
        run_sweep(CONFIG, folder, quiet=True)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_a_plan_changes_what_is_run(finished, tmp_path_factory, at, bit):
    from selgrad.sweep.store import RunFolder

    out = finished[0]
    saved = json.loads((out / "plan.json").read_text())
    place = tmp_path_factory.mktemp("plan")
    shutil.copytree(out / "records", place / "records")
    shutil.copy(out / "config.yaml", place / "config.yaml")
    (place / "plan.json").write_bytes(flipped((out / "plan.json").read_text(), at, bit))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = RunFolder(place, saved["identity"])
    # JSON that means the same, or a plan that was lost.
    assert found.is_recovered or (found.block_sizes, found.run_id) == (saved["block_sizes"], saved["run_id"])


def test_a_damaged_side_file_is_made_again(folder):
    make_report(folder)
    for content in (b"", b"PAR1", b"\x00" * 1000):
        (folder / "equivalence.parquet").write_bytes(content)
        with pytest.warns(UserWarning, match="computes it again"):
            make_report(folder)
    run_sweep(CONFIG, folder, quiet=True)
    assert len(files.read_frame(folder / "equivalence.parquet"))


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 100_000), bit=st.integers(0, 7))
def test_a_changed_bit_of_a_table_is_seen_or_changes_nothing(tmp_path_factory, at, bit):
    file = tmp_path_factory.mktemp("bits") / "t.parquet"
    table = pd.DataFrame({"a": np.arange(50.0), "b": [f"text {i}" for i in range(50)]})
    files.write_table(file, table)
    raw = bytearray(file.read_bytes())
    # Of the pages; the footer's text is that of the schema.
    pages = len(raw) - int.from_bytes(raw[-8:-4], "little") - 8
    raw[at % pages] ^= 1 << bit
    file.write_bytes(raw)
    try:
        pd.testing.assert_frame_equal(files.read_frame(file), table)
    except DamagedError as error:
        assert "\n" not in str(error)


def test_what_a_kill_left_is_swept_up(folder):
    here = re.sub("[^A-Za-z0-9]", "", platform.node()) or "here"
    gone, elsewhere = (folder / "records" / f".x.parquet.{host}-999999999.tmp" for host in (here, "another"))
    gone.write_bytes(b"half")
    elsewhere.write_bytes(b"being written")
    (folder / "records" / ".note.tmp").write_bytes(b"somebody's")
    run_sweep(CONFIG, folder, quiet=True)
    assert not gone.exists() and elsewhere.exists() and (folder / "records" / ".note.tmp").exists()


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "file"
    files.write_text(target, "first")

    def fails(scratch):
        scratch.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(target, fails)
    assert target.read_text() == "first" and len(list(target.parent.iterdir())) == 1
    (tmp_path / "b").write_text("a file")
    with pytest.raises(SelgradError, match="cannot write"):
        files.write_text(tmp_path / "b" / "file", "x")


def _pictures(folder):
    for at, label in enumerate("ab"):
        (folder / label).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 50 * at + 50, np.uint8)).save(folder / label / "x.png")


def test_an_exchanged_picture_is_found_without_the_plan_and_in_every_part(tmp_path):
    """The plan may be lost as well, and of two parts of one folder the second may be what changed."""
    _pictures(tmp_path / "data")
    part = {"name": "image_folder", "path": str(tmp_path / "data"), "num_classes": 2, "count": 1}
    config = {**CONFIG, "dataset": [part, {**part, "offset": 1}]}
    run_sweep(config, tmp_path / "out", quiet=True)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "data" / "b" / "x.png")
    with pytest.raises(UsageError, match=r"offset=1.* has changed since the sweep"):
        run_sweep(config, tmp_path / "out", quiet=True)
    (tmp_path / "out" / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"offset=1.* has changed since the sweep"), pytest.warns(UserWarning, match="damaged or gone"):
        run_sweep(config, tmp_path / "out", quiet=True)


def test_a_configuration_that_cannot_be_read_costs_no_report(folder):
    (folder / "config.yaml").write_bytes(b"name: \xff\n")
    with pytest.warns(UserWarning, match=r"config.yaml.* is damaged"):
        page = make_report(folder)
    assert "cannot be read" in page.read_text()


def test_exchanged_data_under_the_same_name_are_another_sweep(tmp_path):
    _pictures(tmp_path / "data")
    config = {**CONFIG, "dataset": {"name": "image_folder", "path": str(tmp_path / "data")}}
    run_sweep(config, tmp_path / "out", quiet=True)
    before = len(run_sweep(config, tmp_path / "out", quiet=True))
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "data" / "a" / "x.png")
    with pytest.raises(UsageError, match="has changed since the sweep"):
        run_sweep(config, tmp_path / "out", quiet=True)
    assert len(read_records(tmp_path / "out")) == before
    run_sweep(config, tmp_path / "other", quiet=True)


def test_exchanged_weights_under_the_same_name_are_another_sweep(tmp_path):
    from selgrad import checkpoints
    from selgrad.registry import make_spec

    model = make_spec("model", "mlp", {"width": 8}).build(make_spec("dataset", "digits").build().spec)
    config = {**CONFIG, "model": {"name": "mlp", "width": 8, "checkpoint": str(tmp_path / "weights")}}
    for seed in (0, 1):
        checkpoints.save_params(tmp_path / "weights", model.init(jax.random.key(seed)))
        if seed == 0:
            run_sweep(config, tmp_path / "out", quiet=True)
    with pytest.raises(UsageError, match="has changed since the sweep"):
        run_sweep(config, tmp_path / "out", quiet=True)


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_changed_bit_of_a_checkpoint_is_seen_or_changes_nothing(tmp_path_factory, at, bit):
    from selgrad import checkpoints

    series = checkpoints.Series(tmp_path_factory.mktemp("series"))
    state = {"weights": np.random.default_rng(0).normal(size=300).astype(np.float32)}
    series.save(3, state)
    every = sorted(file for file in series._folder.rglob("*") if file.is_file() and file.stat().st_size)
    file = every[at % len(every)]
    raw = bytearray(file.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    file.write_bytes(raw)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = series.newest(state)
    assert (found.arrays["weights"] == state["weights"]).all() if found is not None else "passed over" in str(said[0].message)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    from selgrad import checkpoints

    series = checkpoints.Series(tmp_path / "series")
    for done in (1, 2, 3):
        series.save(done, {"x": np.full(300, done)}, [f"after {done}"])
    assert sorted(path.name for path in (tmp_path / "series").iterdir()) == ["2", "2.json", "3", "3.json"]
    file = tmp_path / "series" / "3" / "_METADATA"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="passed over for the checkpoint before it"):
        found = series.newest({"x": np.zeros(300, int)})
    assert found.done == 2 and (found.arrays["x"] == 2).all() and found.notes == ("after 2",)


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.sampled_from("[]{}*?!'\"#%~$&;:,=\\ aé界.-"), min_size=1, max_size=12).filter(lambda name: name.strip(".")))
def test_a_folder_may_have_any_name(tmp_path_factory, name):
    """Brackets in a path are patterns to Orbax, and markup to Rich."""
    import io

    from selgrad import checkpoints, terminal

    folder, state = tmp_path_factory.mktemp("names") / name, {"x": np.arange(4.0)}
    checkpoints.save(folder / name, state)
    checkpoints.save(folder / name, state)
    assert (checkpoints.load(folder / name, state)["x"] == state["x"]).all()
    shown = io.StringIO()
    terminal.console(file=shown, width=10_000).print(f"figures: {folder}", soft_wrap=True)
    assert shown.getvalue() == f"figures: {folder}\n"


def test_a_full_disk_is_one_line_whatever_kind_of_error_a_library_makes_of_it(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    from selgrad import checkpoints

    series, state = checkpoints.Series(tmp_path / "series"), {"x": np.arange(4.0)}
    series.save(1, state)
    for error in (ValueError("RESOURCE_EXHAUSTED: Error writing local file\nand more"), OSError(28, "No space left on device")):

        def full(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(ocp.PyTreeCheckpointer, "save", full)
            with pytest.raises(SelgradError, match="cannot write checkpoint") as caught:
                series.save(2, state)
        assert "\n" not in str(caught.value) and series.newest(state).done == 1


@pytest.mark.parametrize("size", [2_000, 8_000])
def test_a_disk_that_is_really_full_is_one_line(tmp_path, size):
    """Files that may not grow stand for the full disk: Orbax's threads would print their tracebacks before the line."""
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2); from selgrad.__main__ import main; main()"
    options = ["--dataset", "digits:count=100", "--model", "mlp:width=40", "--epochs", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, str(size), "train", *options], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1 and len(lines) == 1 and "make room" in lines[0] and "too large" in lines[0], done.stderr


def test_a_language_model_is_written_whole_or_trained_again(tmp_path, monkeypatch):
    import safetensors.numpy

    from selgrad import language_model
    from selgrad.registry import make_spec

    data, given = make_spec("dataset", "sentences").build(), {"num_steps": 2, "batch_size": 4}

    def killed(tensors, path, metadata=None):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            language_model.train(data, tmp_path / "lm", **given)
    assert not (tmp_path / "lm" / "model.safetensors").exists()
    found = language_model.train(data, tmp_path / "lm", **given)
    assert found["held_out_perplexity"] > 1 and language_model.train(data, tmp_path / "lm", **given) == found
    language_model.load(str(tmp_path / "lm"), data.spec)
