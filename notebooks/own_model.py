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
# # Your own model
# A Flax module, a metric of your own, and a gradient that you already have. Runs in about a minute on two cores.

# %%
from selgrad import devices

devices.configure()

import flax.linen as nn
import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt

import selgrad

# %% [markdown]
# ## A module, as it is
# Batch normalisation and dropout are fine. `run_cell` runs one attack on one client's gradient.


# %%
class Net(nn.Module):
    """Two convolutions and a dense head."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits of a batch (B, H, W, C)."""
        x = nn.tanh(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.tanh(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


attack = {"name": "idlg", "num_steps": 40, "start": "grey"}
cells = {
    ratio: selgrad.run_cell(dataset={"name": "digits", "count": 1}, model=Net(), metric="magnitude", ratio=ratio, attack=attack) for ratio in (0.0, 0.5, 0.95)
}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.4))
axes[0].imshow(cells[0.0].truth[0, ..., 0], cmap="gray", vmin=0, vmax=1)
axes[0].set_title("truth")
for axis, (ratio, cell) in zip(axes[1:], cells.items(), strict=True):
    axis.imshow(cell.reconstruction[0, ..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set_title(f"{ratio:.0%} encrypted: {min(cell.psnr, 60):.0f} dB", fontsize=9)
for axis in axes:
    axis.axis("off")

# %% [markdown]
# ## A metric of your own
# One score for each entry of the gradient pytree; the largest are encrypted first. Here each leaf is scaled by its own largest entry, so that small layers
# get their share.


# %%
def relative(grads):
    """Entries relative to the largest of their leaf."""
    return jax.tree.map(lambda g: jnp.abs(g) / jnp.abs(g).max(), grads)


config = {
    "dataset": {"name": "digits", "count": 2},
    "model": Net(),
    "metric": ["magnitude", relative],
    "ratio": [0.0, 0.2, 0.5, 0.8, 0.95],
    "attack": attack,
    "encryption": "none",
}
import tempfile

records = selgrad.run_sweep(config, tempfile.mkdtemp(), quiet=True)
records.pivot_table(index="metric_label", columns="ratio", values="psnr").clip(upper=60).round(1)

# %% [markdown]
# ## A gradient that you already have
# Four functions over pytrees: `scores`, `mask`, `encrypt` and `attack`. Your structure goes in and comes out.


# %%
def init(key):
    """Weights of a linear classifier."""
    return {"w": 0.3 * jax.random.normal(key, (64, 10)), "b": jnp.zeros(10)}


def apply(params, x):
    """Its logits."""
    return x.reshape(len(x), -1) @ params["w"] + params["b"]


image, params = jnp.linspace(0, 1, 64).reshape(1, 8, 8, 1), init(jax.random.key(0))
grads = jax.grad(lambda p: -jax.nn.log_softmax(apply(p, image))[0, 3])(params)
mask = selgrad.mask(selgrad.scores(grads, "magnitude"), ratio=0.1)
found = selgrad.attack((init, apply), params, grads, mask, attack="rank_one", input_spec=selgrad.InputSpec((8, 8, 1), 10))
assert found.labels.tolist() == [3]
float(jnp.abs(found.inputs - image).max())

# %% [markdown]
# A tenth of the entries was hidden, and the image is recovered to float precision: the gradient of a linear layer is an outer product, so each visible column
# determines the whole image. Encrypting the mask with CKKS takes three more lines (where OpenFHE loads).

# %%
from selgrad import encryption

if not encryption.unavailable():
    keys = selgrad.keys()
    sealed = selgrad.encrypt(grads, mask, keys)
    total = selgrad.decrypt(selgrad.add([sealed, sealed]), keys)
    print(float(jnp.abs(total["w"] - 2 * grads["w"]).max()))
