"""What is claimed of selective encryption, measured by the suites: does the published ratio protect, on the published kind of model?

Command: uv run python benchmarks/claims.py [--claims NAME ...] [--budget standard] [--data DIR]
  DIR holds fashion-mnist, cifar10 and cola; without it SELGRAD_DATA.
Time: some hours on 2 cores; each claim is a search in selgrad-runs/claims that goes on where it was interrupted.
Expected: for each arm how many of the inputs the worst attack of the suite reads. 24 inputs are tried first and up to 90 where few of them are read, since
  none of 73 says "below 5 %" with 95 %.
Leaves: benchmarks/results/claims.json, one row an arm; docs/results/claims.md is written from it.
"""

import argparse
import contextlib
import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

from selgrad import devices

devices.configure()

import jax
import pandas as pd

from selgrad.measures import held
from selgrad.registry import Spec
from selgrad.report.statistics import upper_bound
from selgrad.report.verdicts import worst_at
from selgrad.suites.recommend import configured
from selgrad.suites.search import Arm, Runner, Search

RESULTS = Path(__file__).parent / "results" / "claims.json"
RATE = 0.05
FIRST, MOST = 24, 90
SENSITIVITY = {"name": "sensitivity", "target": "label"}
SIGNED = {"name": "product", "exposed": "old", "signed": True, "gradient_at": "new"}


class Choice(NamedTuple):
    """One arm of a claim: what a client encrypts, and what is said to follow."""

    metric: Any
    ratio: float
    says: str
    selector: Any = "global_top"


class Claim(NamedTuple):
    """What a source says.

    Attributes:
      source: key of docs/references.bib.
      text: the claim in a sentence.
      config: keys of a sweep.
      choices: its arms; each says "protects" or "leaks".
      level: at which inputs count as read.
    """

    source: str
    text: str
    config: dict[str, Any]
    choices: list[Choice]
    level: str = "recognisable"


def claims(data: str) -> dict[str, Claim]:
    """Name -> claim."""
    fashion = lambda count, offset=0: {"name": "fashion_mnist", "path": f"{data}/fashion-mnist", "count": count, "offset": offset}
    cola = {"name": "cola", "path": f"{data}/cola", "max_length": 16, "count": MOST, "offset": 40}
    lenet = lambda **given: {"dataset": fashion(MOST), "public": fashion(500, 1000), "model": {"name": "lenet", "activation": "sigmoid", **given}}
    bert = {"dataset": cola, "model": {"name": "bert", "size": "tiny"}}
    # All leaves but layer_0/attention/query/kernel.
    rest = [
        "classifier/**",
        "embeddings/**",
        "pooler/**",
        "layer_1/**",
        "layer_0/attention_norm/**",
        "layer_0/mlp*/**",
        "layer_0/attention/[kov]*/**",
        "layer_0/attention/query/bias",
    ]
    visible = 128 * 128 / 479_362
    return {
        "FedML-HE, LeNet": Claim(
            "jin2023fedmlhe", "10 % by sensitivity stop DLG on LeNet with 100 classes, where a random choice needs 42.5 %",
            lenet(num_classes=100), [Choice(SENSITIVITY, 0.1, "protects"), Choice("random", 0.425, "protects"), Choice("random", 0.1, "leaks")],
        ),
        "FedML-HE, BERT": Claim(
            "jin2023fedmlhe", "30 % by sensitivity stop language-model inversion on BERT, where a random choice needs 75 %",
            bert, [Choice(SENSITIVITY, 0.3, "protects"), Choice("random", 0.75, "protects"), Choice("random", 0.3, "leaks")],
        ),
        "MaskCrypt, LeNet": Claim(
            "hu2024maskcrypt", "1 % by the signed product of gradient and change of the weights stop DLG",
            {**lenet(), "update": {"name": "fedavg", "num_steps": 2, "learning_rate": 0.01, "batch_size": 1}}, [Choice(SIGNED, 0.01, "protects")],
        ),
        "FLRSP, LeNet": Claim(
            "sawada2026flrsp", "a random part of the parameters, sent in the clear, withstands reconstruction",
            lenet(), [Choice("random", 0.5, "protects"), Choice("random", 0.9, "protects")],
        ),
        "FLRSP, MLP": Claim(
            "sawada2026flrsp", "a random part of the parameters, sent in the clear, withstands reconstruction",
            {"dataset": fashion(MOST), "model": {"name": "mlp", "activation": "sigmoid"}}, [Choice("random", 0.5, "protects"), Choice("random", 0.9, "protects")],
        ),
        "partial modules, BERT": Claim(
            "li2024partial", "one linear layer of a transformer, with all else hidden, is enough to read text",
            {**bert, "known_labels": True}, [Choice("random", 1 - visible, "leaks", {"name": "by_path", "paths": rest})],
        ),
        "SHE-LoRA, GPT-2": Claim(
            "liu2025shelora", "encrypting columns of the adapters by sensitivity leaves DAGER nothing to read",
            {"dataset": cola, "model": {"name": "gpt2", "size": "tiny", "lora_rank": 8}, "known_labels": True, "rounds": {"count": 3}},
            [Choice(SENSITIVITY, ratio, "protects", {"name": "aligned", "unit": "columns"}) for ratio in (0.1, 0.5)],
        ),
    }  # fmt: skip


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Both ends of the exact 95 % interval of a share."""
    return 1 - upper_bound(trials - successes, trials, 0.975), upper_bound(successes, trials, 0.975)


def of_arm(table: pd.DataFrame, arm: Arm, ratio: float) -> pd.DataFrame:
    """The rows of an arm at a ratio."""
    return table[(table["ratio"] == ratio) & (table["metric_label"] == arm.metric.label) & (table["selector_label"] == arm.selector.label)]


def quality(records: pd.DataFrame) -> str:
    """What the best attack on the median input gets."""
    (measure,) = held(records.columns, lambda one: one.headline and records[one.name].notna().any())
    best = records.groupby(["sample", "seed"])[measure.name].agg("min" if measure.lower_is_better else "max")
    return measure.quality(float(best.median()))


def measured(claim: Claim, out: Path, budget: Any) -> list[dict[str, Any]]:
    """Each arm's inputs that the worst attack reads."""
    metrics, selectors = ([*{repr(one[at]): one[at] for one in claim.choices}.values()] for at in (0, 3))
    config, suite, left = configured(
        {"gallery": 0, "name": "claim", "encryption": "none", **claim.config, "metric": metrics, "selector": selectors}, None, budget,
        sorted({choice.ratio for choice in claim.choices}),
    )  # fmt: skip
    executor: Any = Spec.of("engine", "local").build()
    rows = []
    with contextlib.closing(executor):
        search = Search(config, out)
        with search.lock():
            executor.plan(search, print)
            for choice in claim.choices:
                arm = Arm(Spec.of("metric", choice.metric), Spec.of("selector", choice.selector))
                runner = Runner(search, executor, claim.level, on_event=print)
                for first, last in ((0, FIRST), (FIRST, MOST)):
                    runner.run([search.lane(arm, choice.ratio, cell) for cell in range(first, min(last, search.num_cells))])
                    records = search.records()
                    worst = of_arm(worst_at(records, claim.level), arm, choice.ratio)
                    counts = worst["outcome"].value_counts()
                    read, told = int(counts.get("read", 0)), len(worst) - int(counts.get("attack failed", 0))
                    low, high = interval(read, told)
                    # A few successes among the first decide already.
                    if low > RATE:
                        break
                rows.append(
                    {
                        "metric": arm.label, "ratio": choice.ratio, "says": choice.says, "read": read, "n": told,
                        "unresolved": int(counts.get("unresolved", 0)), "failed": int(counts.get("attack failed", 0)), "low": low, "high": high, "quality": quality(of_arm(records, arm, choice.ratio)),
                        "title": search.settings[0].title, "suite": suite.label(budget), "left_out": left,
                        "attack_hours": float(of_arm(records, arm, choice.ratio)["attack_seconds"].sum()) / 3600,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
            search.folder.compact()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="*", help="names; all of them by default")
    parser.add_argument("--budget", default="standard", choices=["quick", "standard", "full"])
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA"), help="folder of the data sets")
    parser.add_argument("--out", default="selgrad-runs/claims", type=Path)
    given = parser.parse_args()
    if not given.data:
        parser.error("name the folder of the data sets with --data")
    every = claims(given.data)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for name in given.claims or every:
        claim = every[name]
        rows = measured(claim, given.out / f"{name.replace(', ', '-').replace(' ', '-')}-{given.budget}", given.budget)
        rows = [{"claim": name, "source": claim.source, "text": claim.text, "level": claim.level, **row} for row in rows]
        kept["rows"] = [row for row in kept["rows"] if row["claim"] != name] + rows
        kept["hardware"] = {"cores": os.cpu_count(), "machine": platform.machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
        RESULTS.write_text(json.dumps(kept, indent=1).replace(f"{given.data}/", "") + "\n")


if __name__ == "__main__":
    main()
