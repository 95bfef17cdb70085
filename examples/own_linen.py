"""One's own Flax Linen network with batch normalisation, and one's own significance metric.

Run: uv run python examples/own_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import selgrad


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = nn.sigmoid(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def relative(grads):
    return jax.tree.map(lambda g: jnp.abs(g) / (jnp.abs(g).mean() + 1e-12), grads)


for ratio in (0.0, 0.5):
    cell = selgrad.run_cell(dataset={"name": "digits", "count": 1}, model=Net(), metric=relative, ratio=ratio, attack={"name": "idlg", "num_steps": 30})
    print(f"{ratio:.0%} encrypted: PSNR {cell.psnr:.1f} dB")
