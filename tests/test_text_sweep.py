"""Text through the spine: records, kept sentences, the report, host attacks that resume, and the attacker's language model."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from selgrad import run_cell, run_sweep
from selgrad.config import parse
from selgrad.data import DATASETS
from selgrad.errors import SelgradError, UsageError
from selgrad.experiment.host import HostBlock
from selgrad.language_model import load, train
from selgrad.report.gallery import mark
from selgrad.sweep import Sweep
from selgrad.sweep.executors.local import Local, _Run

# One worker makes the fixtures of this file.
pytestmark = pytest.mark.xdist_group("text_sweep")

CONFIG = {
    "name": "text",
    "dataset": {"name": "sentences", "count": 1},
    "model": {"name": "bert", "embedding": ["frozen", "always_encrypted"]},
    "metric": ["random", "magnitude"],
    "ratio": [0, 0.2, 1],
    "attack": {"name": "dager", "hidden": ["zero", "ignore"]},
    "encryption": None,
    "gallery": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "out"
    return out, run_sweep(CONFIG, out, wandb="offline", quiet=True)


def test_weights_and_biases_mirror_text_too(finished):
    assert list((finished[0] / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(("threads", "beside"), [(3, True), (2, False)])
def test_attacks_on_the_host_may_run_beside_the_devices(finished, tmp_path, monkeypatch, threads, beside):
    """Records do not depend on who runs when; times do."""
    with_device = {**CONFIG, "attack": [CONFIG["attack"], {"name": "tag", "num_steps": 3}], "block_size": 2}
    monkeypatch.setattr(_Run, "whole", lambda self, num_threads, whole=_Run.whole, **_: whole(self, num_threads, beside))
    records = run_sweep(with_device, tmp_path / "out", quiet=True, engine={"name": "local", "host_threads": threads})
    assert set(records["attack"]) == {"dager", "tag"}
    host = records[records["attack"] == "dager"]
    columns = ["embedding", "metric", "ratio", "hidden", "rougeL", "token_accuracy", "exact_match", "objective", "attack_report"]
    order = lambda table: table[columns].sort_values(columns[:4]).reset_index(drop=True)
    pd.testing.assert_frame_equal(order(host), order(finished[1]), check_categorical=False)


def test_what_fails_on_the_host_ends_the_sweep_and_loses_nothing_that_is_done(tmp_path, monkeypatch):
    advance, calls = HostBlock.advance, []

    def fails(self, *arguments):
        # Planning runs two lanes of each of four programs.
        calls.append(1)
        if len(calls) > 12:
            raise SelgradError("the disk is full")
        return advance(self, *arguments)

    monkeypatch.setattr(HostBlock, "advance", fails)
    with pytest.raises(SelgradError, match="the disk is full"):
        run_sweep({**CONFIG, "block_size": 1}, tmp_path / "out", quiet=True)
    kept = len(list((tmp_path / "out").glob("records/*.parquet")))
    monkeypatch.setattr(HostBlock, "advance", advance)
    assert kept and len(run_sweep({**CONFIG, "block_size": 1}, tmp_path / "out", quiet=True)) == 24


def test_what_is_recorded_is_told_of_though_the_sweep_ends_early(tmp_path, monkeypatch):
    """Whoever goes on does not run it again, so nobody else would log it."""
    config = parse({**CONFIG, "attack": [CONFIG["attack"], {"name": "tag", "num_steps": 3}], "block_size": 1})
    run, left, told = Sweep.attack_block, [], []

    def fails(self, *arguments):
        if not left:
            raise SelgradError("the disk is full")
        left.pop()
        return run(self, *arguments)

    monkeypatch.setattr(Sweep, "attack_block", fails)
    # Once while a device is busy, once while the host is.
    for allowed in (4, 20):
        left.extend(range(allowed))
        sweep = Sweep(config, tmp_path)
        with pytest.raises(SelgradError, match="the disk is full"):
            Local().run(sweep, sweep.plan(), None, lambda name, _: told.append(name), lambda *_: None)
        assert len(told) == len(list(tmp_path.glob("records/*.parquet"))) > 0
    assert set(told) == {"tag", "dager"}


def test_attacks_on_the_host_that_run_out_of_memory_are_halved(finished, tmp_path, monkeypatch):
    advance, run, running = HostBlock.advance, Sweep.attack_block, []

    def small(self, *arguments):
        if running and self.num_lanes * self.num_seeds > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return advance(self, *arguments)

    monkeypatch.setattr(Sweep, "attack_block", lambda self, *arguments: running.append(self) or run(self, *arguments))
    monkeypatch.setattr(HostBlock, "advance", small)
    records = run_sweep({**CONFIG, "block_size": 4}, tmp_path / "out", quiet=True, engine={"name": "local", "host_threads": 2})
    pd.testing.assert_series_equal(records["rougeL"].reset_index(drop=True), finished[1]["rougeL"].reset_index(drop=True))


def test_an_interrupt_stops_the_threads(tmp_path, monkeypatch):
    """Ctrl-C reaches the thread that drives the sweep."""

    def interrupted(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "_take", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_sweep({**CONFIG, "block_size": 1}, tmp_path / "out", quiet=True)
    assert threading.active_count() <= before and len(list((tmp_path / "out").glob("records/*.parquet"))) < 12


def test_records_hold_text_measures_and_the_exposure_of_the_embedding(finished):
    _, records = finished
    assert len(records) == 2 * 2 * 3 * 2
    assert "psnr" not in records and {"rouge1", "rouge2", "rougeL", "token_accuracy", "exact_match", "label_correct"} <= set(records)
    clear = records[records["ratio"] == 0]
    assert (clear["rougeL"] == 1).all() and (clear["exact_match"] == 1).all() and clear["success"].all()
    assert not records[records["ratio"] == 1]["success"].any()
    assert set(records["success_rule"]) == {"level: recognisable"}
    sizes = records.groupby(["embedding", "ratio"])["num_selected"].unique()
    total = records.groupby("embedding")["num_total"].first()
    rows = total["always_encrypted"] - total["frozen"]
    assert rows == 298 * 128 and sizes["always_encrypted", 0.0].tolist() == [rows] and sizes["frozen", 0.0].tolist() == [0]
    assert sizes["always_encrypted", 0.2].tolist() == [rows + round(0.2 * total["frozen"])]


def test_completing_hidden_entries_beats_taking_them_for_zero(finished):
    _, records = finished
    masked = records[(records["ratio"] == 0.2) & (records["metric"] == "magnitude")].groupby("hidden")["rougeL"].mean()
    assert masked["ignore"] > masked["zero"] + 0.3


def test_the_attack_says_which_leaves_it_used(finished):
    _, records = finished
    used = records["attack_report"].map(json.loads)
    assert all(report["used"] for report in used[records["ratio"] == 0])
    assert all(not report["used"] and len(report["unused"]) == 6 for report in used[records["ratio"] == 1])


def test_the_report_shows_sentences_with_what_differs_marked(finished):
    out, _ = finished
    page = (out / "report.html").read_text()
    truth = DATASETS["sentences"](count=1)
    assert f"<b>{truth.decode(truth.tokens[0])}</b>" in page and "<mark>" in page and "leaves used" in page
    assert (out / "figures" / "rougeL_against_ratio.png").exists() and not (out / "figures" / "psnr_against_ratio.png").exists()


def test_marks_are_the_words_that_are_not_the_truths():
    assert mark("a b c", "a b c") == [("a b c", True)]
    assert mark("a b c", "x a c y") == [("x", False), ("a", True), ("c", True), ("y", False)]
    assert mark("a", "") == []


def test_a_host_attack_goes_on_lane_by_lane(finished, monkeypatch):
    out, records = finished
    for file in (out / "records").glob("*.parquet"):
        file.unlink()
        break
    steps = []
    advance = HostBlock.advance

    def counted(self, held, state, num_steps):
        steps.append(num_steps)
        return advance(self, held, state, num_steps)

    monkeypatch.setattr(HostBlock, "advance", counted)
    again = run_sweep(CONFIG, out, quiet=True)
    assert steps and again["rougeL"].tolist() == records["rougeL"].tolist()


def test_images_and_text_are_not_mixed_up():
    for given, message in (
        ({"dataset": "digits", "model": "bert", "attack": "dager"}, "holds images"),
        ({"dataset": "sentences", "model": "lenet", "attack": "dlg"}, "holds text"),
        ({"dataset": "sentences", "model": "bert", "attack": "dlg"}, "dlg_text"),
        ({"dataset": "digits", "model": "mlp", "attack": "tag"}, "inverting_gradients"),
    ):
        with pytest.raises((UsageError, TypeError)) as refusal:
            run_cell(**given)
        # Under test, the annotations refuse a text specification before the model can.
        assert message in str(refusal.value) or (given["model"] == "lenet" and "TextSpec" in str(refusal.value))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("lm") / "model"
    data = DATASETS["sentences"]()
    return out, data, train(data, out, num_steps=40, batch_size=8, checkpoint_steps=20)


class TestLanguageModel:
    def test_it_learns_and_is_read_back(self, trained):
        out, data, found = trained
        model, params = load(str(out), data.spec)
        value = model.log_perplexity(params, jnp.asarray(data.tokens[:4]), jnp.asarray(data.valid[:4]))
        assert value.shape == (4,) and np.exp(float(value.mean())) < 200 < data.spec.vocabulary_size
        shuffled = np.asarray(data.tokens[:20]).copy()
        for row, valid in zip(shuffled, data.valid[:20], strict=True):
            row[1 : valid.sum() - 1] = row[1 : valid.sum() - 1][::-1]
        before, after = (
            float(model.log_perplexity(params, jnp.asarray(tokens), jnp.asarray(data.valid[:20])).mean()) for tokens in (data.tokens[:20], shuffled)
        )
        assert before < after, "it has seen these sentences and never their reverse"
        assert np.isfinite(found["held_out_perplexity"])

    def test_an_interrupted_training_ends_as_an_uninterrupted_one(self, trained, tmp_path):
        out, data, _ = trained

        def stop(done, total, loss):
            if done > 30:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "lm", num_steps=40, batch_size=8, checkpoint_steps=20, on_progress=stop)
        train(data, tmp_path / "lm", num_steps=40, batch_size=8, checkpoint_steps=20)
        a, b = (load(str(folder), data.spec)[1] for folder in (out, tmp_path / "lm"))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
        with pytest.raises(UsageError, match="another recipe"):
            train(data, out, num_steps=41, batch_size=8)

    def test_lamp_uses_it_and_refuses_one_of_another_tokenizer(self, trained, transformer):
        out, _, _ = trained
        small = {"num_steps": 10, "steps_per_phase": 5, "num_starts": 4, "num_start_permutations": 4, "num_moves": 4, "candidates_at_once": 4}
        attack = {"name": "lamp", "language_model": str(out), **small}
        # A model of one's own, of one narrow layer: LAMP on BERT takes a minute to compile.
        model = transformer(layers=1, spec=DATASETS["sentences"](count=4).spec)
        found = run_cell(dataset={"name": "sentences", "count": 4}, model=model, attack=attack)
        assert np.isfinite(found.objective)
        with pytest.raises(UsageError, match="tokenizer"):
            run_cell(dataset={"name": "text_file", "path": __file__}, model="bert", attack=attack)
        with pytest.raises(UsageError, match=r"shape=\(\d+,\), and the data set has shape"):
            run_cell(dataset="sentences", model=model, attack=attack)
