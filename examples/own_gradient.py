"""A gradient that one already has: scored, masked, encrypted with CKKS, and attacked.

Run: uv run python examples/own_gradient.py
"""

import jax
import jax.numpy as jnp
import optax
from own_functions import apply, init

import selgrad

data = selgrad.from_arrays(jax.random.uniform(jax.random.key(1), (4, 8, 8)), [0, 1, 2, 3], num_classes=10)
image, label = data.batch(0, 1).inputs, jnp.asarray([0])
params = init(jax.random.key(0))
grads = jax.grad(lambda p: optax.softmax_cross_entropy_with_integer_labels(apply(p, image), label).mean())(params)

mask = selgrad.mask(selgrad.scores(grads, "magnitude"), ratio=0.1)
keys = selgrad.keys(bound=8)
total = selgrad.decrypt(selgrad.add([selgrad.encrypt(grads, mask, keys), selgrad.encrypt(grads, mask, keys)]), keys)
print("error of the decrypted sum:", max(float(abs(t - 2 * g).max()) for t, g in zip(jax.tree.leaves(total), jax.tree.leaves(grads))))

found = selgrad.attack((init, apply), params, grads, mask, attack="rank_one", input_spec=selgrad.InputSpec((8, 8, 1), 10))
print("MSE of the reconstruction:", float(((found.inputs - image) ** 2).mean()))
