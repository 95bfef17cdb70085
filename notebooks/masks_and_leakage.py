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
# # Masks, and what they leak
# A client that chooses which entries to encrypt has to say which they are. How alike are the masks of two metrics, and what does the list alone tell an
# attacker? Runs in about a minute on two cores.

# %%
from selgrad import devices

devices.configure()

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import selgrad
from selgrad.audit import audit_masks


class Net(nn.Module):
    """One convolution and a dense head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch (B, H, W, 1)."""
        x = nn.sigmoid(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


digits, net = load_digits(), Net()
images, labels = jnp.asarray(digits.images[:8, ..., None] / 16, jnp.float32), digits.target[:8]
params = net.init(jax.random.key(0), images)["params"]
metrics = {"random": "random", "magnitude": "magnitude", "sensitivity": {"name": "sensitivity", "target": "inputs"}}


def mask(metric, client, ratio=0.1):
    """The mask of one client as a flat array of bool."""
    image, label = images[client][None], labels[client]
    grads = jax.grad(lambda p: -jax.nn.log_softmax(net.apply({"params": p}, image))[0, label])(params)
    given = {"model": net, "params": params, "inputs": image, "labels": [label], "input_spec": selgrad.InputSpec((8, 8, 1), 10)}
    chosen = selgrad.mask(selgrad.scores(grads, metrics[metric], seed=client, **given), ratio)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(chosen)])


# %% [markdown]
# ## How alike are two masks?
# The Jaccard index of two sets: the share of their union that both hold. Masks of one metric for two clients differ, since their data do.
# A tenth of this network's entries is about one class's column of the dense layer, and magnitude takes the column of the label: clients with different digits
# share next to nothing.

# %%
jaccard = lambda a, b: float((a & b).sum() / (a | b).sum())
overlap = np.array([[jaccard(mask(a, 0), mask(b, 0)) for b in metrics] for a in metrics])
of_clients = {name: np.mean([jaccard(mask(name, i), mask(name, j)) for i in range(8) for j in range(i)]) for name in metrics}
figure, axis = plt.subplots(figsize=(4.2, 3.4))
axis.imshow(overlap, vmin=0, vmax=1, cmap="Blues")
for i in range(3):
    for j in range(3):
        axis.text(j, i, f"{overlap[i, j]:.2f}", ha="center", va="center", color="white" if overlap[i, j] > 0.6 else "black")
axis.set_xticks(range(3), metrics)
axis.set_yticks(range(3), metrics)
axis.set_title("one client, two metrics, 10 % encrypted", fontsize=9)
plt.tight_layout()
of_clients

# %% [markdown]
# ## What the list tells
# `audit_masks` trains classifiers and regressors on the masks of some inputs and predicts the label, the pixels and their support of others, without any gradient
# value. Random masks reveal nothing, and masks that depend on the data a great deal.

# %%
told = audit_masks(
    dataset={"name": "digits", "count": 200},
    model="lenet",
    metrics=["random", "magnitude", {"name": "sensitivity", "target": "inputs"}],
    ratios=[0.01, 0.1],
)
assert told.set_index(["metric", "ratio"]).loc[("magnitude", 0.1), "label_accuracy"] > 0.9
told[["metric", "ratio", "label_accuracy", "label_chance", "input_explained", "support_auc"]].round(2)
