"""Placement: the same sweep on one device and on eight, and the setup of XLA before JAX starts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CODE = """
import json, sys
from selgrad import run_sweep
records = run_sweep(json.loads(sys.argv[1]), sys.argv[2], quiet=True)
import jax
print(json.dumps([jax.local_device_count(), records[["cell_id", "ratio", "objective", "mse", "num_selected"]].to_dict("list")]))
"""
CONFIG = {
    "dataset": {"name": "digits", "count": 3}, "model": {"name": "mlp", "width": 12, "activation": "sigmoid"}, "metric": ["random", "magnitude"],
    "ratio": [0, 0.1, 1], "attack": {"name": "idlg", "num_steps": 15, "memory": 20}, "encryption": None,
}  # fmt: skip


def test_one_device_and_eight_give_the_same_records(tmp_path):
    found = {}
    for count in (1, 8):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"}
        done = subprocess.run([sys.executable, "-c", CODE, json.dumps(CONFIG), str(tmp_path / str(count))], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        devices, found[count] = json.loads(done.stdout.splitlines()[-1])
        assert devices == count
    assert found[1]["cell_id"] == found[8]["cell_id"] and found[1]["num_selected"] == found[8]["num_selected"]
    # Lanes per device differ, so matrix products round differently; attacks that converged end at the same image.
    # At ratio 1 nothing runs and the objective is 0.
    converged = (np.asarray(found[1]["objective"]) < 1e-9) & (np.asarray(found[1]["ratio"]) < 1)
    assert converged[np.asarray(found[1]["ratio"]) == 0].all()
    np.testing.assert_allclose(np.asarray(found[8]["mse"])[converged], np.asarray(found[1]["mse"])[converged], atol=1e-4)


@pytest.mark.parametrize("given", ["", "--xla_force_host_platform_device_count=3"])
def test_flags_of_the_user_win(monkeypatch, given):
    from selgrad import devices

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
