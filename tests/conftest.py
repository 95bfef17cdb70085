"""Fixtures, and run-time checks of every jaxtyping annotation in selgrad while tests run."""

import atexit
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import types
from pathlib import Path

# Set before workers start, which inherit it. Workers share the cores already, and tests of several devices start processes of their own. Most of a test is
# compilation: LLVM optimises less (not at all would halve it, and what runs longest would run a third longer); benchmarks and notebooks compile as users do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("WANDB_MODE", "offline")
# Removed by the process that made it; workers end without a word.
_SCRATCH = "SELGRAD_TESTS_SCRATCH"
if _SCRATCH not in os.environ:
    os.environ[_SCRATCH] = tempfile.mkdtemp(prefix="selgrad-tests-")
    atexit.register(shutil.rmtree, os.environ[_SCRATCH], ignore_errors=True)

import beartype
import jaxtyping

# base.py is left out: JAX rebuilds its pytrees with placeholders for leaves, which no shape annotation fits.
_CHECKED = [
    f"selgrad.{room}"
    for room in (
        "trees",
        "config",
        "registry",
        "sources",
        "measures",
        "modality",
        "weights",
        "direct",
        "sweep",
        "data",
        "models",
        "gradients",
        "significance",
        "masks",
        "protections",
        "attacks",
        "evaluation",
        "encryption",
        "federation",
        "experiment",
        "report",
    )
]
# An int is a float to a type checker (PEP 484) and to whoever writes YAML; beartype has to be told so, and the hook takes it by a module's name.
_typechecker = types.ModuleType("selgrad_typechecker")
_typechecker.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
sys.modules[_typechecker.__name__] = _typechecker
jaxtyping.install_import_hook(_CHECKED, "selgrad_typechecker.check")

import jax
import pandas as pd
import pytest

# No program is compiled twice by one worker. JAX writes entries in place: a process that reads one while another writes it, or after one was killed, gets half
# of it, so the folder is this process's own and no other inherits it. Where its size is bounded JAX takes a lock, and looks at every entry for each that it
# adds, which takes longer than the many small programs of tests. Processes that tests start keep what `selgrad.devices` keeps, in a folder of the tests.
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(dir=os.environ[_SCRATCH]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
os.environ["XDG_CACHE_HOME"] = os.path.join(os.environ[_SCRATCH], "cache")

from selgrad.base import InputSpec, TextSpec
from selgrad.gradients import UPDATES
from selgrad.models import MODELS
from selgrad.models._transformer import Transformer, TransformerConfig
from selgrad.models.bert import _Bert
from selgrad.models.gpt2 import _GPT2


def pytest_collection_modifyitems(items):
    """Marks what the second platform leaves out: a rung other than `ignore` differs by a fill or a start that does not depend on JAX's version, and LAMP's
    program takes minutes to compile."""
    for item in items:
        given = getattr(item, "callspec", None)
        values = {} if given is None else given.params
        if values.get("hidden", "ignore") not in ("ignore", None) or "lamp" in (values.get("name"), values.get("attack")):
            item.add_marker(pytest.mark.once)


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


TEXT_SPEC = TextSpec((7,), 3, 30, pad_id=0, start_id=2, end_id=3, special_ids=(0, 1, 2, 3))


def small_transformer(causal=False, exposure="frozen", layers=2, spec=TEXT_SPEC, **config):
    """Two layers of width 32, over 30 tokens by default: a transformer that compiles in seconds."""
    given = {
        "vocabulary_size": spec.vocabulary_size,
        "max_positions": spec.shape[0] + 1,
        "token_types": 0 if causal else 2,
        "width": 32,
        "num_layers": layers,
        "num_heads": 2,
    }
    whole = TransformerConfig(**{**given, "mlp_width": 64, "activation": "gelu", "epsilon": 1e-5, "initializer_range": 0.2, **config})
    network = (_GPT2 if causal else _Bert)(whole, "classification", spec.num_classes)
    return Transformer(network, spec, whole, "classification", "classifier", causal, exposure)


class TextProblem:
    """A small transformer and one client's sentences, [CLS] four words [SEP] and padding."""

    def __init__(self, batch_size=1, **arguments):
        from selgrad.base import Batch, GradientContext

        self.model = small_transformer(**arguments)
        self.update = UPDATES["gradient"](batch_size=batch_size)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        words = jax.random.randint(jax.random.key(1), (batch_size, 4), 4, 30)
        ends = jax.numpy.broadcast_to(jax.numpy.asarray([[2, 3, 0]]), (batch_size, 3))
        tokens = jax.numpy.concatenate([ends[:, :1], words, ends[:, 1:]], axis=1).astype("int32")
        self.batch = Batch(tokens, jax.numpy.arange(batch_size, dtype="int32") % 3, tokens != 0)
        one_hot = jax.nn.one_hot(self.batch.labels, 3)
        self.grads = jax.jit(lambda p, b, y: self.update.client(self.model, p, b, y))(self.params, self.batch, one_hot)
        self.context = GradientContext(model=self.model, params=self.params, batch=self.batch, update=self.update, grads=self.grads, key=jax.random.key(2))


@pytest.fixture(scope="session")
def transformer():
    """`small_transformer`."""
    return small_transformer


@pytest.fixture(scope="session")
def text_problem():
    """A factory of `TextProblem`."""
    return TextProblem


SMALL = {"lenet": {}, "vit": {"width": 16, "num_layers": 1, "num_heads": 2}}


class Problem:
    """A model, an update and one client's batch, small enough for a test."""

    def __init__(self, spec, model="mlp", update="gradient", batch_size=1, **arguments):
        self.model = MODELS[model](spec, **SMALL.get(model, {"width": 16}))
        self.update = UPDATES[update](batch_size=batch_size, **arguments)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
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


@pytest.fixture(scope="session")
def double():
    """A function that gives the same client in float64, its update recomputed."""
    from selgrad.base import GradientContext

    def make(context: GradientContext) -> GradientContext:
        cast = lambda leaf: jax.numpy.asarray(leaf, jax.numpy.float64) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) else leaf
        params, batch = jax.tree.map(cast, context.params), jax.tree.map(cast, context.batch)
        labels = jax.nn.one_hot(batch.labels, context.model.input_spec.num_classes, dtype=jax.numpy.float64)
        grads = context.update(context.model, params, batch.inputs, labels)
        return GradientContext(model=context.model, params=params, batch=batch, update=context.update, grads=grads, key=context.key)

    return make


@pytest.fixture(scope="session")
def same():
    """Asserts that two tables of records are equal to the last bit, times and the run's name apart."""
    times = ["score_seconds", "mask_seconds", "encrypt_seconds", "add_seconds", "decrypt_seconds", "attack_seconds", "run_id"]

    def check(a, b):
        pd.testing.assert_frame_equal(a.drop(columns=times), b.drop(columns=times), check_exact=True)

    return check


@pytest.fixture(autouse=True)
def signals():
    """The command line, when it ends, leaves signals to the system; the process that runs tests goes on."""
    before, hook = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, (sys.unraisablehook, sys.excepthook)
    yield
    sys.unraisablehook, sys.excepthook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


def _wandb_records(file):
    """The records of a `.wandb` file: LevelDB's log format (blocks of 32 KiB; each piece has a checksum, a length and a type) after seven bytes of W&B's own."""
    raw, at, part = file.read_bytes(), 7, b""
    assert raw[:4] == b":W&B"
    while at + 7 <= len(raw):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        if kind == 0:
            break
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield part
            part = b""


def _wandb_runs(folder):
    """Every run in a folder of offline runs: id -> config, summary, history, group, job type, files; twice the same id is an error."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        run = {"config": {}, "summary": {}, "history": [], "artifacts": []}
        for raw in _wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            which = record.WhichOneof("record_type")
            if which == "run":
                run |= {"id": record.run.run_id, "name": record.run.display_name, "group": record.run.run_group, "kind": record.run.job_type}
                run["config"] |= {one.key: json.loads(one.value_json) for one in record.run.config.update if one.key != "_wandb"}
            elif which == "config":
                run["config"] |= {one.key: json.loads(one.value_json) for one in record.config.update if one.key != "_wandb"}
            elif which == "history":
                run["history"].append({one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item})
                run["summary"] |= run["history"][-1]
            elif which == "summary":
                run["summary"] |= {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.summary.update}
            elif which == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                run["artifacts"].append(record.request.log_artifact.artifact.type)
            elif which == "artifact":
                run["artifacts"].append(record.artifact.type)
        assert run["id"] not in found, "one run has two folders"
        found[run["id"]] = run
    return found


@pytest.fixture(scope="session")
def written():
    """Reads the offline runs of W&B in a folder back."""
    return _wandb_runs
