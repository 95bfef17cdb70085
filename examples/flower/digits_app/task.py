"""The model, its data and its training: nothing here knows of encryption."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits


def simulated_keys(run_id: int) -> Path:
    """Where the keys of a simulated run lie, whose participants are processes of one machine."""
    return Path.home() / ".cache" / "selgrad" / "flower" / str(run_id)


def initial() -> list[np.ndarray]:
    """Weights and biases of a network with one hidden layer."""
    generator = np.random.default_rng(0)
    return [
        generator.normal(scale=1 / 8, size=(64, 32)).astype(np.float32), np.zeros(32, np.float32),
        generator.normal(scale=1 / 6, size=(32, 10)).astype(np.float32), np.zeros(10, np.float32),
    ]  # fmt: skip


def data(partition: int, num_partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's share of the first 1,500 digits."""
    digits = load_digits()
    mine = np.arange(partition, 1500, num_partitions)
    return (digits.data[mine] / 16).astype(np.float32), digits.target[mine]


def test_data() -> tuple[np.ndarray, np.ndarray]:
    """The other 297."""
    digits = load_digits()
    return (digits.data[1500:] / 16).astype(np.float32), digits.target[1500:]


def logits(weights, x):
    first, bias, second, offset = weights
    return jnp.tanh(x @ first + bias) @ second + offset


@jax.jit
def _loss(weights, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(weights, x), y).mean()


def train(weights, x, y, num_steps: int, learning_rate: float):
    """New weights and the last loss."""
    step = jax.jit(jax.value_and_grad(_loss))
    for _ in range(num_steps):
        loss, gradient = step(weights, x, y)
        weights = [w - learning_rate * g for w, g in zip(weights, gradient, strict=True)]
    return [np.asarray(w) for w in weights], float(loss)


def accuracy(weights, x, y) -> float:
    return float((logits(weights, x).argmax(-1) == y).mean())
