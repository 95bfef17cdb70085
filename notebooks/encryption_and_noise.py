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
# # Encrypted sums, and what noise does in their place
# Three clients encrypt a tenth of their gradients, somebody without a key adds them, and the key holder decrypts. Then the same attack
# meets encryption, noise, rounding and pruning. Runs in about a minute on two cores.

# %%
import tempfile

from selgrad import devices

devices.configure()

import jax
from matplotlib import pyplot as plt

from selgrad import encryption, read_records, run_sweep, trees
from selgrad.experiment import Lane, Setting
from selgrad.registry import make_spec

# %% [markdown]
# ## A round by hand
# `Setting` holds data, model and every client's gradient; a mask is the first so many entries by a metric.

# %%
setting = Setting(make_spec("dataset", "digits", {"count": 3}), make_spec("model", "lenet"), make_spec("update", "gradient"))
mask = setting.mask(Lane(seed=0, sample=0, metric=make_spec("metric", "magnitude"), selector=make_spec("selector", "common"), ratio=0.1))
updates = [jax.tree.map(lambda leaf: leaf / 3, setting.sent(0, 0, sample).grads) for sample in range(3)]
name = encryption.mask_hash(mask)

holder = encryption.KeyHolder("exact")
client = encryption.Client(holder.client_key())
uploads = [client.encrypt(encryption.select(update, mask), name) for update in updates]
total = encryption.Aggregator("exact").add(uploads)
points = holder.decrypt(total, name)
[len(upload) for upload in uploads], encryption.PROFILES["exact"].bytes_per_value

# %% [markdown]
# The decrypted sum is the sum of the rounded entries, to the last integer.

# %%
expected = sum(encryption.quantise(encryption.select(update, mask), encryption.PROFILES["exact"]) for update in updates)
assert (points == expected).all()
plain = trees.hide(jax.tree.map(lambda *leaves: sum(leaves), *updates), mask)
mean = encryption.scatter(points / 2.0**24, mask, plain)
trees.paths(mean)

# %% [markdown]
# ## What an attacker reads behind each protection
# `protection` is an axis of a sweep like any other.

# %%
out = tempfile.mkdtemp()
config = {
    "name": "protections",
    "dataset": {"name": "digits", "count": 2},
    "model": {"name": "lenet", "activation": "sigmoid"},
    "metric": "magnitude",
    "ratio": [0, 0.1],
    "protection": [
        "none",
        {"name": "dp_gaussian", "noise": [0.0003, 0.003]},
        {"name": "quantised", "bits": [8, 4]},
        {"name": "pruning", "ratio": [0.9, 0.99]},
    ],
    "attack": {"name": "idlg", "num_steps": 40},
    "encryption": "none",
}
run_sweep(config, out, quiet=True)
records = read_records(out)
table = records.pivot_table(index="protection_label", columns="ratio", values="psnr", sort=False)
table.round(1)

# %%
table.plot.barh(figsize=(7, 4), xlabel="PSNR of the reconstruction, dB (lower is safer)", ylabel="")
plt.tight_layout()
