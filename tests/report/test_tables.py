"""Verdicts from hand-made records, the Wilson interval against SciPy, and labels that stay unique."""

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from selgrad import files
from selgrad.errors import SelgradError
from selgrad.report.record_files import RecordFiles
from selgrad.report.tables import attack_label, curves, mask_overlaps, profiles, protecting_ratios, ranking_changes, same_masks, share_interval, wilson
from selgrad.report.verdicts import by_level, protecting_by_level, stopping_ratios, verdict_grid, with_outcomes


def records(successes: dict[float, list[bool]], **columns) -> pd.DataFrame:
    rows = [
        {
            "dataset_label": "digits", "model_label": "lenet", "update_label": "gradient", "selector_label": "global_top", "metric_label": "magnitude",
            "attack": "dlg", "attack_label": "dlg", "hidden": "ignore", "ratio": ratio, "success": success, "psnr": 30.0 if success else 5.0,
            "ciphertext_bytes": 1000.0 * ratio, "dataset_arguments": "{}", "sample": sample, "seed": 0, "converged": True,
            **columns,
        }
        for ratio, found in successes.items() for sample, success in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("successes", "ratio", "verdict"),
    [
        ({0.0: [True, True], 0.1: [True, False], 0.5: [False, False], 1.0: [False, False]}, 0.5, "stopped at 0.5 (0 of 2, < 66%)"),
        ({0.0: [True], 0.1: [False], 0.5: [True], 1.0: [False]}, 1.0, "stopped at 1 (0 of 1, < 80%)"),  # a gap does not count as stopped
        ({0.0: [True] * 8, 0.1: [False] * 8}, 0.1, "stopped at ≤ 0.1 (0 of 8, < 33%)"),
        ({0.0: [True], 0.5: [True]}, np.nan, "still succeeds at 0.5"),
        ({0.1: [False], 0.5: [False]}, 0.1, "no success from 0.1 on (0 of 1, < 80%); not tried with nothing encrypted"),
    ],
)
def test_the_smallest_ratio_from_which_on_nothing_succeeds(successes, ratio, verdict):
    (row,) = stopping_ratios(records(successes)).itertuples()
    assert row.verdict == verdict
    np.testing.assert_equal(row.ratio, ratio)
    np.testing.assert_equal(row.success_at_0, np.mean(successes[0.0]) if 0.0 in successes else np.nan)
    if not np.isnan(ratio):
        assert row.upper == pytest.approx(wilson(0, len(successes[ratio]))[1])


class TestNoDefenceIsCreditedWithAnAttacksWeakness:
    half: ClassVar = {0.0: [True, True], 0.5: [False, False]}

    def test_an_attack_that_fails_with_nothing_encrypted_stops_nowhere(self):
        """However well it has converged: what it looks for is not what counts as a success."""
        (row,) = stopping_ratios(records({0.0: [False, False], 0.5: [False, False]})).itertuples()
        assert row.verdict == "attack fails with nothing encrypted" and np.isnan(row.ratio)

    def test_a_sample_on_which_it_fails_does_not_count(self):
        table = records({0.0: [True, False], 0.5: [False, False]})
        assert with_outcomes(table)["outcome"].tolist() == ["read", "attack failed", "protected", "attack failed"]
        (row,) = stopping_ratios(table).itertuples()
        assert row.num_cells == 1 and row.verdict == "stopped at ≤ 0.5 (0 of 1, < 80%)"

    def test_a_search_that_ended_too_early_leaves_it_open(self):
        table = records(self.half).assign(converged=lambda t: (t["ratio"] == 0) | (t["sample"] == 0))
        (row,) = stopping_ratios(table).itertuples()
        assert row.verdict == "no success from 0.5 on (0 of 2, < 66%); 1 unresolved" and row.unresolved == 1
        (hidden,) = stopping_ratios(table.assign(num_visible=lambda t: np.where(t["ratio"] == 0, 100, 0))).itertuples()
        assert hidden.verdict.startswith("stopped"), "where nothing is visible there is nothing to search for"

    def test_records_that_do_not_say_so_are_not_trusted(self):
        (row,) = stopping_ratios(records(self.half).drop(columns="converged")).itertuples()
        assert row.verdict == "no success from 0.5 on (0 of 2, < 66%); 2 unresolved"

    def test_with_nothing_encrypted_one_metrics_cells_speak_for_all(self):
        table = pd.concat([records(self.half), records({0.5: [False, False]}, metric_label="random")])
        assert with_outcomes(table)["outcome"].tolist() == ["read"] * 2 + ["protected"] * 4


@pytest.mark.parametrize(("successes", "trials"), [(0, 8), (3, 8), (8, 8), (1, 200)])
def test_wilson_equals_scipy(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(successes, trials), (expected.low, expected.high), atol=1e-4)


def test_curves_leave_diverged_cells_out_and_say_how_many_are_left():
    table = records({0.0: [True] * 6, 0.5: [False, False], 1.0: [False]})
    table.loc[table.index[:6], "psnr"] = [np.nan, 20, 30, 40, 50, 60]
    table.loc[table["ratio"] == 1, "psnr"] = np.nan
    found = curves(table, "psnr").set_index("ratio")
    assert list(found["num_cells"]) == [5, 2, 0]
    assert found.loc[0.0, "mean"] == 40 and np.isnan(found.loc[1.0, "mean"])
    assert 20 < found.loc[0.0, "low"] < 35 and 45 < found.loc[0.0, "high"] < 60
    assert np.isnan(found.loc[0.5, "low"]), "two samples say nothing about others"


def test_shares_have_wilson_bands():
    found = curves(records({0.0: [True, True, True], 0.5: [False, False, False]}), "success").set_index("ratio")
    assert (found.loc[0.5, "low"], found.loc[0.5, "high"]) == wilson(0, 3) and found.loc[0.0, "high"] == 1


def test_seeds_of_one_sample_are_no_independent_cells():
    """Five samples with nine equal seeds each: the band is that of five values, not of 45."""
    once = records({0.0: [True] * 5}).assign(psnr=[10.0, 20, 30, 40, 50])
    one, many = curves(once, "psnr"), curves(pd.concat([once] * 9, ignore_index=True), "psnr")
    np.testing.assert_allclose(many[["low", "high"]], one[["low", "high"]])


def test_panels_name_what_tells_them_apart():
    two = pd.concat([records({0.0: [True]}), records({0.0: [True]}, hidden="zero", attack_label="dlg(hidden=zero)")])
    assert set(attack_label(two)) == {"dlg, hidden: ignore", "dlg, hidden: zero"}
    steps = pd.concat([records({0.0: [True]}), records({0.0: [True]}, attack_label="dlg(num_steps=5)")])
    assert set(attack_label(steps)) == {"dlg", "dlg(num_steps=5)"}
    splits = pd.concat([records({0.0: [True]}, dataset_arguments=f'{{"count": 2, "split": "{split}"}}') for split in ("test", "train")])
    assert set(attack_label(splits)) == {"digits[split=test]: dlg, hidden: ignore", "digits[split=train]: dlg, hidden: ignore"}
    models = pd.concat([records({0.0: [True]}), records({0.0: [True]}, model_label="cnn")])
    assert set(attack_label(models)) == {"lenet: dlg, hidden: ignore", "cnn: dlg, hidden: ignore"}


def ladder_records():
    """A weak rung that metric a stops at 0.1, a strong one that needs 0.5; metric b the other way round under zero."""
    parts = []
    for metric, zero, strong in (("a", 0.1, 0.9), ("b", 0.5, 0.5)):
        for hidden, needed in (("zero", zero), ("ignore", strong)):
            found = {ratio: [ratio < needed, ratio < min(needed, 0.5)] for ratio in (0.0, 0.1, 0.5, 0.9)}
            parts.append(records(found, metric_label=metric, hidden=hidden, seed=0))
    return pd.concat(parts, ignore_index=True)


def test_the_smallest_protecting_ratio_and_its_worst_rung():
    found = protecting_ratios(ladder_records()).set_index(["metric", "hidden"])
    assert found.loc[("a", "zero"), "ratio"] == 0.1 and found.loc[("a", "ignore"), "ratio"] == 0.9
    assert not found.loc[("a", "zero"), "worst"] and found.loc[("a", "ignore"), "worst"]
    assert found.loc[("b", "zero"), "worst"] and found.loc[("b", "ignore"), "worst"]
    row = found.loc[("a", "ignore")]
    # One of two samples needs 0.9 and the other 0.5, so a draw of two may hold the second alone.
    assert (row["low"], row["high"], row["num_samples"], row["success_at_0"]) == (0.5, 0.9, 2, 1.0)
    never = protecting_ratios(records({0.0: [True], 0.5: [True]}, metric_label="a", hidden="zero", seed=0))
    assert np.isinf(never["ratio"][0])


def test_rankings_under_zero_and_under_the_strongest_rung_are_compared():
    (found,) = ranking_changes(protecting_ratios(ladder_records()))
    assert found["differs"] and [g["metrics"] for g in found["zero"]] == [["a"], ["b"]] and [g["metrics"] for g in found["strongest"]] == [["b"], ["a"]]


def test_a_table_says_where_two_metrics_chose_one_mask(tmp_path):
    assert same_masks(tmp_path) == {}
    rows = [
        {
            "setting": 0,
            "title": "t",
            "selector": "global_top",
            "ratio": 0.1,
            "metric_a": "magnitude",
            "metric_b": b,
            "leaf": "",
            "jaccard": j,
            "identical": j == 1,
        }
        for b, j in (("fisher", 1.0), ("random", 0.1))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "equivalence.parquet")
    same = same_masks(tmp_path)
    assert same == {"magnitude": ["fisher"], "fisher": ["magnitude"]}
    many = pd.concat([stopping_ratios(records({0.0: [True], 1.0: [False]})).assign(panel=f"attack {i}", verdict=f"at {i}") for i in range(20)])
    header, rows = verdict_grid(many)
    assert header[0] == "attack" and len(rows) == 20 and rows[7] == ["attack 7", "at 7"], "twenty columns fit on no screen"
    _, grid = verdict_grid(stopping_ratios(records({0.0: [True], 1.0: [False]})), same)
    assert grid[0][0] == "magnitude (same masks as fisher)"
    assert list(mask_overlaps(tmp_path).columns) == ["metric_a", "metric_b", 0.1]


def test_many_record_files_become_few_and_a_kill_in_between_doubles_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "records"
    folder.mkdir()
    frames = {}
    for i in range(6):
        extra = {"psnr": [1.0 * i, 2.0]} if i % 2 else {"rouge1": [0.5, None], "note": ["a", "b"]}
        frames[f"{i:016x}"] = pd.DataFrame({"cell_id": [f"{i}-a", f"{i}-b"], "num_slots": pd.array([i, None], "Int64"), **extra})
        frames[f"{i:016x}"].to_parquet(folder / f"{i:016x}.parquet", index=False)
    expected = pd.concat(frames.values(), ignore_index=True).sort_values("cell_id", ignore_index=True)
    expected = expected.astype({"note": object})  # texts that recur are shared objects, with pandas 3 too
    read = lambda: RecordFiles(tmp_path).read().sort_values("cell_id", ignore_index=True)[list(expected.columns)]
    pd.testing.assert_frame_equal(read().fillna({"note": math.nan}), expected)

    RecordFiles(tmp_path).compact(7)
    assert len(list(folder.iterdir())) == 6, "few files stay as they are"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            RecordFiles(tmp_path).compact(6)
    assert len(list(folder.iterdir())) == 7 and RecordFiles(tmp_path).blocks == set(frames)
    assert len(read()) == 12, "the large file and the small ones hold the same cells"
    RecordFiles(tmp_path).compact(6)
    assert [file.name for file in folder.iterdir()] == ["part-0000000000000000.parquet"] and RecordFiles(tmp_path).blocks == set(frames)
    pd.testing.assert_frame_equal(read().fillna({"note": math.nan}), expected)
    # Blocks that come later lie beside it.
    expected.tail(2).assign(cell_id=["6-a", "6-b"]).to_parquet(folder / f"{6:016x}.parquet", index=False)
    assert len(RecordFiles(tmp_path).read()) == 14
    (folder / "part-0000000000000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(SelgradError, match=r"part-0000000000000000.parquet' is damaged"):
        RecordFiles(tmp_path)


def test_a_folder_that_both_versions_of_pandas_wrote_is_one_table(tmp_path):
    # pandas 2 writes texts as string, pandas 3 as large_string, and other programs as either.
    rows = [{"cell_id": f"{i}-{j}", "metric": "magnitude", "attack_report": f"r{i}{j}", "psnr": 1.0 * i} for i in range(4) for j in range(2)]
    for i in range(4):
        table = pa.Table.from_pylist(rows[2 * i : 2 * i + 2])
        text = pa.large_string() if i % 2 else pa.string()
        kinds = [field.with_type(text) if field.type == pa.string() else field for field in table.schema]
        (tmp_path / "records").mkdir(exist_ok=True)
        pq.write_table(table.cast(pa.schema(kinds)), tmp_path / "records" / f"{i:016x}.parquet")
    read = lambda: RecordFiles(tmp_path).read().sort_values("cell_id").to_dict("records")
    assert read() == rows
    RecordFiles(tmp_path).compact(4)
    assert read() == rows
    # What selgrad writes is the same whichever pandas there is.
    files.write_table(tmp_path / "out.parquet", pd.DataFrame(rows))
    assert pq.read_schema(tmp_path / "out.parquet").field("metric").type == pa.string()


def test_a_profile_is_the_share_of_inputs_whose_best_attack_passes_each_threshold():
    found = {"dlg": [10.0, 20.0, 5.0], "idlg": [15.0, 12.0, np.nan]}
    rows = [
        records({0.5: [False]}, attack=attack, attack_label=attack, sample=sample, seed=0, psnr=psnr, mse=-psnr)
        for attack, values in found.items() for sample, psnr in enumerate(values)
    ]  # fmt: skip
    table = pd.concat(rows, ignore_index=True)
    expected = [(5.0, 1.0), (15.0, 2 / 3), (20.0, 1 / 3)]
    for measure, sign in (("psnr", 1), ("mse", -1)):
        found = profiles(table, measure)
        assert sorted((sign * row.threshold, row.share) for row in found.itertuples()) == expected
        assert set(found["num_inputs"]) == {3} and set(found["curve"]) == {"magnitude"} and set(found["ratio"]) == {0.5}
    assert profiles(table.assign(psnr=np.nan), "psnr").empty


class TestNothingIsCreditedThatNobodyTried:
    """Cells that were not run, seeds of one input, and searches that ended too early are no evidence of protection."""

    BASE: ClassVar = {
        "dataset_arguments": "{}",
        "dataset_label": "d", "model_label": "m", "update_label": "u", "metric_label": "magnitude", "metric": "magnitude", "selector_label": "global_top",
        "selector": "global_top", "attack": "a", "attack_label": "a", "hidden": "ignore", "converged": True, "objective_at_truth": 1.0, "ciphertext_bytes": 0,
        "success_rule": "level: recognisable",
    }  # fmt: skip

    def table(self, *cells):
        """Cells of (sample, seed, ratio, read, converged)."""
        return pd.DataFrame(
            [
                {
                    **self.BASE,
                    "sample": sample,
                    "seed": seed,
                    "ratio": ratio,
                    "success": read,
                    "level": "recognisable" if read else "nothing",
                    "converged": ended,
                }
                for sample, seed, ratio, read, ended in cells
            ]
        )

    def test_an_attack_that_was_not_tried_with_nothing_encrypted(self):
        cells = [(0, 0, 0.0, True, True), *((sample, 0, 0.5, False, True) for sample in range(40))]
        assert with_outcomes(self.table(*cells))["outcome"].tolist() == ["read", "protected", *["unresolved"] * 39]
        (found,) = by_level(self.table(*cells)).query("level == 'recognisable' and ratio == 0.5").itertuples()
        assert (found.read, found.num_cells, found.unresolved) == (0, 40, 39) and found.upper > 0.9

    def test_an_input_that_was_not_tried_at_a_ratio(self):
        cells = [(s, 0, r, r < 0.9, True) for s in range(6) for r in (0.0, 0.2, 0.5, 0.9) if r < 0.9 or s == 0]
        found = protecting_by_level(self.table(*cells)).query("level == 'recognisable'").iloc[0]
        assert found["num_inputs"] == 6 and found["ratio"] == found["high"] == math.inf
        tried = [(s, 0, r, r < 0.9, True) for s in range(6) for r in (0.0, 0.2, 0.5, 0.9)]
        assert protecting_by_level(self.table(*tried)).query("level == 'recognisable'").iloc[0]["ratio"] == 0.9

    def test_seeds_of_one_input_are_one_input(self):
        cells = [(s, seed, r, r == 0, True) for s in range(8) for seed in range(10) for r in (0.0, 0.5)]
        (found,) = stopping_ratios(self.table(*cells)).itertuples()
        assert found.num_cells == 80 and found.upper == pytest.approx(wilson(0, 8)[1]) and found.verdict == "stopped at ≤ 0.5 (0 of 80, < 33%)"
        low, high = share_interval(self.table(*cells), "success")
        assert (low, high) == pytest.approx(wilson(4, 8))

    def test_searches_that_ended_too_early_count_against_a_bound(self):
        cells = [(s, 0, r, r == 0, r == 0 or s < 3) for s in range(60) for r in (0.0, 0.5)]
        (found,) = by_level(self.table(*cells)).query("level == 'recognisable' and ratio == 0.5").itertuples()
        assert (found.read, found.unresolved) == (0, 57) and found.upper == pytest.approx(wilson(57, 60)[1])
