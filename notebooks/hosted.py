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
# # On a hosted machine
# For Colab, Kaggle and similar services, where Python 3.12 and JAX are installed and selgrad is not. Open `notebooks/hosted.ipynb` there. Runs in about a
# minute on two CPU cores.

# %%
import importlib.util
import subprocess
import sys

REPOSITORY = ""  # the address of your clone or fork, such as https://github.com/NAME/selgrad; not needed where selgrad is installed

if importlib.util.find_spec("selgrad") is None:
    if not REPOSITORY:
        raise SystemExit("selgrad is not installed here: write the address of its repository into REPOSITORY above and run this cell again")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"git+{REPOSITORY}"], check=True)

# %% [markdown]
# ## What this machine has
# JAX uses a GPU or TPU if the runtime has one. The encryption needs OpenFHE, whose package for Python 3.12 loads only with glibc 2.38 or newer. Where it does not load, everything
# but the encryption works, and the columns of its costs stay empty.

# %%
from selgrad import devices

devices.configure()

import jax

from selgrad.encryption import unavailable

missing = unavailable()
print("devices:", ", ".join(str(device) for device in jax.devices()))
print("encryption:", missing or "OpenFHE is there")

# %% [markdown]
# ## A module of your own, attacked
# Any Flax module will do. A sweep runs every combination of the lists below; here an attack in closed form reads handwritten digits off the first layer.

# %%
import tempfile
from pathlib import Path

import flax.linen as nn
from IPython.display import Image, display

import selgrad
from selgrad.report.verdicts import protecting_by_level


class Net(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Logits of images of shape (batch, 8, 8, 1)."""
        return nn.Dense(10)(nn.sigmoid(nn.Dense(32)(x.reshape(len(x), -1))))


out = Path(tempfile.mkdtemp())
config = {
    "name": "hosted",
    "dataset": {"name": "digits", "count": 4},
    "model": Net(),
    "metric": ["random", "magnitude", {"name": "sensitivity", "target": "inputs"}],
    "ratio": [0.0, 0.2, 0.5, 0.8, 0.95],
    "attack": "rank_one",
    "encryption": "none" if missing else {"num_clients": 3},
}
records = selgrad.run_sweep(config, out, quiet=True)
records.pivot_table(index="metric_label", columns="ratio", values="psnr").clip(upper=60).round(1)

# %% [markdown]
# ## What is read
# Each row of pictures is what the attack reconstructs behind one metric, from nothing encrypted to almost everything.

# %%
display(Image(out / "figures" / "gallery_0_rank_one_sample_0.png"))

# %%
protecting_by_level(records)

# %% [markdown]
# Four images say little, as the bounds show. `selgrad recommend` asks the same with as many as the answer takes. The folder has everything that was
# computed (records, figures, `report.html`); copy it from the machine before the session ends.

# %%
sorted(path.name for path in out.iterdir())
