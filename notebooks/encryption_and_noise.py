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

import flax.linen as nn
import jax
import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import selgrad
from selgrad import encryption

# %% [markdown]
# ## A round by hand
# Three clients have a digit each. All encrypt the tenth of the entries that is largest in the mean of their gradients' magnitudes.


# %%
class Net(nn.Module):
    """One convolution and a dense head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch (B, H, W, 1)."""
        x = nn.sigmoid(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


digits, net = load_digits(), Net()
images, labels = digits.images[:3, ..., None] / 16, digits.target[:3]
params = net.init(jax.random.key(0), images)["params"]


def gradient(image, label):
    """A client's gradient of the cross-entropy, over the number of clients, so that the sum is the mean."""
    return jax.grad(lambda p: -jax.nn.log_softmax(net.apply({"params": p}, image[None]))[0, label] / 3)(params)


updates = [gradient(image, label) for image, label in zip(images, labels, strict=True)]
scores = jax.tree.map(lambda *leaves: sum(leaves), *map(selgrad.scores, updates))
mask = selgrad.mask(scores, ratio=0.1)

keys = selgrad.keys("exact")
sealed = [selgrad.encrypt(update, mask, keys) for update in updates]
total = selgrad.decrypt(selgrad.add(sealed), keys)
[update.num_bytes for update in sealed], encryption.PROFILES["exact"].bytes_per_value

# %% [markdown]
# Each encrypted entry is rounded to a grid, and the sum of the rounded entries comes back exactly, to the last bit. Entries outside the mask are sent as they are.

# %%
step = 2.0 ** -encryption.PROFILES["exact"].grid_bits
rounded = jax.tree.map(lambda *leaves: sum(np.rint(np.float64(leaf) / step) * step for leaf in leaves), *updates)
plain = jax.tree.map(lambda *leaves: np.sum(np.float64(leaves), axis=0), *updates)
for found, grid, exact, hidden in zip(*map(jax.tree.leaves, (total, rounded, plain, mask)), strict=True):
    assert (found[hidden] == grid[hidden]).all()
    assert (found[~hidden] == exact[~hidden]).all()
jax.tree.map(lambda found, exact: float(np.abs(found - exact).max()), total, plain)

# %% [markdown]
# ## What an attacker reads behind each protection
# `protection` is an axis of a sweep like any other.

# %%
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
records = selgrad.run_sweep(config, tempfile.mkdtemp(), quiet=True)
table = records.pivot_table(index="protection_label", columns="ratio", values="psnr", sort=False)
table.round(1)

# %%
table.plot.barh(figsize=(7, 4), xlabel="PSNR of the reconstruction, dB (lower is safer)", ylabel="")
plt.tight_layout()
