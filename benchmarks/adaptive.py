"""What an adaptive search saves: the ratio that protects, found by it and by the whole grid, on attacks in closed form, which make both affordable.

Command: uv run python benchmarks/adaptive.py
Time: about a quarter of an hour on 2 cores. Digits on a sigmoid MLP of 32 units (`rank_one`) and bundled sentences on a BERT of 2 layers (DAGER); 3 weight draws;
  at most 5 % of the inputs recognisable. The grid has 72 inputs at each of 22 ratios, as an exact test of a fixed size needs (0 of 72).
Expected: the same ratio, or its neighbour, with a fifth of the cells or fewer.
Leaves: benchmarks/results/adaptive.json.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from unittest import mock

from selgrad import devices

devices.configure()

import jax
import pandas as pd

from selgrad.report.statistics import upper_bound
from selgrad.report.verdicts import worst_at
from selgrad.suites import SUITES, Suite
from selgrad.suites.decide import Question
from selgrad.suites.recommend import configured, recommend
from selgrad.suites.search import Arm, Runner, Search
from selgrad.sweep.executors.local import Local

RESULTS = Path(__file__).parent / "results" / "adaptive.json"
CASES = {
    "images": {
        "dataset": {"name": "digits", "count": 150}, "model": {"name": "mlp", "width": 32, "activation": "sigmoid"}, "metric": ["magnitude", "random", "product"],
        "encryption": "none",
    },
    "text": {
        "dataset": {"name": "sentences", "count": 40}, "model": {"name": "bert", "size": "tiny"}, "metric": ["magnitude", "random", "product"], "encryption": "none",
        "known_labels": True,
    },
}  # fmt: skip
FIXED = 72
"""Inputs without a success that show a rate below 5 %, wrong with a probability of at most 2.5 %."""


def by_grid(given: dict, suite: str, question: Question, out: Path) -> tuple[dict[str, float], int]:
    """The smallest ratio from which on an exact test of a fixed size shows the rate, for each metric, and how many attacks that took."""
    config, _, _ = configured({"gallery": 0, "name": "grid", **given}, suite, "quick", question.ratios)
    search, executor = Search(config, out), Local()
    with search.lock():
        executor.plan(search, lambda _: None)
        runner = Runner(search, executor, question.level)
        found = {}
        for arm in search.arms:
            found[arm.label] = _smallest(search, runner, arm, question)
    return found, runner.num_known


def _smallest(search: Search, runner: Runner, arm: Arm, question: Question) -> float:
    runner.run([search.lane(arm, ratio, cell) for ratio in question.ratios[:-1] for cell in range(FIXED)])
    worst = worst_at(search.records(), question.level)
    mine = worst[(worst["metric_label"] == arm.metric.label) & (worst["ratio"] > 0) & (worst["outcome"] != "attack failed")]
    counts = mine.assign(read=mine["outcome"] == "read").groupby("ratio")["read"].agg(["sum", "count"])
    shown = pd.Series({ratio: upper_bound(int(row["sum"]), int(row["count"]), 1 - question.error) <= question.rate for ratio, row in counts.iterrows()})
    # From which on: a larger one that is not shown would contradict.
    place = len(shown) - int(shown[::-1].cumprod().sum())
    return float(shown.index[place]) if place < len(shown) else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="selgrad-runs/adaptive", type=Path)
    parser.add_argument("--cases", nargs="*", default=[*CASES])
    given, rows, question = parser.parse_args(), [], Question()
    for name in given.cases:
        # The one member in closed form: what is compared is the search.
        suite = Suite(name, 1, SUITES[name].members[:1])
        with mock.patch.dict(SUITES, {name: suite}):
            found = recommend(CASES[name], given.out / name / "adaptive", question=question, budget="quick", on_event=print)
            answers, attacks = by_grid(CASES[name], name, question, given.out / name / "grid")
        places = [*question.ratios]
        rows.append(
            {
                "case": name, "title": found.title, "attacks": attacks, "adaptive_attacks": found.num_cells, "saved": attacks / found.num_cells,
                "answers": [
                    {
                        "metric": row.metric, "verdict": row.verdict, "ratio": row.ratio, "low": row.low, "num_cells": row.num_cells, "grid": answers[row.metric],
                        "steps_apart": abs(places.index(row.ratio) - places.index(answers[row.metric])),
                    }
                    for row in found.table.itertuples()
                ],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1], indent=1), flush=True)
    hardware = {"cores": os.cpu_count(), "machine": platform.machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    RESULTS.write_text(json.dumps({"hardware": hardware, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
