"""What W&B holds of a sweep, read back from the files that it writes: runs, their flat configuration, their summaries, and what a second start adds."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from selgrad import run_sweep
from selgrad.report.groups import flat

GRID = {
    "name": "grid", "dataset": {"name": "digits", "count": 2}, "model": {"name": "mlp", "width": 4}, "metric": ["random", {"name": "sensitivity", "target": "inputs"}],
    "ratio": [0, 0.1, 0.5], "attack": ["rank_one", {"name": "idlg", "num_steps": 3}], "encryption": {"num_clients": 2}, "gallery": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    out = tmp_path_factory.mktemp("tracked") / "out"
    return out, run_sweep(GRID, out, wandb="offline", quiet=True)


def test_a_sweep_is_a_run_for_each_configuration_and_one_of_the_whole(grid, written):
    out, records = grid
    runs = written(out)
    cells = [run for run in runs.values() if run["kind"] == "cells"]
    (whole,) = [run for run in runs.values() if run["kind"] == "sweep"]
    assert len(cells) == 2 * 3 * 2 and {run["group"] for run in runs.values()} == {"grid"}
    settings = {(run["config"]["metric"], run["config"]["ratio"], run["config"]["attack"]) for run in cells}
    assert settings == {(m, r, a) for m in ("random", "sensitivity") for r in (0, 0.1, 0.5) for a in ("rank_one", "idlg")}
    for run in cells:
        config, summary = run["config"], run["summary"]
        assert not [key for key, value in config.items() if isinstance(value, list | dict)], "a dashboard groups by scalars"
        assert config["model.width"] == 4 and config["encryption.num_clients"] == 2
        assert config.get("metric.target") == ("inputs" if config["metric"] == "sensitivity" else None)
        of = records[(records["metric"] == config["metric"]) & (records["ratio"] == config["ratio"]) & (records["attack"] == config["attack"])]
        assert summary["num_cells"] == len(of) == 2
        assert summary["psnr"] == pytest.approx(of["psnr"].mean()) and summary["success"] == of["success"].mean()
        assert summary["success_low"] <= summary["success"] <= summary["success_high"] <= 1
        assert sum(value for key, value in summary.items() if key.startswith("outcome.")) == pytest.approx(1)
        assert {"ssim", "mse", "plain_bytes", "attack_seconds", "converged", "at_least.exact"} <= set(summary)
        assert len(run["history"]) == 1 and summary["reconstructions/count"] == 1
        if config["ratio"]:
            assert summary["ciphertext_bytes"] == of["ciphertext_bytes"].astype(float).mean() > 0
    assert whole["config"]["axes.metric"] == "random, sensitivity" and "metric" not in whole["config"] and "success" not in whole["summary"]
    assert "records" in whole["artifacts"]
    assert {"cells/nrows", "curves_table/nrows", "verdicts/nrows"} <= set(whole["summary"]) and whole["summary"]["num_cells"] == len(records)


def test_an_attack_that_fails_with_nothing_encrypted_is_no_success_of_the_defence(grid, written):
    """What a group says of a defence comes from the same attack at ratio 0, whichever block was finished first."""
    out, records = grid
    from selgrad.report.verdicts import OUTCOMES, with_outcomes

    expected = with_outcomes(records)
    for run in written(out).values():
        if run["kind"] == "cells":
            config = run["config"]
            of = expected[(expected["metric"] == config["metric"]) & (expected["ratio"] == config["ratio"]) & (expected["attack"] == config["attack"])]
            shares = {outcome: (of["outcome"] == outcome).mean() for outcome in OUTCOMES}
            assert {key.removeprefix("outcome."): value for key, value in run["summary"].items() if key.startswith("outcome.")} == pytest.approx(shares)


def test_a_second_start_adds_nothing_and_an_interrupted_one_is_completed(grid, written):
    out, _ = grid
    before = written(out)
    folders = sorted(path.name for path in (out / "wandb").glob("offline-run-*"))
    run_sweep(GRID, out, wandb="offline", quiet=True)
    assert sorted(path.name for path in (out / "wandb").glob("offline-run-*")) == folders
    # Interrupted while a run was written: its folder is there, and nothing says that it is whole.
    ledger = json.loads((out / "wandb" / "logged.json").read_text())
    lost = next(key for key, run in before.items() if run["kind"] == "cells")
    del ledger["runs"][lost]
    from selgrad import files

    files.write_json(out / "wandb" / "logged.json", {"runs": ledger["runs"]})
    run_sweep(GRID, out, wandb="offline", quiet=True)
    after = written(out)
    assert set(after) == set(before)
    assert {key: run["summary"].get("psnr") for key, run in after.items()} == {key: run["summary"].get("psnr") for key, run in before.items()}
    # Damaged, all of it is logged again under the same ids.
    (out / "wandb" / "logged.json").write_text("{")
    run_sweep(GRID, out, wandb="offline", quiet=True)
    assert set(written(out)) == set(before)


def test_one_run_in_all(tmp_path, written):
    small = {**GRID, "metric": "random", "ratio": [0.1], "encryption": "none", "wandb": {"runs": "sweep", "tags": ["t"], "project": "p"}}
    run_sweep(small, tmp_path / "out", wandb="offline", quiet=True)
    (run,) = written(tmp_path / "out").values()
    assert run["kind"] == "sweep" and run["summary"]["num_cells"] == 2 * 2


def test_a_run_an_attack_compares_metrics_by_ratio(grid, tmp_path, written):
    """Scalars of each metric against the ratio, and the ratio that stops the attack; all as the records say."""
    _, records = grid
    run_sweep({**GRID, "encryption": "none", "wandb": {"runs": "attack"}}, tmp_path / "out", wandb="offline", quiet=True)
    found = written(tmp_path / "out").values()
    assert sorted(run["kind"] for run in found) == ["attack", "attack", "sweep"]
    runs = {run["config"]["attack"]: run for run in found if run["kind"] == "attack"}
    assert set(runs) == {"rank_one", "idlg"} and runs["idlg"]["config"]["attack.num_steps"] == 3 and "metric.target" not in runs["idlg"]["config"]
    for attack, run in runs.items():
        steps = [step for step in run["history"] if "ratio" in step]
        assert [step["ratio"] for step in steps] == [0, 0.1, 0.5]
        for step in steps:
            for metric, label in {"random": "random", "sensitivity": "sensitivity(target=inputs)"}.items():
                of = records[(records["metric"] == metric) & (records["ratio"] == step["ratio"]) & (records["attack"] == attack)]
                assert step[f"psnr/{label}"] == pytest.approx(of["psnr"].mean()) and step[f"success/{label}"] == of["success"].mean()
                assert step[f"success_low/{label}"] <= step[f"success/{label}"] <= step[f"success_high/{label}"]
    from selgrad.report.verdicts import stopping_ratios

    for row in stopping_ratios(records).itertuples():
        summary = runs[row.panel.split(",")[0]]["summary"]
        assert summary.get(f"stopping_ratio/{row.curve}") == (row.ratio if row.verdict.startswith("stopped") else None)


def test_a_sweep_of_one_configuration_is_one_run_with_its_scalars(tmp_path, written):
    run_sweep({**GRID, "metric": "random", "ratio": 0.1, "attack": "rank_one", "encryption": "none"}, tmp_path / "out", wandb="offline", quiet=True)
    (run,) = written(tmp_path / "out").values()
    assert run["config"]["metric"] == "random" and run["config"]["ratio"] == 0.1 and "success_high" in run["summary"]


def test_too_many_runs_become_one_an_attack(tmp_path, monkeypatch, written):
    from selgrad import tracking

    monkeypatch.setattr(tracking, "MOST_RUNS", 3)
    with pytest.warns(UserWarning, match="12 groups of cells"):
        run_sweep({**GRID, "encryption": "none"}, tmp_path / "out", wandb="offline", quiet=True)
    assert sorted(run["kind"] for run in written(tmp_path / "out").values()) == ["attack", "attack", "sweep"]


def test_text_is_tracked_with_its_measures(tmp_path, written):
    text = {
        "dataset": {"name": "sentences", "count": 2},
        "model": "bert",
        "metric": ["magnitude", "random"],
        "ratio": 0.1,
        "attack": "dager",
        "encryption": "none",
    }
    records = run_sweep(text, tmp_path / "out", wandb="offline", quiet=True)
    cells = [run for run in written(tmp_path / "out").values() if run["kind"] == "cells"]
    assert len(cells) == 2
    for run in cells:
        of = records[records["metric"] == run["config"]["metric"]]
        assert run["summary"]["rougeL"] == pytest.approx(of["rougeL"].astype(float).mean()) and run["summary"]["sentences/nrows"] == 2


def test_flat_is_one_level():
    assert flat({"a": {"b": {"c": 1}}, "d": ["x", 2, None]}) == {"a.b.c": 1, "d": "x, 2, null"}
    assert pd.Series(flat({"a": {}})).empty


def test_agents_run_the_points_of_a_generated_sweep(tmp_path, written):
    """As `wandb agent` starts commands: a run and its parameters in the environment, the same parameters as options."""
    import itertools

    import yaml
    from click.testing import CliRunner

    from selgrad.cli.group import cli

    config, file, out = tmp_path / "grid.yaml", tmp_path / "sweep.yaml", tmp_path / "agents"
    config.write_text(yaml.safe_dump({**GRID, "attack": "rank_one", "ratio": [0.1, 0.5], "encryption": "none"}))
    assert CliRunner().invoke(cli, ["agent", str(config), "--out", str(out), "--write", str(file)]).exit_code == 0
    sweep = yaml.safe_load(file.read_text())
    axes = {name: axis["values"] for name, axis in sweep["parameters"].items()}
    assert axes == {"metric": ["random", "sensitivity:target=inputs"], "ratio": [0.1, 0.5]}
    assert sweep["command"][:2] == ["selgrad", "agent"] and sweep["metric"]["name"] == "success"
    found = {}
    for number, point in enumerate([*itertools.product(*axes.values())][::3]):
        chosen = dict(zip(axes, point, strict=True))
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **{key: {"value": value} for key, value in chosen.items()}}))
        given = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": f"run{number}", "WANDB_SWEEP_PARAM_PATH": str(tmp_path / f"{number}.yaml")}
        command = [sys.executable, "-m", *sweep["command"][:-1], *(f"--{key}={value}" for key, value in chosen.items())]
        done = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for folder in out.iterdir():
        found |= written(folder)
    assert set(found) == {f"run{number}" for number in range(2)}
    assert len(list(out.iterdir())) == 4, "the two points, and for each metric what the attack does with nothing encrypted"
    assert found["run0"]["config"]["metric"] == "random" and found["run0"]["config"]["ratio"] == 0.1
    assert found["run1"]["config"]["metric.target"] == "inputs" and found["run1"]["config"]["ratio"] == 0.5
    for run in found.values():
        assert {"success", "success_high", "psnr", "plain_bytes"} <= set(run["summary"])


def test_a_run_without_its_attack_at_nothing_encrypted_credits_no_defence(tmp_path, written):
    """An attack of one step fails on some inputs whatever is encrypted; alone nobody knows it, and beside the same attack with nothing encrypted it shows."""
    point = {**GRID, "metric": "magnitude", "ratio": 1.0, "attack": {"name": "idlg", "num_steps": 1}, "encryption": "none", "gallery": 0}
    run_sweep(point, tmp_path / "alone", wandb="offline", quiet=True)
    (alone,) = written(tmp_path / "alone").values()
    assert alone["summary"]["success"] == 0 and not [key for key in alone["summary"] if key.startswith("outcome.")]
    plain = run_sweep({**point, "ratio": 0}, tmp_path / "plain", quiet=True)
    run_sweep(point, tmp_path / "beside", wandb="offline", quiet=True, unencrypted=plain)
    (beside,) = written(tmp_path / "beside").values()
    assert beside["summary"]["outcome.attack failed"] == (~plain["success"].astype(bool)).mean() > 0


def test_an_agent_wants_one_configuration(tmp_path):
    import yaml
    from click.testing import CliRunner

    from selgrad.cli.group import cli
    from selgrad.errors import UsageError

    config = tmp_path / "grid.yaml"
    config.write_text(yaml.safe_dump(GRID))
    with pytest.raises(UsageError, match="metric has 2 values"):
        CliRunner().invoke(cli, ["agent", str(config), "--out", str(tmp_path / "out")], catch_exceptions=False)
    config.write_text(yaml.safe_dump({**GRID, "metric": "random", "ratio": 0.1, "attack": "rank_one"}))
    with pytest.raises(UsageError, match="nothing to sweep over"):
        CliRunner().invoke(cli, ["agent", str(config), "--out", str(tmp_path / "out"), "--write", str(tmp_path / "s.yaml")], catch_exceptions=False)
