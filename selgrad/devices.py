"""Devices: setting XLA up before JAX starts, a mesh over attacks and over the parts of a model, and the memory that a block may take.

On a CPU, one XLA device per core with attacks sharded over them runs faster than one device with a thread pool (benchmarks/attack_throughput.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from selgrad.errors import SelgradError, UsageError

CACHE_BYTES = 2 * 2**30
"""The size limit of the cache of compiled programs; the least recently used are evicted first."""


def configure() -> None:
    """Sets XLA's flags for CPUs and enables the compilation cache, unless the user has set either; call it before anything touches a JAX device.

    The flags name the host platform only, so they do nothing on GPU and TPU.

    Raises:
      SelgradError: if JAX finds no device of the platform that JAX_PLATFORMS names.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags += f" --xla_force_host_platform_device_count={num_cores()} --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = flags.strip()
    _keep_compilations()
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        import jax

        try:
            jax.devices()
        except Exception as error:  # JAX raises errors of many types here, including AssertionError
            reason = f" ({' '.join(str(error).split())[:150]})" if str(error) else ""
            raise SelgradError(
                f"JAX_PLATFORMS={platforms} names a platform of which JAX finds no device here{reason}; unset it, or install JAX for that accelerator"
            ) from None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Limits NumPy's and SciPy's BLAS to one thread, for code that runs alongside other threads or XLA; the first to enter decides until it leaves.

    The threads of a BLAS wait by spinning, which takes the cores away from XLA and from each other.
    """
    limits: contextlib.AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="blas")
    return limits


def cache_folder() -> Path:
    """The folder of compiled programs: under `selgrad` in the user's cache folder, one for each processor type, since others cannot run its programs."""
    try:
        cpu_lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags", "Features"))]
    except OSError:
        cpu_lines = [platform.processor()]
    kind = hashlib.sha256("\n".join(dict.fromkeys(cpu_lines)).encode()).hexdigest()[:8]
    return user_cache() / "compiled" / f"{platform.machine()}-{kind}"


def user_cache() -> Path:
    """The folder `selgrad` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selgrad"


def _keep_compilations() -> None:
    """Enables JAX's own cache of compiled programs, with a size limit, which also makes JAX lock it for reads and writes.

    `JAX_COMPILATION_CACHE_DIR` names another folder, such as one shared by identical machines; `SELGRAD_COMPILATION_CACHE=off` disables the cache.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or os.environ.get("SELGRAD_COMPILATION_CACHE") == "off":  # type: ignore[attr-defined]
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        # There is no home folder, or it is not writable: everything is compiled again, as without a cache.
        return
    if not os.access(folder, os.W_OK):
        return
    options: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": CACHE_BYTES,
        # Adding an entry scans all others, so programs that compile faster than this are not kept.
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        # Child processes use the same cache.
        os.environ[name.upper()] = str(value)


_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")


def described() -> str:
    """The devices that this process computes on, such as `1 x NVIDIA H200` or `2 x cpu`."""
    import jax

    kinds = [device.device_kind for device in jax.local_devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def unused_accelerator() -> str:
    """A hint for a process that computes on a CPU although the machine has, or was prepared for, something faster; otherwise empty."""
    import jax

    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return ""
    for name in _PLUGINS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return f"{name} {version} is installed, and JAX finds no device for it; see docs/accelerators.md (JAX_PLATFORMS=cpu keeps this quiet)"
    if Path("/proc/driver/nvidia/version").exists():
        return "this machine has an NVIDIA GPU and JAX no plugin for it: `uv sync --extra cuda12` (on Python 3.10 the extra cuda13 installs nothing)"
    return ""


_NUMERICAL = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_default_matmul_precision": None,
    "jax_threefry_partitionable": True,
}
"""JAX's settings that change results, and the values that selgrad's own results were computed with."""


def numerical_settings() -> str:
    """Returns the settings of JAX that change results and differ from their defaults, such as `jax_enable_x64=True`; an empty text if there are none."""
    import jax

    values = {name: getattr(jax.config, name, default) for name, default in _NUMERICAL.items()}
    return ", ".join(f"{name}={value}" for name, value in values.items() if value != _NUMERICAL[name])


def mesh(num_lanes: int, model_devices: int = 1) -> Any:
    """A mesh with the axes `lanes`, over at most as many groups of devices as there are lanes, and `model`, over the devices of a group.

    Args:
      num_lanes: attacks that run in parallel.
      model_devices: devices that share the weights and gradients of one model.

    Raises:
      UsageError: if there are fewer devices.
    """
    import jax
    import numpy as np

    devices = jax.local_devices()
    groups = len(devices) // model_devices
    if not groups:
        raise UsageError(f"model_devices={model_devices} and this process has {len(devices)}; give no more than there are")
    groups = max(1, min(groups, num_lanes))
    return jax.sharding.Mesh(np.asarray(devices[: groups * model_devices]).reshape(groups, model_devices), ("lanes", "model"))


def shard(function: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Applies `shard_map` over lanes without replication checks: each group of devices runs its own lanes, and none waits for another's loop.

    Within a group, XLA divides the work as the arrays are divided (`over_model`).
    """
    import jax

    axes = {"lanes"} if mesh.shape["model"] > 1 else set(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def over_model(mesh: Any, shape: tuple[int, ...], *leading: str | None) -> Any:
    """The sharding of a model-sized array: matrices are divided by columns over the devices of a group, and vectors are replicated on each of them.

    Sums over leaves fold rows (`trees.total`), so columns stay where they are.

    Args:
      mesh: as `mesh` returns it.
      shape: of the array.
      leading: mesh axes of the first array axes, which are not divided further.
    """
    import jax

    places: list[str | None] = [*leading, *[None] * (len(shape) - len(leading))]
    parts = mesh.shape["model"]
    if parts > 1 and len(shape) - len(leading) > 1 and shape[-1] % parts == 0:
        places[-1] = "model"
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*places))


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """Enables float64 for what this thread traces inside the context; other threads are not affected."""
    import jax
    import jax.experimental

    # The function has different names in newer and older versions of JAX; the newer object cannot be converted to a bool.
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    within: contextlib.AbstractContextManager[Any] = enable(True)
    return within


def memory_budget() -> int:
    """Bytes that one compiled block may take on all devices together: 60 % of what is free now.

    `SELGRAD_MEMORY_SHARE` is the fraction of it for this process where several run on one machine.
    """
    import jax

    share = 0.6 * float(os.environ.get("SELGRAD_MEMORY_SHARE", "1"))

    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(share * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))) * len(jax.local_devices())
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        free = 7 * 2**30
    try:
        # The container's own limit; the file holds "max" if there is none.
        group = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
        free = min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):
        pass
    return int(share * max(0, free))


def clear_shapes() -> None:
    """Drops what JAX caches for every function and shape, some hundred memory maps for each setting of a sweep; programs that we hold stay.

    Memory is returned to the system where the C library can do that: many threads compile, and each leaves holes in its own arena.
    """
    import jax

    jax.clear_caches()
    with contextlib.suppress(OSError, AttributeError):
        # Only glibc has this function.
        ctypes.CDLL(None).malloc_trim(0)


def default_block_size() -> int:
    """Attacks per block if memory allows; beyond this, throughput no longer grows.

    On a CPU it is eight per device: rates are flat from four to eight and fall from sixteen on, where states and gradients no longer fit in the cache
    (benchmarks/attack_throughput.py, benchmarks/text_throughput.py).
    """
    import jax

    devices = jax.local_devices()
    return 8 * len(devices) if devices[0].platform == "cpu" else 1024
