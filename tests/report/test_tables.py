"""Verdicts from hand-made records, the Wilson interval against SciPy, and labels that stay unique."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from selgrad.report.tables import attack_label, curves, stopping_ratios, wilson


def records(successes: dict[float, list[bool]], **columns) -> pd.DataFrame:
    rows = [
        {
            "dataset_label": "digits", "model_label": "lenet", "update_label": "gradient", "selector_label": "global_top", "metric_label": "magnitude",
            "attack": "dlg", "attack_label": "dlg", "hidden": "ignore", "ratio": ratio, "success": success, "psnr": 30.0 if success else 5.0,
            "ciphertext_bytes": 1000.0 * ratio, **columns,
        }
        for ratio, found in successes.items() for success in found
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("successes", "ratio", "verdict"),
    [
        ({0.0: [True, True], 0.1: [True, False], 0.5: [False, False], 1.0: [False, False]}, 0.5, "stopped at 0.5"),
        ({0.0: [True], 0.1: [False], 0.5: [True], 1.0: [False]}, 1.0, "stopped at 1"),  # a gap does not count as stopped
        ({0.0: [False, False], 0.5: [False, False]}, 0.0, "never succeeds"),
        ({0.0: [True], 0.5: [True]}, np.nan, "still succeeds at 0.5"),
    ],
)
def test_the_smallest_ratio_from_which_on_nothing_succeeds(successes, ratio, verdict):
    (row,) = stopping_ratios(records(successes)).itertuples()
    assert row.verdict == verdict
    np.testing.assert_equal(row.ratio, ratio)
    assert row.success_at_0 == np.mean(successes[0.0])
    if not np.isnan(ratio):
        assert row.upper == pytest.approx(wilson(0, len(successes[ratio]))[1])


@pytest.mark.parametrize(("successes", "trials"), [(0, 8), (3, 8), (8, 8), (1, 200)])
def test_wilson_equals_scipy(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(successes, trials), (expected.low, expected.high), atol=1e-4)


def test_curves_leave_diverged_cells_out_and_say_how_many_are_left():
    table = records({0.0: [True, True, True], 0.5: [False, False]})
    table.loc[0, "psnr"] = np.nan
    found = curves(table, "psnr").set_index("ratio")
    assert found.loc[0.0, "num_cells"] == 2 and found.loc[0.0, "mean"] == 30
    assert (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()


def test_panels_name_what_tells_them_apart():
    two = pd.concat([records({0.0: [True]}), records({0.0: [True]}, hidden="zero", attack_label="dlg(hidden=zero)")])
    assert set(attack_label(two)) == {"dlg, hidden: ignore", "dlg, hidden: zero"}
    steps = pd.concat([records({0.0: [True]}), records({0.0: [True]}, attack_label="dlg(num_steps=5)")])
    assert set(attack_label(steps)) == {"dlg", "dlg(num_steps=5)"}
    models = pd.concat([records({0.0: [True]}), records({0.0: [True]}, model_label="cnn")])
    assert set(attack_label(models)) == {"lenet: dlg, hidden: ignore", "cnn: dlg, hidden: ignore"}
