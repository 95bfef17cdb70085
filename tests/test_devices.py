"""Placement: the same sweep on one device and on eight, and the setup of XLA before JAX starts."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import devices
from selgrad.errors import UsageError

CODE = """
import json, sys
from selgrad import devices
from selgrad.config import parse
from selgrad import read_records
from selgrad.sweep import Sweep
config = json.loads(sys.argv[1])
sweep = Sweep(parse(config), sys.argv[2])
plan = sweep.plan()
for block in plan.blocks if sys.argv[3] == "run" else ():
    sweep.run_block(block, None)
import jax
columns = ["cell_id", "ratio", "objective", "num_selected"]
records = read_records(sys.argv[2])[columns].to_dict("list") if sys.argv[3] == "run" else {}
print(json.dumps([jax.local_device_count(), plan.memory_bytes, records]))
"""
CONFIG = {
    "dataset": {"name": "digits", "count": 8}, "model": {"name": "mlp", "width": 12, "activation": "sigmoid"}, "metric": ["random", "magnitude"],
    "ratio": [0, 0.1, 0.5, 1], "attack": {"name": "idlg", "num_steps": 15, "memory": 20}, "encryption": None,
}  # fmt: skip
LENET = {**CONFIG, "model": {"name": "lenet", "activation": "sigmoid"}, "attack": {"name": "inverting_gradients", "num_steps": 20}}
TEXT = {
    "dataset": {"name": "sentences", "count": 8}, "model": {"name": "bert", "size": "tiny"}, "metric": "magnitude", "ratio": 0.1, "known_labels": True,
    "attack": {"name": "tag", "num_steps": 2}, "encryption": None, "block_size": 8,
}  # fmt: skip


def run(config, folder, count, what="run"):
    """Bytes planned for and records, with so many devices; none where it is only planned."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"}
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(config), str(folder), what], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    devices, memory, records = json.loads(done.stdout.splitlines()[-1])
    assert devices == count
    return memory, records


@pytest.mark.parametrize(("config", "counts"), [(CONFIG, (1, 2, 8)), (LENET, (1, 8))], ids=["mlp", "lenet"])
def test_one_device_two_and_eight_give_the_same_records_to_the_last_bit(config, counts, tmp_path):
    # 64 lanes: every device works on eight at a time, however many devices there are, so its program is the same.
    found = [run(config, tmp_path / str(count), count)[1] for count in counts]
    assert all(records == found[0] for records in found)
    objective, ratio = np.asarray(found[0]["objective"]), np.asarray(found[0]["ratio"])
    assert (objective[ratio < 1] > 0).all()


def test_a_model_over_several_devices_gives_the_records_of_one(tmp_path):
    _, alone = run(TEXT, tmp_path / "1", 1)
    apart, _ = run(TEXT, tmp_path / "apart", 8, "plan")
    assert (np.asarray(alone["objective"]) > 0).all()
    memory, shared = run({**TEXT, "model_devices": 4}, tmp_path / "4", 8)
    assert shared["cell_id"] == alone["cell_id"] and shared["num_selected"] == alone["num_selected"]
    np.testing.assert_allclose(shared["objective"], alone["objective"], rtol=1e-5)
    # Eight devices with a lane each hold the weights eight times, and here two groups of four do.
    # A distance relative to what is visible holds one more array of the gradient's size (2.9 of 14.6 MB on each device here) than one in absolute units.
    assert memory < apart / 1.2


def test_more_devices_for_a_model_than_there_are_say_so():
    with pytest.raises(UsageError, match="model_devices=1000 and this process has"):
        devices.mesh(4, 1000)


def test_matrices_are_cut_by_columns_where_these_divide_evenly():
    mesh = jax.sharding.AbstractMesh((2, 4), ("lanes", "model"))
    place = lambda shape, *leading: tuple(devices.over_model(mesh, shape, *leading).spec)
    assert place((7, 6, 16, 12), None, "lanes") == (None, "lanes", None, "model") and place((16, 12)) == (None, "model")
    assert place((16, 5)) == (None, None) and place((8,)) == (None,) and place((7, 8), None) == (None, None)


@pytest.mark.parametrize("given", ["", "--xla_force_host_platform_device_count=3"])
def test_flags_of_the_user_win(monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    devices.configure()
    if given:
        assert os.environ["XLA_FLAGS"] == given
    else:
        assert f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}" in os.environ["XLA_FLAGS"]


PROGRAM = """
import json, sys
from selgrad import devices
devices.configure()
import jax, jax.numpy as jnp
from jax import monitoring
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((7, 5))))
print(json.dumps([jax.config.jax_compilation_cache_dir, sum("cache_hits" in e for e in events), jax.config.jax_compilation_cache_max_size]))
"""


def run_program(tmp_path, **env):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=kept | {"XDG_CACHE_HOME": str(tmp_path), **env})
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.once
def test_what_one_process_has_compiled_the_next_one_reads(tmp_path):
    folder, hits, size = run_program(tmp_path)
    assert folder.startswith(str(tmp_path)) and hits == 0 and 0 < size < 2**33
    assert run_program(tmp_path)[1] > 0
    assert run_program(tmp_path, SELGRAD_COMPILATION_CACHE="off")[0] is None
    assert run_program(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))[0] == str(tmp_path / "mine")


@pytest.mark.once
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "selgrad").write_text("a file where the folder should be")
    assert run_program(tmp_path)[0] is None


def test_settings_of_jax_that_change_results_are_named():
    assert devices.numerical_settings() == ""
    with jax.default_matmul_precision("bfloat16"), devices.double_precision():
        assert devices.numerical_settings() == "jax_enable_x64=True, jax_default_matmul_precision=bfloat16"


@pytest.mark.once
def test_records_name_settings_that_change_results(tmp_path):
    given = {
        "dataset": {"name": "digits", "count": 1},
        "model": {"name": "mlp", "width": 8},
        "attack": "rank_one",
        "metric": "magnitude",
        "ratio": 0.1,
        "encryption": "none",
    }
    for name, value, expected in [("JAX_DEFAULT_PRNG_IMPL", "rbg", "jax_default_prng_impl=rbg"), ("JAX_ENABLE_X64", "1", "jax_enable_x64=True")]:
        program = f"import selgrad; print(selgrad.run_sweep({given!r}, {str(tmp_path / name)!r}).jax_settings[0])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | {name: value})
        assert done.stdout.splitlines()[-1] == expected and f"JAX is set to {expected}" in done.stderr, done.stderr[-2000:]


def test_double_precision_is_of_the_thread_that_asks_for_it():
    """Records are made beside the next block, and certificates of them in float64: what the block traces meanwhile must stay float32."""
    with devices.double_precision(), ThreadPoolExecutor(1) as other:
        mine, theirs = jnp.ones(3) * 1.0, other.submit(lambda: jax.jit(lambda x: x * 2)(np.ones(3))).result()
    assert (mine.dtype, theirs.dtype, jnp.ones(3).dtype) == (jnp.float64, jnp.float32, jnp.float32)


def test_what_jax_keeps_of_shapes_is_forgotten_and_programs_that_we_hold_are_not():
    double = jax.jit(lambda x: 2 * x)
    held = double.lower(jnp.ones(7)).compile()
    double(jnp.ones(7))
    assert double._cache_size() == 1
    devices.clear_shapes()
    assert double._cache_size() == 0
    np.testing.assert_array_equal(held(jnp.ones(7)), 2 * np.ones(7))
