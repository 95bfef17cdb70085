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
# A small sweep on real digits, and what its records hold. Runs in about a minute on two cores.

# %%
import tempfile

from selgrad import devices

devices.configure()

from selgrad import read_records, run_sweep
from selgrad.report.tables import curves
from selgrad.report.verdicts import stopping_ratios

out = tempfile.mkdtemp()
config = {
    "name": "first-look",
    "dataset": {"name": "digits", "count": 2},
    "model": "lenet",
    "metric": ["random", "magnitude"],
    "ratio": [0, 0.2, 0.5],
    "attack": {"name": "idlg", "num_steps": 20},
    "encryption": {"num_clients": 3},
}
run_sweep(config, out, quiet=True)
# %% [markdown]
# One row per cell, with what was reconstructed and what the encryption cost.

# %%
records = read_records(out)
assert len(records) == 2 * 2 * 3
records[["metric_label", "ratio", "sample", "psnr", "ssim", "success", "num_selected", "ciphertext_bytes", "encrypt_seconds"]]

# %%
curves(records, "psnr")

# %%
stopping_ratios(records)
