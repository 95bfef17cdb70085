"""Encryption and the baselines at equal protection: how strong must each be to stop the same attacks, and what do accuracy, bytes and seconds cost then?

Command: uv run --extra federation python benchmarks/equal_protection.py
Time: about 90 minutes on 2 cores; sweeps and runs that are done are not run again.
Setting: digits, FedAvg's CNN. Attacked is the gradient of one sample at fresh weights, where attacks are strongest, labels known, 16 samples; the strongest of
  Inverting Gradients (hidden entries ignored, completed, filled in by a decoder; three weights of total variation) and the decoder alone. Stopped: from
  that strength on none reaches MSE 0.01 (20 dB) on any sample. Then federated runs at that strength: 5 clients, Dirichlet(0.5), 10 rounds of
  20 local steps, three seeds. Noise is relative to the clip, which is about the norm of what is sent in both. A mask is one for all clients, by vote or by the
  mean of their maps (in federated runs summed under encryption).
Expected: encryption costs no accuracy and pays in bytes and seconds; noise and pruning pay in accuracy (Zhu et al. 2019: noise of variance 1e-2 stops DLG
  and accuracy is lost; pruning stops it from 20 % on, by an attacker who takes pruned entries for zeros).
Leaves: benchmarks/results/equal_protection.parquet, equal_protection.json and docs/figures/equal_protection.png.
"""

import argparse
import json
import math
import os
from pathlib import Path

import jax
import pandas as pd
from matplotlib import pyplot as plt

from selgrad import federate, run_sweep
from selgrad.report.tables import wilson

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MODEL = {"name": "cnn", "width": 16}
NUM_SAMPLES = 16
SENSITIVITY = {"name": "sensitivity", "target": "inputs", "num_probes": 16}
NOISE = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
BITS = [12, 10, 8, 7, 6, 5, 4, 3, 2, 1]
# The norm of a gradient at fresh weights, and that of a client's update in the later rounds.
CLIPS = {"attack": 5.0, "training": 0.5}


def matching(hidden: list[str], weights: list[float]) -> dict:
    return {"name": "inverting_gradients", "num_steps": 1500, "hidden": hidden, "total_variation_weight": weights}


def attack(out: str) -> pd.DataFrame:
    """Every protection at every strength against every attack: columns `family`, `strength` (larger is stronger), `success` and more."""
    base = {
        "dataset": {"name": "digits", "count": NUM_SAMPLES}, "public": {"name": "digits", "count": 1000, "offset": 200}, "model": MODEL, "metric": "random",
        "known_labels": True, "success": {"measure": "mse", "threshold": 0.01}, "encryption": "none", "gallery": 2, "ratio": 0.0,
    }  # fmt: skip
    masked = [matching(["ignore", "complete", "learned"], [1e-4, 1e-2]), {"name": "learned"}]
    blurred = [matching(["ignore", "learned"], [1e-4, 1e-2, 1e-1]), {"name": "learned"}]
    pruned = {"name": "pruning", "ratio": [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999], "order": "smallest"}
    sweeps = {
        "selective": {
            "metric": ["magnitude", SENSITIVITY], "selector": {"name": "common", "by": "vote"}, "attack": masked,
            "ratio": [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9],
        },
        "selective-mean": {
            "metric": ["magnitude", SENSITIVITY], "selector": {"name": "common", "by": "mean"}, "attack": masked, "ratio": [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7],
        },
        "pruned": {"protection": [pruned, {**pruned, "order": "largest", "ratio": [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5]}], "attack": masked},
        "blurred": {"protection": [{"name": "dp_gaussian", "clip": CLIPS["attack"], "noise": NOISE}, {"name": "quantised", "bits": BITS}], "attack": blurred},
    }  # fmt: skip
    frames = []
    for name, given in sweeps.items():
        records = run_sweep({**base, "name": f"equal-{name}", **given}, f"{out}/attack-{name}")
        argument = records["protection_arguments"].map(json.loads)
        if name.startswith("selective"):
            family = "encryption by " + records["metric"] + ", " + records["selector_arguments"].map(lambda text: json.loads(text)["by"])
            strength = records["ratio"]
        else:
            family = [f"pruning, {a['order']}" if p == "pruning" else p for p, a in zip(records["protection"], argument, strict=True)]
            value = [a.get("noise", a.get("ratio", a.get("bits"))) for a in argument]
            strength = [-v if p == "quantised" else v for p, v in zip(records["protection"], value, strict=True)]
        frames.append(records.assign(family=family, strength=strength))
    return pd.concat(frames, ignore_index=True)


def stops(records: pd.DataFrame) -> pd.DataFrame:
    """By family the smallest measured strength from which on no sample was read by any attack."""
    rows = []
    for family, cells in records.groupby("family", sort=False):
        read = cells.groupby(["strength", "sample"])["success"].any().groupby("strength").sum()
        ends = read.index[::-1][(read.to_numpy()[::-1].cumsum() == 0)]
        strength = float(ends.min()) if len(ends) else math.nan
        rows.append({"family": family, "strength": strength, "upper": wilson(0, NUM_SAMPLES)[1], "read": {f"{k:g}": int(v) for k, v in read.items()}})
    return pd.DataFrame(rows)


def train(stopped: pd.DataFrame, out: str, seeds: list[int]) -> list[dict]:
    """Federated runs of every family at the strength that stops the attacks."""
    strength = stopped.set_index("family")["strength"].to_dict()
    settings: dict[str, dict] = {"none": {"protection": "none"}, "full encryption": {"protection": "full"}}
    for family, value in strength.items():
        if math.isnan(value):
            continue
        if family.startswith("encryption"):
            agreement = "vote" if family.endswith("vote") else "encrypted_sensitivity"
            metric = SENSITIVITY if "sensitivity" in family else "magnitude"
            settings[family] = {"protection": "selective", "ratio": value, "metric": metric, "agreement": agreement}
        elif family.startswith("pruning"):
            settings[family] = {"protection": {"name": "pruning", "ratio": value, "order": family.removeprefix("pruning, ")}}
        elif family == "dp_gaussian":
            settings[family] = {"protection": {"name": family, "clip": CLIPS["training"], "noise": value}}
        else:
            settings[family] = {"protection": {"name": family, "bits": int(-value)}}
    rows = []
    for family, given in settings.items():
        for seed in seeds:
            config = {
                "dataset": {"name": "digits", "count": 1200}, "test": {"name": "digits", "count": 500, "offset": 1200}, "model": MODEL, "seed": seed,
                "clients": {"count": 5, "alpha": 0.5}, "rounds": 10, "local": {"num_steps": 20, "batch_size": 32, "learning_rate": 0.1},
                "timeout": 300.0, **given,
            }  # fmt: skip
            name = f"{family}-{strength.get(family, '')}-{seed}".replace(" ", "-").replace(",", "")
            records = federate(config, f"{out}/train-{name}", quiet=True)
            # The first round compiles; bytes are a client's.
            later = records[records["round"] > 1]
            seconds = sum(later[f"{phase}_seconds"] for phase in ("train", "encrypt", "add", "decrypt")).median()
            size = float((later["plain_bytes"] + later["sealed_bytes"]).mean())
            rows.append({"family": family, "seed": seed, "accuracy": float(records["accuracy"].iloc[-1]), "seconds": float(seconds), "bytes": size})
            print(rows[-1], flush=True)
    return rows


COLOURS = {"magnitude": "#0072B2", "sensitivity": "#D55E00", "smallest": "#009E73", "largest": "#CC79A7"}


def draw(records: pd.DataFrame, stopped: pd.DataFrame, table: pd.DataFrame) -> None:
    """Share of samples read against strength, and accuracy and bytes at the strengths that stop all attacks."""
    figure, ((masks, costs), (noise, bits)) = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")

    def curve(family: str) -> pd.Series:
        return 100 * records[records["family"] == family].groupby(["strength", "sample"])["success"].any().groupby("strength").mean()

    for family in [f for f in stopped["family"] if f.startswith(("enc", "pru"))]:
        kind, which = family.removeprefix("encryption by ").split(", ")
        name, pruned = (which, True) if kind == "pruning" else (kind, False)
        read, style = curve(family), ":" if pruned else "-" if which == "vote" else "--"
        label = f"pruning of the {which}" if pruned else f"{kind} encrypted, agreed by {which}"
        masks.plot(
            100 * read.index,
            read,
            style,
            marker="s" if pruned else "o",
            markersize=4,
            linewidth=3 if name == "magnitude" else 1.5,
            color=COLOURS[name],
            label=label,
        )
    masks.set(xlabel="entries encrypted or left out, %", title="masks")
    masks.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axis, family, label in ((noise, "dp_gaussian", "standard deviation of the noise, in units of the clip"), (bits, "quantised", "bits of an entry")):
        read = curve(family)
        axis.plot(read.index.to_series().abs(), read, "o-", markersize=4, color="#0072B2")
        axis.set(xlabel=label, title=family)
    noise.set_xscale("log")
    bits.invert_xaxis()
    for axis in (masks, noise, bits):
        axis.set(ylim=(-4, 104), ylabel=f"images read by some attack, % of {NUM_SAMPLES}")
        axis.grid(alpha=0.25)
    strength = stopped.set_index("family")["strength"].abs()
    names = [f"{family}, {strength[family]:g}" if family in strength else family for family in table.index]
    costs.barh(names, 100 * table["accuracy"], color="#BBD7EA")
    for i, row in enumerate(table.itertuples()):
        costs.text(1, i, f"{100 * row.accuracy:.1f} %, {row.bytes_factor:.2g} times the bytes", va="center", fontsize=8)
    costs.invert_yaxis()
    costs.tick_params(axis="y", labelsize=8)
    costs.set(xlabel="accuracy, % of 500 test images, after 10 rounds", xlim=(0, 100), title="at the strength at which no image is read")
    figure.savefig(HERE.parent / "docs" / "figures" / "equal_protection.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="selgrad-runs/equal-protection")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draw", action="store_true", help="only draw what the files hold")
    arguments = parser.parse_args()
    if arguments.draw:
        document = json.loads((RESULTS / "equal_protection.json").read_text())
        table = pd.DataFrame(document["training"]).set_index("family")
        draw(pd.read_parquet(RESULTS / "equal_protection.parquet"), pd.DataFrame(document["stopped"]), table)
        return
    records = attack(arguments.out)
    stopped = stops(records)
    print(stopped.to_string(), flush=True)
    rows = pd.DataFrame(train(stopped, arguments.out, arguments.seeds))
    columns = ["family", "strength", "attack_label", "sample", "mse", "psnr", "success", "diverged"]
    records[columns].to_parquet(RESULTS / "equal_protection.parquet", index=False)
    table = rows.groupby("family", sort=False).agg(accuracy=("accuracy", "mean"), lowest=("accuracy", "min"), highest=("accuracy", "max"), seconds=("seconds", "median"), bytes=("bytes", "mean"))  # fmt: skip
    table["bytes_factor"], table["seconds_factor"] = table["bytes"] / table.loc["none", "bytes"], table["seconds"] / table.loc["none", "seconds"]
    hardware = {"device": jax.local_devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    document = {
        "hardware": hardware,
        "stopped": json.loads(stopped.to_json(orient="records")),
        "training": json.loads(table.reset_index().to_json(orient="records")),
    }
    (RESULTS / "equal_protection.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(records, stopped, table)


if __name__ == "__main__":
    main()
