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
# # A first look at a sweep
# Four digits, a LeNet, and an attacker who knows which entries are encrypted. Which metric hides the digits, and from which ratio on? Runs in about two
# minutes on two cores.

# %%
import tempfile
from pathlib import Path

from selgrad import devices

devices.configure()

from IPython.display import Image, display

from selgrad import run_sweep
from selgrad.report.verdicts import protecting_by_level, stopping_ratios

out = Path(tempfile.mkdtemp())
config = {
    "name": "first-look",
    "dataset": {"name": "digits", "count": 4},
    "model": {"name": "lenet", "activation": "sigmoid"},
    "metric": ["random", "magnitude", {"name": "sensitivity", "target": "inputs"}],
    "ratio": [0, 0.2, 0.5, 0.8, 0.95],
    "attack": {"name": "idlg", "num_steps": 20, "start": "grey"},
    "encryption": {"num_clients": 3},
}
records = run_sweep(config, out, quiet=True)

# %% [markdown]
# One row per cell, with what was reconstructed and what the encryption cost. `read_records(out)` gives the same later, and so does
# `pandas.read_parquet(out / "records")`.

# %%
assert len(records) == 4 * 3 * 5
records[["metric_label", "ratio", "sample", "psnr", "ssim", "level", "num_selected", "ciphertext_bytes", "encrypt_seconds"]].head(8)

# %% [markdown]
# ## What is read
# Below each picture stands what it gives away: *exact* to the grey level, *recognisable* among 1,000 other digits, the *attribute* (its class), or *nothing*.

# %%
display(Image(out / "figures" / "gallery_0_idlg_sample_0.png"))

# %% [markdown]
# ## From which ratio on nothing is read
# Random selection lets every digit be read even at 95 %. Magnitude and sensitivity hide all four from 80 % on. Four inputs do not say much: the upper end of
# the 95 % interval of the share that is read stands beside each verdict.

# %%
display(Image(out / "figures" / "levels_against_ratio.png"))
stopping_ratios(records)[["curve", "verdict"]]

# %%
found = protecting_by_level(records).set_index(["metric", "level"])["ratio"].unstack()
assert found.loc["random"].max() > 0.95
assert found.loc["magnitude", "recognisable"] <= 0.95
found

# %% [markdown]
# `out / "report.html"` holds all of this on one page. `selgrad recommend` asks the same question with all attacks of a suite, and with as many inputs as
# it takes to be confident.
