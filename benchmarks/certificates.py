"""Do certificates and metrics predict what attacks achieve? Rank correlation with the reconstruction error among masks of one ratio, over the attacker ladder.

Command: uv run python benchmarks/certificates.py --data DIR   (DIR holds fashion-mnist/; after benchmarks/attacker_ladder.py, whose records it reads)
Time: a minute. A cell is a sample under a mask (metric and ratio); its error is the mean squared error of the attack that leaves hidden entries out, or
  the smallest over all rungs and attacks. A metric predicts by the share of its scores that is hidden. Intervals: bootstrap over samples, 95 %.
  Ranks are taken within each ratio, so that nothing is credited with the ratio itself; `pooled` is over all ratios, where the ratio alone is the control.
Expected: nobody has published this.
Leaves: benchmarks/results/certificates.json and docs/figures/certificates.png.
"""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import yaml

from selgrad import devices

devices.configure()
import jax
from matplotlib import pyplot as plt

from selgrad import trees
from selgrad.experiment import Setting
from selgrad.registry import expand, make_spec

HERE = Path(__file__).parent
SIGNS = {
    "posterior_mse": 1, "influence_mse": 1, "influence_bound": 1, "condition": 1, "log_det": -1, "sigma_min": -1, "rank": -1, "identified": -1,
}  # fmt: skip


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def hidden_shares(part: dict, metrics: list, model, data: str) -> pd.DataFrame:
    """Per sample, mask metric and ratio: the share of each metric's scores that the mask hides."""
    path = {"path": f"{data}/fashion-mnist"} if part["dataset"]["name"] == "fashion_mnist" else {}
    setting = Setting(expand("dataset", {**part["dataset"], **path})[0], model, make_spec("update", "gradient"))
    own = make_spec("selector", "global_top")
    scores = {m.label: np.abs(flat(setting.choices.scores(m, 0))) for m in metrics if m.name != "random"}
    rows = []
    for mask_metric in metrics:
        ranks = flat(setting.ranks(mask_metric, own, 0)[0])
        for ratio in part["ratio"]:
            hidden = ranks < trees.count(ratio, setting.num_total)
            for sample in range(setting.num_samples):
                shares = {f"hidden {name}": float(s[sample][hidden[sample]].sum() / s[sample].sum()) for name, s in scores.items()}
                rows.append({"metric_label": mask_metric.label, "ratio": ratio, "sample": sample, **shares})
    return pd.DataFrame(rows)


def spearman(predictor: np.ndarray, error: np.ndarray, ratios: np.ndarray) -> float:
    """Of ranks within each ratio, from -1 to 1."""

    def ranks(values: np.ndarray) -> np.ndarray:
        found = np.zeros(len(values))
        for ratio in np.unique(ratios):
            at = ratios == ratio
            one = scipy.stats.rankdata(values[at])
            found[at] = (one - one.mean()) / at.sum()
        return found

    a, b = ranks(predictor), ranks(error)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SELGRAD_DATA", "data"))
    parser.add_argument("--draw", action="store_true", help="only draw what certificates.json holds")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(pd.DataFrame(json.loads((HERE / "results" / "certificates.json").read_text())["rows"]))
        return
    data = arguments.data
    whole = yaml.safe_load((HERE / "configs" / "attacker_ladder.yaml").read_text())
    records = pd.read_parquet(HERE / "results" / "attacker_ladder.parquet")
    metrics, rows = expand("metric", whole["metric"]), []
    generator = np.random.default_rng(0)
    for name, part in whole["parts"].items():
        if not part.get("certificates"):
            continue
        for model in expand("model", part["model"]):
            cells = records[(records["part"] == name) & (records["model_label"] == model.label) & (records["ratio"] > 0)]
            if cells.empty:
                continue
            keys = ["metric_label", "ratio", "sample"]
            # What counts is how far a reconstruction is from the truth among pictures; beyond the error of a flat picture all are lost.
            matching = cells["attack"].isin(["idlg", "inverting_gradients"])
            errors = {"ignore": cells[matching & (cells["hidden"] == "ignore")].groupby(keys)["mse"].min(), "strongest": cells.groupby(keys)["mse"].min()}
            certified = cells[matching & (cells["hidden"] == "ignore")].groupby(keys)[[f"certificate_{n}" for n in SIGNS]].first()
            table = certified.join(hidden_shares(part, metrics, model, data).set_index(keys))
            predictors = {n: SIGNS[n] * table[f"certificate_{n}"] for n in SIGNS}
            predictors |= {c: table[c] for c in table.columns if c.startswith("hidden ")}
            predictors["the ratio alone"] = pd.Series(table.index.get_level_values("ratio").to_numpy(float), index=table.index)
            samples = np.unique(table.index.get_level_values("sample"))
            ratios = table.index.get_level_values("ratio").to_numpy(float)
            everywhere = np.zeros(len(ratios))
            places = {s: np.flatnonzero(table.index.get_level_values("sample") == s) for s in samples}
            for against, error in errors.items():
                error = error.reindex(table.index).to_numpy(float)
                for label, values in predictors.items():
                    values = values.to_numpy(float)
                    draws = []
                    for _ in range(400):
                        at = np.concatenate([places[s] for s in generator.choice(samples, len(samples))])
                        draws.append(spearman(values[at], error[at], ratios[at]))
                    low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (math.nan, math.nan)
                    rows.append(
                        {
                            "setting": f"{part['dataset']['name']} / {model.label}", "against": against, "predictor": label, "num_cells": len(table),
                            "rank_correlation": spearman(values, error, ratios), "low": float(low), "high": float(high),
                            "pooled": spearman(values, error, everywhere),
                        }
                    )  # fmt: skip
    found = pd.DataFrame(rows)
    hardware = {"device": jax.local_devices()[0].device_kind, "jax": jax.__version__}
    content = {"hardware": hardware, "num_cells": int(found.groupby("setting")["num_cells"].first().sum()), "rows": json.loads(found.to_json(orient="records"))}
    (HERE / "results" / "certificates.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(found)


def draw(found: pd.DataFrame) -> None:
    """One panel per setting: rank correlations with intervals, against the attacker that ignores and against the strongest."""
    found = found[found["predictor"] != "the ratio alone"]
    settings, labels = list(dict.fromkeys(found["setting"])), list(dict.fromkeys(found["predictor"]))
    rows = -(-len(settings) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(10, rows * (0.32 * len(labels) + 1)), sharey=True, sharex=True, squeeze=False, layout="constrained")
    for axis, setting in zip(axes.flat, settings, strict=False):
        for k, (against, colour) in enumerate((("ignore", "#0072B2"), ("strongest", "#D55E00"))):
            part = found[(found["setting"] == setting) & (found["against"] == against)].set_index("predictor").reindex(labels)
            y = np.arange(len(labels)) + 0.2 * (2 * k - 1)
            error = np.abs(part[["low", "high"]].to_numpy().T - part["rank_correlation"].to_numpy())
            axis.errorbar(part["rank_correlation"], y, xerr=error, fmt="o", color=colour, markersize=4, label=f"error of the {against} attacker", linewidth=1)
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
        cells = int(found[found["setting"] == setting]["num_cells"].iloc[0])
        axis.set_title(f"{setting}, {cells} cells", fontsize=9)
        axis.set_xlim(-1.05, 1.05)
        axis.grid(alpha=0.25)
    figure.supxlabel("rank correlation with the attack's error, within a ratio; 95 % intervals over images", fontsize=10)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(labels)), [label.replace("_", " ") for label in labels], fontsize=9)
    axes[0][0].invert_yaxis()
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(HERE.parent / "docs" / "figures" / "certificates.png", dpi=130)


if __name__ == "__main__":
    main()
