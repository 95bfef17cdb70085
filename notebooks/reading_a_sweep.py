# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading a sweep
# Records are Parquet files with one row per cell, so that pandas and polars open them in one line. This notebook runs a small sweep with two attacks and asks
# its records: what does each attack read, what is a verdict worth, and what does it cost? Runs in about two minutes on two cores.

# %%
import tempfile
from pathlib import Path

from selgrad import devices

devices.configure()

import pandas as pd
from matplotlib import pyplot as plt

from selgrad import run_sweep
from selgrad.report.groups import Groups, description, sizes_of, summary
from selgrad.report.verdicts import by_level, contributions, with_outcomes

out = Path(tempfile.mkdtemp())
config = {
    "name": "reading",
    "dataset": {"name": "digits", "count": 6},
    "model": {"name": "mlp", "width": 32, "activation": "sigmoid"},
    "metric": ["random", "magnitude", "product"],
    "ratio": [0, 0.2, 0.5, 0.8, 0.95],
    "attack": ["rank_one", {"name": "idlg", "num_steps": 40, "hidden": ["zero", "ignore"]}],
    "encryption": {"num_clients": 10},
    "seeds": [0, 1],
}
run_sweep(config, out, quiet=True)
records = pd.read_parquet(out / "records")
len(records), len(records.columns)

# %% [markdown]
# ## Outcomes
# `success` says whether an attack read its input. What that means for the defence is `outcome`: an attack that fails with nothing encrypted says nothing, and
# neither does one whose search ended before it explained what is visible.

# %%
table = with_outcomes(records)
pd.crosstab([table["attack_label"], table["metric_label"]], table["outcome"])

# %% [markdown]
# ## The attacks together
# An input counts as read where any attack reads it.

# %%
levels = by_level(records)
levels[levels["level"] == "recognisable"].pivot_table(index="metric", columns="ratio", values="read", aggfunc="first")

# %% [markdown]
# What does each attack add? Those that read something that no other reads belong in a suite.

# %%
contributions(records)

# %% [markdown]
# ## One configuration at a time
# A group is all cells of one configuration; its description and summary are flat, which is what W&B gets.

# %%
rows = []
for _, cells in Groups(sizes_of(records)).add(records):
    rows.append({**{key: description(cells)[key] for key in ("metric", "attack", "rung", "ratio")}, **summary(cells)})
flat = pd.DataFrame(rows)
assert len(flat) == 3 * 5 * 3
flat[["metric", "attack", "rung", "ratio", "success", "success_high", "sent_bytes"]].head(8)

# %% [markdown]
# ## Cost against protection
# A ciphertext has room for thousands of entries, so small shares of a small model all cost one.

# %%
strong = flat[(flat["rung"] == "ignore") & (flat["attack"] == "idlg")]
figure, axis = plt.subplots(figsize=(6, 3.5))
for metric, line in strong.groupby("metric"):
    axis.errorbar(
        line["sent_bytes"] / 1000, 100 * line["success"], 100 * abs(line[["success_low", "success_high"]].T.to_numpy() - line["success"].to_numpy()),
        marker="o", capsize=2, label=metric,
    )  # fmt: skip
axis.set(xlabel="sent by a client (kB)", ylabel=f"read (%), n = {int(strong['num_cells'].iloc[0])}")
axis.legend()
plt.tight_layout()
