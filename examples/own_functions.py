"""A network in plain JAX: two functions and a pytree of parameters.

Run: uv run python examples/own_functions.py
"""

import jax
import jax.numpy as jnp

import selgrad


def init(key):
    first, last = jax.random.split(key)
    scale = lambda key, shape: jax.random.normal(key, shape) / jnp.sqrt(shape[0])
    return [(scale(first, (64, 32)), jnp.zeros(32)), (scale(last, (32, 10)), jnp.zeros(10))]


def apply(params, x):
    (w1, b1), (w2, b2) = params
    return jax.nn.relu(x.reshape(len(x), -1) @ w1 + b1) @ w2 + b2


if __name__ == "__main__":
    attack = {"name": "inverting_gradients", "num_steps": 500, "total_variation_weight": 1e-4}
    cell = selgrad.run_cell(dataset={"name": "digits", "count": 1}, model=(init, apply), ratio=0.1, attack=attack)
    print(f"10% encrypted: PSNR {cell.psnr:.1f} dB, label right: {bool(cell.label_correct)}")
