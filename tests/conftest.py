"""Fixtures, and run-time checks of every jaxtyping annotation in selgrad while tests run."""

import os
from pathlib import Path

from selgrad import devices

devices.configure()
os.environ.setdefault("WANDB_MODE", "offline")

import jaxtyping

# base.py is left out: JAX rebuilds its pytrees with placeholders for leaves, which no shape annotation fits.
_CHECKED = [
    f"selgrad.{room}"
    for room in ("trees", "config", "data", "models", "gradients", "significance", "masks", "attacks", "evaluation", "encryption", "experiment", "report")
]
jaxtyping.install_import_hook(_CHECKED, "beartype.beartype")

import jax
import pytest

from selgrad.base import InputSpec
from selgrad.gradients import UPDATES
from selgrad.models import MODELS


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} names no folder")
    if not Path(value).is_dir():
        pytest.skip(f"{variable}={value!r} does not exist")
    return Path(value)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data in original formats, where SELGRAD_DATA names them."""
    return _folder("SELGRAD_DATA")


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Float64 reference values, where SELGRAD_REFERENCE names them."""
    return _folder("SELGRAD_REFERENCE")


@pytest.fixture
def x64():
    """Double precision for one test."""
    # The context manager for this has another name in each of the two JAX versions; the option has not.
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    """8x8 grey images, 10 classes."""
    return InputSpec((8, 8, 1), 10)


class Problem:
    """A model, an update and one client's batch, small enough for a test."""

    def __init__(self, spec, model="mlp", update="gradient", batch_size=1, **arguments):
        self.model = MODELS[model](spec, **({"width": 16} if model != "lenet" else {}))
        self.update = UPDATES[update](batch_size=batch_size, **arguments)
        self.params = self.model.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1))
        from selgrad.base import Batch, GradientContext

        inputs = jax.random.uniform(keys[0], (batch_size, *spec.shape))
        self.batch = Batch(inputs, jax.random.randint(keys[1], (batch_size,), 0, spec.num_classes, jax.numpy.int32))
        one_hot = jax.nn.one_hot(self.batch.labels, spec.num_classes)
        self.grads = jax.jit(lambda p, x, y: self.update(self.model, p, x, y))(self.params, inputs, one_hot)
        self.context = GradientContext(model=self.model, params=self.params, batch=self.batch, update=self.update, grads=self.grads, key=jax.random.key(2))


@pytest.fixture(scope="session")
def problem():
    """A factory of `Problem`."""
    return Problem
