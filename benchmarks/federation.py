"""Federated averaging with selective encryption on Flower: is the accuracy that of plain FedAvg, and what does a ratio cost?

Command: uv run --extra federation python benchmarks/federation.py --data DIR   (DIR holds cifar10/)
Time: about 8 minutes on 2 cores; runs that are done are not run again.
Setting: 5 clients, Dirichlet(0.5), 10 rounds of 20 local steps; digits (1,200 + 500) and CIFAR-10 (2,000 + 500), DLG's LeNet with relu and FedAvg's CNN;
  masks by vote on magnitude. Seconds are a client's training and encryption, the server's sum, and the decryption with its message to the key holder.
  What noise, rounding and pruning cost at equal protection: benchmarks/equal_protection.py.
Expected: the same accuracy as plain FedAvg, round by round; FedML-HE reports 2 to 3 times the bytes and 1.4 to 9 times the seconds of plain at 10 to 100 %.
Leaves: benchmarks/results/federation.parquet, federation.json and docs/figures/federation.png.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from selgrad import federate

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# DLG's LeNet starts from weights that are large for relu; on CIFAR-10 a larger rate makes updates above the bound, which are clipped.
RATES = {("digits", "lenet"): 0.1, ("digits", "cnn"): 0.1, ("cifar10", "lenet"): 0.005, ("cifar10", "cnn"): 0.02}
PHASES = ("train", "encrypt", "add", "decrypt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--out", default="selgrad-runs/federation")
    parser.add_argument("--draw", action="store_true", help="only draw what federation.parquet holds")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(pd.read_parquet(RESULTS / "federation.parquet"))
        return
    cifar = {"name": "cifar10", "path": f"{arguments.data}/cifar10"}
    datasets = {
        "digits": ({"name": "digits", "count": 1200}, {"name": "digits", "count": 500, "offset": 1200}),
        "cifar10": ({**cifar, "split": "train", "count": 2000}, {**cifar, "split": "test", "count": 500}),
    }
    models = {"lenet": {"name": "lenet", "activation": "relu"}, "cnn": {"name": "cnn", "width": 16}}
    selective = lambda ratio: {"protection": "selective", "ratio": ratio}
    settings = {"plain": {"protection": "none"}, "10 %": selective(0.1)}
    more = {"1 %": selective(0.01), "30 %": selective(0.3), "100 %": {"protection": "full"}}
    frames = []
    for data, (train, test) in datasets.items():
        for model, entry in models.items():
            for name, given in {**settings, **(more if (data, model) == ("digits", "cnn") else {})}.items():
                config = {
                    "dataset": train, "test": test, "model": entry, "clients": {"count": 5, "alpha": 0.5}, "rounds": 10, "agreement": "vote",
                    "local": {"num_steps": 20, "batch_size": 32, "learning_rate": RATES[data, model]}, "timeout": 300.0, **given,
                }  # fmt: skip
                records = federate(config, f"{arguments.out}/{data}-{model}-{name.replace(' %', '').replace(' ', '-')}")
                frames.append(records.assign(dataset=data, model=model, setting=name))
                print(data, model, name, f"{records['accuracy'].iloc[-1]:.3f}", flush=True)
    table = pd.concat(frames, ignore_index=True)
    table["verified"] = table["verified"].astype("boolean")
    table.to_parquet(RESULTS / "federation.parquet", index=False)
    summarise(table)


def summarise(table: pd.DataFrame) -> None:
    """Factors against plain FedAvg, and the curves."""
    rows = []
    for (data, model, name), part in table.groupby(["dataset", "model", "setting"], sort=False):
        # The first round compiles.
        later = part[part["round"] > 1]
        plain = table[(table["dataset"] == data) & (table["model"] == model) & (table["setting"] == "plain") & (table["round"] > 1)]
        total = sum(later[f"{phase}_seconds"] for phase in PHASES).median()
        base = sum(plain[f"{phase}_seconds"] for phase in PHASES).median()
        size = lambda p: float((p["plain_bytes"] + p["sealed_bytes"]).mean())
        rows.append(
            {
                "dataset": data, "model": model, "setting": name, "num_parameters": int(part["num_total"].iloc[0]), "accuracy": float(part["accuracy"].iloc[-1]),
                "largest_difference": float(part["difference"].max()), "difference_bound": float(part["difference_bound"].max()),
                "largest_accuracy_gap": float((part["accuracy"].to_numpy() - table[(table["dataset"] == data) & (table["model"] == model) & (table["setting"] == "plain")]["accuracy"].to_numpy()).__abs__().max()),
                "all_rounds_equal_fedavg": bool(part["verified"].all()) if part["verified"].notna().all() else None, "seconds_factor": float(total / base), "bytes_factor": size(later) / size(plain),
                **{f"{phase}_seconds": float(later[f"{phase}_seconds"].median()) for phase in PHASES},
            }
        )  # fmt: skip
    (RESULTS / "federation.json").write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")

    draw(table)


def draw(table: pd.DataFrame) -> None:
    """Accuracy by round, a panel for each data set and model."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 5.6), layout="constrained", sharey=True, sharex=True)
    for axis, (data, model) in zip(axes.flat, table[["dataset", "model"]].drop_duplicates().itertuples(index=False), strict=True):
        for name, style in (
            ("plain", {"linewidth": 6, "alpha": 0.35, "color": "#0072B2"}),
            ("10 %", {"marker": "o", "markersize": 3, "color": "#D55E00"}),
        ):
            one = table[(table["dataset"] == data) & (table["model"] == model) & (table["setting"] == name)]
            axis.plot(one["round"], 100 * one["accuracy"], label={"plain": "plain FedAvg", "10 %": "10 % encrypted"}[name], **style)
        axis.set(title=f"{data}, {model}", ylim=(0, 100))
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, % of 500 test images")
    for axis in axes[1]:
        axis.set_xlabel("round, 5 clients")
    axes[0, 0].legend(fontsize=9, frameon=False, loc="lower right")
    figure.savefig(HERE.parent / "docs" / "figures" / "federation.png", dpi=130)


if __name__ == "__main__":
    main()
