"""Sweeps: records, resumption after SIGKILL, interruption, disk and folder errors, and the report made from them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import yaml

from selgrad import checkpoints, devices, encryption, measures, weights
from selgrad.base import InputSpec
from selgrad.config import EncryptionConfig, parse
from selgrad.errors import SelgradError, UsageError
from selgrad.experiment import SchemeCache
from selgrad.experiment.block import Block
from selgrad.report.page import make_report
from selgrad.report.tables import read_records
from selgrad.sweep import Sweep
from selgrad.sweep.executors.local import Local, _Run
from selgrad.sweep.overlap import overlap
from selgrad.sweep.runner import run_sweep

# One worker makes the fixtures of this file.
pytestmark = pytest.mark.xdist_group("sweep")

CONFIG = {
    "name": "test",
    "dataset": {"name": "digits", "count": 4},
    "model": {"name": "mlp", "width": 12, "activation": "sigmoid"},
    "metric": ["random", "magnitude"],
    "ratio": [0, 0.2, 1],
    "attack": {"name": "idlg", "num_steps": 8, "memory": 10},
    "encryption": {"profile": "exact", "num_clients": 3},
    "seeds": [0, 1],
    "block_size": 4,
    "gallery": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, run_sweep(CONFIG, out, quiet=True)


def test_one_row_per_cell_with_every_column(finished):
    out, records = finished
    assert len(records) == 2 * 3 * 4 * 2
    assert not records.duplicated("cell_id").any()
    for column in [
        "dataset",
        "model",
        "update",
        "metric",
        "selector",
        "ratio",
        "attack",
        "hidden",
        "sample",
        "seed",
        "objective",
        "mse",
        "psnr",
        "ssim",
        "label_correct",
        "success",
        "num_total",
        "num_selected",
        "index_bytes",
        "score_seconds",
        "selgrad_version",
        "run_id",
        "metric_arguments",
        "attack_arguments",
        "dataset_arguments",
    ]:
        assert records[column].notna().all(), column
    assert (records["num_selected"] == (records["ratio"] * records["num_total"]).round()).all()
    assert json.loads(records["attack_arguments"].iloc[0])["num_steps"] == 8
    for name in ("config.yaml", "report.html", "figures/psnr_against_ratio.png", "figures/psnr_against_ratio.svg", "models"):
        assert (out / name).exists(), name


def test_costs_are_measured_where_openfhe_loads_and_empty_elsewhere(finished):
    _, records = finished
    if encryption.unavailable():
        assert records[["num_ciphertexts", "encrypt_seconds"]].isna().all(axis=None)
        return
    assert (records.loc[records["ratio"] == 0, "num_ciphertexts"] == 0).all()
    selected = records[records["ratio"] > 0]
    assert (selected["num_ciphertexts"] == -(-selected["num_selected"] // 4095)).all()
    assert (selected["num_slots"] == 4095 * selected["num_ciphertexts"]).all()
    assert (selected[["encrypt_seconds", "add_seconds", "decrypt_seconds", "ciphertext_bytes"]] > 0).all(axis=None)


def test_pandas_and_polars_open_the_records_in_one_line(finished):
    out, records = finished
    assert len(pd.read_parquet(out / "records")) == len(polars.read_parquet(out / "records" / "*.parquet")) == len(records)


def test_nothing_visible_gives_the_prior_sample_for_every_metric(finished):
    _, records = finished
    blind = records[records["ratio"] == 1].groupby(["sample", "seed"])
    assert (blind["mse"].nunique() == 1).all() and (records.loc[records["ratio"] == 1, "objective"] == 0).all()
    clear = records[records["ratio"] == 0].groupby(["sample", "seed"])
    assert (clear["mse"].nunique() == 1).all(), "without encryption all metrics are the same cell"


def test_a_second_run_runs_nothing_and_changes_nothing(finished):
    out, records = finished
    before = {f: f.stat().st_mtime_ns for f in (out / "records").iterdir()}
    pd.testing.assert_frame_equal(run_sweep(CONFIG, out, quiet=True), records)
    assert before == {f: f.stat().st_mtime_ns for f in (out / "records").iterdir()}


def test_another_sweep_in_the_same_folder_is_refused(finished):
    out, _ = finished
    with pytest.raises(UsageError, match="holds another sweep"):
        run_sweep({**CONFIG, "ratio": [0.5]}, out, quiet=True)


def test_blocks_of_another_size_give_the_same_cells(finished, tmp_path):
    _, records = finished
    other = run_sweep({**CONFIG, "block_size": 24}, tmp_path / "out", quiet=True)
    assert (other["cell_id"] == records["cell_id"]).all()
    # Another block shape is another program; what is exact is the cell's problem, and a converged attack finds the same image.
    converged = records["objective"] < 1e-8
    np.testing.assert_allclose(other["mse"][converged], records["mse"][converged], atol=1e-3)


def command(out: Path, config: Path) -> list[str]:
    return [sys.executable, "-m", "selgrad.cli", "sweep", str(config), "--out", str(out)]


@pytest.mark.once
def test_kill_at_any_moment_and_resume(finished, tmp_path, same):
    """SIGKILL after each new record file, again and again; the same command finishes, and no block is run twice."""
    _, records = finished
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(CONFIG))
    blocks, kills, kept = out / "records", 0, {}
    while kills < 4:
        before = set(blocks.glob("*.parquet")) if blocks.exists() else set()
        process = subprocess.Popen(command(out, config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = len(before) + (0 if kills == 0 else 2)  # once while planning, then in the middle of the sweep
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            done = set(blocks.glob("*.parquet")) if blocks.exists() else set()
            if (kills and len(done) >= wanted) or (not kills and (out / "plan.json").exists()):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
        kept |= {f: f.stat().st_mtime_ns for f in blocks.glob("*.parquet") if f not in kept} if blocks.exists() else {}
        kills += 1
        if process.returncode == 0:
            break
    assert subprocess.run(command(out, config), capture_output=True, timeout=600).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "a finished block was written again"
    assert kills >= 2 and kept
    same(read_records(out), records)


@pytest.mark.once
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path):
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump({**CONFIG, "attack": {"name": "idlg", "num_steps": 100_000, "memory": 10}}))
    process = subprocess.Popen(command(out, config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (out / "models").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command to go on" in error and "Traceback" not in error


def test_a_long_attack_goes_on_from_its_checkpoint(finished, tmp_path, monkeypatch, same):
    """Every step saved: the interrupted block starts where it was, and ends with the same bits."""
    from selgrad.sweep import drive as module

    _, records = finished
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    saved, real = [], checkpoints.save

    def save(path, tree):
        real(path, tree)
        if "checkpoints" in str(path):
            saved.append(int(path.name))
            if len(saved) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(CONFIG, tmp_path / "out", quiet=True)
    assert list((tmp_path / "out" / "checkpoints").iterdir())
    loaded, load = [], checkpoints.load
    monkeypatch.setattr(checkpoints, "load", lambda path, like: loaded.append(path) or load(path, like))
    same(run_sweep(CONFIG, tmp_path / "out", quiet=True), records)
    assert loaded and not list((tmp_path / "out" / "checkpoints").iterdir())


def test_the_columns_that_may_be_empty_are_named(finished):
    """docs/records.md is made from the schema, and whoever reads it relies on the others."""
    from selgrad.sweep.records import COLUMNS, EMPTY

    _, records = finished
    assert set(EMPTY) <= set(COLUMNS)
    empty = {name for name in records if (records[name].isna() | (records[name].astype(str) == "")).any()}
    assert empty <= {*EMPTY, *(measure.name for measure in measures.every().values())}, empty


def test_a_series_of_checkpoints_survives_a_kill_at_any_moment(tmp_path, monkeypatch):
    series, state = checkpoints.Series(tmp_path / "block"), {"x": np.arange(4.0)}
    assert series.newest(state) is None
    series.save(10, state)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", killed)  # before the newer one is whole
        with pytest.raises(KeyboardInterrupt):
            series.save(20, {"x": np.ones(4)})
    assert series.newest(state).done == 10
    series.save(20, {"x": np.arange(4.0)})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", killed)  # after it is, with the oldest one still there
        with pytest.raises(KeyboardInterrupt):
            series.save(30, {"x": np.ones(4)})
    done, found, _ = series.newest(state)
    assert done == 30 and (found["x"] == 1).all()
    next(file for file in (tmp_path / "block" / "30").rglob("*") if file.name == "_METADATA").unlink()  # a removal that was cut short
    with pytest.warns(UserWarning, match="passed over for the checkpoint before it"):
        done, found, _ = series.newest(state)
    assert done == 20 and (found["x"] == np.arange(4.0)).all()


def test_another_version_does_not_go_on_with_a_sweep(finished, tmp_path):
    out, _ = finished
    saved = json.loads((out / "plan.json").read_text())
    # Of a version that wrote no checksum.
    del saved["checksum"]
    (tmp_path / "plan.json").write_text(json.dumps({**saved, "version": "0.0.1"}))
    with pytest.raises(SelgradError, match=r"begun by selgrad 0.0.1"):
        run_sweep(CONFIG, tmp_path, quiet=True)
    # Nor where only its records say so.
    shutil.copytree(out / "records", tmp_path / "lost" / "records")
    shutil.copy(out / "config.yaml", tmp_path / "lost" / "config.yaml")
    file = next((tmp_path / "lost" / "records").glob("*.parquet"))
    table = pq.read_table(file)
    at = table.column_names.index("selgrad_version")
    pq.write_table(table.set_column(at, "selgrad_version", [["0.0.1"] * len(table)]), file)
    with pytest.raises(SelgradError, match=r"begun by selgrad 0.0.1"):
        run_sweep(CONFIG, tmp_path / "lost", quiet=True)


def test_a_sweep_that_is_done_compiles_nothing(finished, monkeypatch, same):
    from selgrad.experiment.block import Block

    out, records = finished
    monkeypatch.setattr(Block, "compile", lambda *_: pytest.fail("compiled"))
    same(run_sweep(CONFIG, out, quiet=True), records)


def test_two_processes_do_not_share_a_folder(finished):
    from selgrad.sweep import Sweep

    out, _ = finished
    with Sweep(parse(CONFIG), out).lock(), pytest.raises(SelgradError, match="another process is running"), Sweep(parse(CONFIG), out).lock():
        pass


@pytest.mark.once
def test_a_full_disk_is_one_line_and_loses_nothing(finished, tmp_path, monkeypatch, same):
    from selgrad import devices

    _, records = finished
    replace, left = os.replace, [5]

    def full(source, target):
        if "records" in str(target):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(devices.os, "replace", full)
    with pytest.raises(SelgradError, match=r"No space left on device; make room"):
        run_sweep(CONFIG, tmp_path / "out", quiet=True)
    assert len(list((tmp_path / "out" / "records").glob("*.parquet"))) == 4
    monkeypatch.setattr(devices.os, "replace", replace)
    same(run_sweep(CONFIG, tmp_path / "out", quiet=True), records)


def test_damaged_records_are_named(finished, tmp_path):
    out, _ = finished
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / f"{1:016x}.parquet").write_bytes(next((out / "records").glob("*.parquet")).read_bytes()[:100])
    with pytest.raises(SelgradError, match=r"0001.parquet' is damaged"):
        read_records(tmp_path)
    with pytest.raises(SelgradError, match="holds no records"):
        read_records(tmp_path / "nowhere")


def test_the_report_is_one_self_contained_page(finished):
    out, _ = finished
    page = make_report(out).read_text()
    assert page.count("data:image/") >= 6 and "http" not in page.replace("http://www.w3.org", "")
    assert "stopped at" in page or "never succeeds" in page


def test_a_report_draws_again_only_what_shows_something_else(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    make_report(out)
    when = lambda: {file.name: file.stat().st_mtime_ns for file in (out / "figures").iterdir() if file.suffix in (".png", ".svg")}
    before = when()
    page = make_report(out).read_text()
    assert when() == before and len(before) >= 6
    file = next((out / "records").glob("*.parquet"))
    table = pd.read_parquet(file)
    table.assign(psnr=table["psnr"] + 1).to_parquet(file, index=False)
    (out / "figures" / "success_against_ratio.svg").unlink()
    after = when() if make_report(out).read_text() != page else {}
    stems = ("psnr_against_ratio", "success_against_ratio", "success_profiles", "cost_against_protection")
    # Each of these with its form for phones, where it has one.
    drawn = {name for name in before if name.rsplit(".", 1)[0].removesuffix("-narrow") in stems}
    assert {"psnr_against_ratio.png", "success_against_ratio.svg", "success_profiles.svg"} <= drawn
    assert {name for name in before if after[name] != before[name]} == drawn


def test_overlaps_are_those_of_sets():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 30)) < 0.4
    both, either = overlap(np.packbits(a, axis=1), np.packbits(b, axis=1), (18, 12))
    for sample in range(3):
        sets = [[set(np.flatnonzero(part)) for part in np.split(masks[sample], [18])] for masks in (a, b)]
        shared, whole = ([len(op(x, y)) for x, y in zip(*sets, strict=True)] for op in (set.intersection, set.union))
        assert list(both[sample]) == [sum(shared), *shared] and list(either[sample]) == [sum(whole), *whole]


def test_the_sweep_says_how_alike_its_metrics_masks_are(finished):
    out, _ = finished
    table = pd.read_parquet(out / "equivalence.parquet")
    assert set(table["leaf"]) == {"", *(f"fc_{i}/{part}" for i in range(3) for part in ("bias", "kernel"))}
    assert set(table["ratio"]) == {0.2} and table["jaccard"].between(0, 1).all() and not table["identical"].any()
    assert "How similar the masks are" in make_report(out).read_text()


def test_stored_parameters_start_a_model_and_wrong_ones_are_refused(finished, tmp_path):
    out, _ = finished
    other = out / "models" / "setting-0-seed-1"
    stored = {**CONFIG, "model": {**CONFIG["model"], "checkpoint": str(other)}, "seeds": [0], "encryption": None}
    run_sweep(stored, tmp_path / "out", quiet=True)
    like = parse(CONFIG).model[0].build(InputSpec((8, 8, 1), 10)).init(jax.random.key(0))
    used, expected, fresh = (
        jax.tree.leaves(weights.load(folder, like)) for folder in (tmp_path / "out" / "models" / "setting-0-seed-0", other, out / "models" / "setting-0-seed-0")
    )
    assert all((a == b).all() for a, b in zip(used, expected, strict=True)), "seed 0 runs on the stored weights of seed 1"
    assert any((a != b).any() for a, b in zip(used, fresh, strict=True))
    for model, message in (
        ({"name": "mlp", "width": 13}, "leaves find no tensor of their name and shape"),
        ({"name": "mlp", "depth": 3}, "leaves find no tensor"),
    ):
        wrong = {**stored, "model": {**model, "checkpoint": stored["model"]["checkpoint"]}}
        with pytest.raises(SelgradError, match=message):
            run_sweep(wrong, tmp_path / "wrong", quiet=True)
    with pytest.raises(SelgradError, match="there is no checkpoint"):
        run_sweep({**stored, "model": {**CONFIG["model"], "checkpoint": str(tmp_path / "none")}}, tmp_path / "none-out", quiet=True)


@pytest.mark.once
def test_batches_and_local_steps_run_through_the_same_corridor(tmp_path):
    config = {
        **CONFIG,
        "dataset": {"name": "digits", "count": 4},
        "update": [{"name": "gradient", "batch_size": 2}, {"name": "fedavg", "batch_size": 2, "num_steps": 2}],
        "selector": ["global_top", "per_leaf_top", {"name": "by_path", "paths": ["fc_2/**"]}],
        "seeds": [0],
        "encryption": None,
    }
    records = run_sweep(config, tmp_path / "out", quiet=True)
    assert len(records) == 2 * 3 * 2 * 3 * 2
    assert records["label_correct"].between(0, 1).all()


def test_encryption_takes_the_ring_for_the_number_of_values():
    if encryption.unavailable():
        pytest.skip(encryption.unavailable())
    engines = SchemeCache(EncryptionConfig(num_clients=3))
    small, large = engines.for_size(1000), engines.for_size(10**6)
    assert small[0].profile.ring == 4096 < large[0].profile.ring
    assert engines.for_size(999_999)[0] is small[0], "made once"


@pytest.mark.once
def test_what_clients_choose_is_scored_once_whatever_the_blocks(tmp_path, monkeypatch):
    """Five metrics and seven seeds in blocks that hold a part of one seed's lanes each, attacked twice and compared at the end."""
    from selgrad.experiment.choices import Choices

    scored = []
    score = Choices._scores
    monkeypatch.setattr(Choices, "_scores", lambda self, *key: scored.append(key) or score(self, *key))
    config = {
        "dataset": {"name": "digits", "count": 1}, "model": {"name": "mlp", "width": 4}, "seeds": list(range(7)), "ratio": [0.1, 0.5], "block_size": 4,
        "metric": ["magnitude", "random", "product", "sensitivity", "fisher"], "attack": [{"name": "inverting_gradients", "num_steps": 1, "hidden": ["zero", "ignore"]}],
        "encryption": None,
    }  # fmt: skip
    records = run_sweep(config, tmp_path / "out", quiet=True)
    assert len(records) == 5 * 7 * 2 * 2 and len(scored) == len(set(scored)) == 5 * 7


SMALL = {"dataset": {"name": "digits", "count": 4}, "model": "lenet", "metric": ["magnitude", "random"], "ratio": [0, 0.1, 0.3, 0.5]}


@pytest.mark.once
def test_a_block_that_does_not_fit_tells_which_one_does_and_nothing_is_computed_to_find_out(tmp_path, monkeypatch):
    config = parse({**SMALL, "attack": {"name": "idlg", "num_steps": 1}, "block_size": 32})
    whole = Sweep(config, tmp_path / "whole").plan()
    size = json.loads((tmp_path / "whole" / "plan.json").read_text())["block_sizes"]["0:idlg(num_steps=1)"]
    assert (size, whole.num_programs) == (32, 1)

    small = Sweep(config, tmp_path / "small")
    monkeypatch.setattr(devices, "memory_budget", lambda: whole.memory_bytes // 3)
    plan = small.plan()
    size = json.loads((tmp_path / "small" / "plan.json").read_text())["block_sizes"]["0:idlg(num_steps=1)"]
    # Bytes are linear in lanes, so the second program is right; one lane or two may be lost to what does not grow.
    assert plan.memory_bytes <= whole.memory_bytes // 3 and 8 <= size <= 10 and plan.num_programs <= 3

    nothing = Sweep(config, tmp_path / "nothing")
    monkeypatch.setattr(devices, "memory_budget", lambda: 1000)
    monkeypatch.setattr("selgrad.sweep.grid.assemble", lambda *_: pytest.fail("planning computed something"))
    with pytest.raises(SelgradError, match="one cell of idlg"):
        nothing.plan()


@pytest.mark.once
def test_compiled_programs_are_let_go_where_settings_are_many(tmp_path, monkeypatch):
    forgotten: list[int] = []
    monkeypatch.setattr("selgrad.sweep.grid.MANY_SETTINGS", 1)
    monkeypatch.setattr(devices, "clear_shapes", lambda: forgotten.append(sweep._held))
    rates = [{"name": "fedavg", "batch_size": 1, "num_steps": 1, "local_batch_size": 1, "learning_rate": rate} for rate in (0.1, 0.2)]
    config = parse({**SMALL, "ratio": [0.1], "update": rates, "attack": [{"name": "inverting_gradients", "num_steps": 1}]})
    sweep = Sweep(config, tmp_path)
    plan = sweep.plan()
    assert plan.num_programs == 2 and len(sweep._programs) == 1
    assert forgotten == [0], "each time that a setting is left"
    Local().run(sweep, plan, None, lambda *_: None, lambda *_: None)
    records = read_records(tmp_path)
    assert len(sweep._programs) == 1 and len(records) == plan.num_cells == 16


@pytest.mark.once
def test_what_attackers_prepare_is_made_beside_the_block_before_it(tmp_path, monkeypatch, same):
    """As it is where the device is not a CPU; of two blocks that do not fit on the device together the second waits."""
    config = {
        **SMALL,
        "model": {"name": "mlp", "width": 12},
        "attack": {"name": "inverting_gradients", "num_steps": 3, "hidden": "complete"},
        "block_size": 8,
        "encryption": "none",
    }
    plain = run_sweep(config, tmp_path / "plain", quiet=True)
    monkeypatch.setattr(_Run, "whole", lambda self, num_threads, whole=_Run.whole, **_: whole(self, num_threads, beside=True))
    prepare, where = Block._prepare, []
    monkeypatch.setattr(Block, "_prepare", lambda self, *arguments: where.append(threading.current_thread()) or prepare(self, *arguments))
    same(run_sweep(config, tmp_path / "beside", quiet=True), plain)
    ahead = [thread is not threading.main_thread() for thread in where]
    assert ahead == [False, *[True] * (len(where) - 1)] and len(where) == 4
    where.clear()
    budget = devices.memory_budget()
    monkeypatch.setattr(devices, "memory_budget", lambda: 1000 if where else budget)
    same(run_sweep(config, tmp_path / "full", quiet=True), plain)
    assert set(where) == {threading.main_thread()}


@pytest.mark.once
def test_a_block_that_runs_out_of_memory_is_halved_and_nothing_is_lost(tmp_path, monkeypatch):
    config = {**SMALL, "model": {"name": "mlp", "width": 12}, "seeds": 2, "attack": {"name": "inverting_gradients", "num_steps": 3}, "block_size": 24}
    plain = run_sweep(config, tmp_path / "plain", quiet=True)
    advance, run, running = Block.advance, Sweep.attack_block, []

    def small(self, *arguments):
        # Planning runs a step or two of each program; the memory runs out later.
        if running and self.num_lanes * self.num_seeds > 10:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return advance(self, *arguments)

    def noticed(self, *arguments):
        running.append(self)
        return run(self, *arguments)

    monkeypatch.setattr(Sweep, "attack_block", noticed)
    monkeypatch.setattr(Block, "advance", small)
    halved = run_sweep(config, tmp_path / "halved", quiet=True)
    monkeypatch.setattr(Block, "advance", lambda *_: pytest.fail("all is done"))
    again = run_sweep(config, tmp_path / "halved", quiet=True)

    plain, halved, again = (table.sort_values("cell_id").reset_index(drop=True) for table in (plain, halved, again))
    assert list(plain["cell_id"]) == list(halved["cell_id"]) == list(again["cell_id"]) and halved["cell_id"].is_unique
    assert (halved["num_selected"] == plain["num_selected"]).all() and (halved["index_bytes"] == plain["index_bytes"]).all()
    # Programs of other sizes round differently.
    np.testing.assert_allclose(halved["objective"], plain["objective"], rtol=1e-2, atol=1e-4)
    # 24 lanes and 12 do not fit, and 6 do.
    assert set(json.loads((tmp_path / "halved" / "plan.json").read_text())["refined"].values()) == {12, 6}
