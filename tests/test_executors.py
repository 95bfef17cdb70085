"""Who runs the blocks: a Ray cluster, submitit's jobs, folders elsewhere. With workers, a node and the driver killed, the records are those of one process."""

import contextlib
import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml

from selgrad import run_sweep
from selgrad.config import parse
from selgrad.errors import SelgradError, UsageError
from selgrad.report.tables import read_records
from selgrad.sweep import Sweep, work
from selgrad.sweep.executors.protocol import Queue
from selgrad.sweep.executors.ray_actors import RayActors, Worker
from selgrad.sweep.remote import Mirror
from selgrad.sweep.work import Ended

pytestmark = pytest.mark.xdist_group("ray")

CONFIG = {
    "name": "spread",
    "dataset": {"name": "digits", "count": 3},
    "model": {"name": "mlp", "width": 12, "activation": "sigmoid"},
    "metric": ["random", "magnitude"],
    "ratio": [0, 0.2, 1],
    "attack": [{"name": "idlg", "num_steps": 8, "memory": 10}, {"name": "inverting_gradients", "num_steps": 20}],
    "encryption": "none",
    "seeds": [0, 1],
    "block_size": 3,
    "gallery": 1,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What one process makes of it."""
    return run_sweep(CONFIG, tmp_path_factory.mktemp("plain") / "out", quiet=True)


@contextlib.contextmanager
def driver(out, engine, tmp_path):
    """The command line in a process of its own, which does not outlive the block."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    command = [sys.executable, "-m", "selgrad", "sweep", str(config), "--out", str(out), "--engine", engine]
    with open(tmp_path / "driver.log", "a") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def until(out, count, process):
    """Waits for so many record files."""
    log = out.parent / "driver.log"
    for _ in range(6000):
        if len(list(out.glob("records/*.parquet"))) >= count:
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    pytest.fail(f"{count} record files never came: {log.read_text()}")


def planned(tmp_path, **changes):
    sweep = Sweep(parse({**CONFIG, **changes}), tmp_path)
    return sweep, sweep.plan()


# Blocks and their queue


def test_a_block_runs_by_its_folder_and_its_name_alone(plain, tmp_path, same):
    sweep, plan = planned(tmp_path)
    sweep.keep_inputs()
    decided = (tmp_path / "plan.json").stat().st_mtime_ns
    for block in reversed(plan.blocks):
        assert work.run_block(str(tmp_path), block.identity) == Ended("done")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("records/*")}
    assert work.run_block(str(tmp_path), plan.blocks[0].identity) == Ended("done")
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("records/*")}, "twice is once"
    same(read_records(tmp_path), plain)
    assert decided == (tmp_path / "plan.json").stat().st_mtime_ns, "whoever began the sweep decides, and may be deciding now"
    assert work.run_block(str(tmp_path), "0" * 16) == Ended("failed", f"{str(tmp_path)!r} has no block '{'0' * 16}'")


def test_the_order_in_which_a_file_names_arguments_changes_no_block(tmp_path):
    _, plan = planned(tmp_path / "a")
    turned = [dict(reversed(attack.items())) for attack in CONFIG["attack"]]
    _, other = planned(tmp_path / "b", attack=turned)
    assert [block.identity for block in plan.blocks] == [block.identity for block in other.blocks]


def test_a_worker_gets_blocks_of_the_program_that_it_has_compiled(tmp_path):
    sweep, plan = planned(tmp_path)
    queue = Queue(sweep, plan.blocks, 1, lambda *_: None, lambda *_: None)
    idlg, gradients = (sweep.program(next(block for block in plan.blocks if block.attack.name == name)) for name in ("idlg", "inverting_gradients"))
    assert queue.take().attack.name == plan.blocks[0].attack.name
    assert queue.take(gradients, [idlg]).attack.name == "inverting_gradients"
    assert queue.take(None, [gradients]).attack.name == "idlg" and queue.take(None, [idlg]).attack.name == "inverting_gradients"
    while (block := queue.take(idlg)) and block.attack.name == "idlg":
        pass
    # When its own are done it takes another's.
    assert block.attack.name == "inverting_gradients"
    rest = len(queue)
    assert len(queue.all()) == rest and queue.take() is None


def test_a_block_that_is_lost_waits_again_but_not_for_ever(tmp_path):
    sweep, plan = planned(tmp_path)
    queue = Queue(sweep, plan.blocks, 2, lambda *_: None, lambda *_: None)
    for _ in range(2):
        first = queue.take()
        queue.lost(first, "its node died")
        assert queue.take() == first
        queue._waiting.insert(0, first)
    with pytest.raises(SelgradError, match=r"was lost 3 times, at last because its node died"):
        queue.lost(queue.take(), "its node died")
    with pytest.raises(SelgradError, match="disk"):
        queue.ended(plan.blocks[0], Ended("failed", "the disk is full"))


def test_a_block_that_is_too_large_comes_back_in_two_that_any_worker_finds(tmp_path):
    sweep, plan = planned(tmp_path)
    said = []
    queue = Queue(sweep, plan.blocks, 2, lambda *_: None, lambda _, line: said.append(line))
    first = queue.take()
    queue.ended(first, Ended("too large"))
    assert "out of memory at 3 lanes" in said[0]
    cells = [lane for block in queue.all() for row in block.lanes for lane in row]
    assert len(cells) == plan.num_cells and {lane for block in plan.blocks for row in block.lanes for lane in row} == set(cells)
    worker = Sweep.of_folder(str(tmp_path))
    for block in sweep.blocks():
        assert worker.block(block.identity) == block


def test_objects_of_a_session_stay_in_their_session(tmp_path):
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    sweep = Sweep(parse({**CONFIG, "dataset": (images, np.arange(4) % 2)}), tmp_path)
    with pytest.raises(UsageError, match="objects of this session"):
        sweep.publish_config()


@pytest.mark.parametrize(
    ("code", "match"), [(errno.EAGAIN, "another process"), (errno.ENOLCK, r"cannot lock files \(ENOLCK: No locks available\)"), (errno.ENOSYS, "ENOSYS")]
)
def test_a_file_system_without_locks_is_not_a_folder_in_use(tmp_path, monkeypatch, code, match):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    sweep = Sweep(parse(CONFIG), tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SelgradError, match=match), sweep.lock():
        pass
    monkeypatch.setenv("SELGRAD_LOCK", "off")
    if code != errno.EAGAIN:
        with sweep.lock():
            pass


# Folders elsewhere


def test_a_folder_elsewhere_holds_what_one_here_would(plain, tmp_path, monkeypatch, same):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "elsewhere"
    same(run_sweep(CONFIG, f"file://{place}", quiet=True), plain)
    assert {"config.yaml", "plan.json", "records", "report.html", "equivalence.parquet"} <= {path.name for path in place.iterdir()}
    same(read_records(place), plain)
    # From another machine, which has no copy, with one block missing.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    next(place.glob("records/*.parquet")).unlink()
    ran = []
    monkeypatch.setattr(Sweep, "attack_block", lambda self, *arguments, run=Sweep.attack_block: ran.append(1) or run(self, *arguments))
    same(run_sweep(CONFIG, f"file://{place}", quiet=True), plain)
    assert len(ran) == 1


def test_a_mirror_sends_what_changed_and_removes_what_went(tmp_path):
    there = tmp_path / "there"
    first, second = (Mirror(f"file://{there}", tmp_path / name) for name in ("first", "second"))
    (first.local / "checkpoints" / "b").mkdir(parents=True)
    (first.local / "checkpoints" / "b" / "1").write_text("one")
    (first.local / ".lock").write_text("")
    first.publish()
    assert sorted(path.name for path in there.rglob("*") if path.is_file()) == ["1"]
    second.fetch("checkpoints/b")
    assert (second.local / "checkpoints" / "b" / "1").read_text() == "one"
    (first.local / "checkpoints" / "b" / "1").unlink()
    first.publish()
    assert not [path for path in there.rglob("*") if path.is_file()]
    second.fetch("nothing/like/it")
    with pytest.raises(UsageError, match="fsspec"):
        Mirror("nowhere://bucket/run", tmp_path / "third")


# Clusters


@pytest.mark.once
def test_jobs_of_submitit_that_are_killed_go_on(plain, tmp_path, same):
    pytest.importorskip("submitit")
    out = tmp_path / "out"
    with driver(out, "submitit:cluster=local,workers=2", tmp_path) as process:
        until(out, 1, process)
        jobs = [child for child in psutil.Process(process.pid).children(recursive=True) if "submitit" in " ".join(child.cmdline())]
        os.kill(jobs[-1].pid, signal.SIGKILL)
        assert process.wait(timeout=600) == 0, (tmp_path / "driver.log").read_text()
    same(read_records(out), plain)


NODES = Path(__file__).parents[1] / "benchmarks" / "ray_nodes.py"


@contextlib.contextmanager
def ray_cluster():
    """Nodes in a process of their own: a function that passes a line to it and returns the address."""
    with subprocess.Popen([sys.executable, NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:

        def do(what):
            process.stdin.write(what + "\n")
            process.stdin.flush()
            return next(line for line in process.stdout if line.startswith("cluster")).split()[1]

        yield do
        process.stdin.close()


class FakeRay:
    """A cluster in this process, as the executor sees it: what is asked for happens when it is waited for, and the driver's node dies as a script says."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, lifetimes):
        self.lifetimes, self.waits, self.connections, self.node = iter(lifetimes), 0, 0, None

    def is_initialized(self):
        return False

    def init(self, **_):
        self.connections += 1
        self.node, self.waits = f"node{self.connections:04d}", next(self.lifetimes)

    def shutdown(self):
        self.node = None

    def nodes(self):
        return [{"NodeID": self.node, "Alive": self.waits > 0, "Resources": {"CPU": 1}}]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: self.node)

    def remote(self, kind):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *arguments: Handle(kind(*arguments))))

    def wait(self, refs, timeout):
        self.waits -= 1
        return (refs[:1], refs[1:]) if self.waits > 0 else ([], refs)

    def get(self, ref):
        return ref()

    def kill(self, _):
        pass


class Handle:
    """Of an actor: each method's `remote` gives what is called when its result is asked for."""

    def __init__(self, actor):
        for name in ("ready", "attempt", "run_block"):
            setattr(self, name, SimpleNamespace(remote=functools.partial(functools.partial, getattr(actor, name))))


@pytest.fixture
def fake_ray(monkeypatch):
    def build(lifetimes, address="10.0.0.1:6379", retries=3):
        fake = FakeRay(lifetimes)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setattr(sys.modules[RayActors.__module__], "_require_answer", lambda _: None)
        monkeypatch.chdir(os.getcwd())
        monkeypatch.setenv("SELGRAD_MEMORY_SHARE", "1")
        return fake, RayActors(address, 2, 1.0, 0.0, retries)

    return build


def test_a_driver_whose_own_node_dies_goes_on_through_another(plain, tmp_path, fake_ray, monkeypatch, same):
    # The first node dies while the sweep is planned, the next two while blocks run.
    fake, executor = fake_ray([1, 6, 9, 10**6])
    started = []
    monkeypatch.setattr(Worker, "__init__", lambda self, place, start=Worker.__init__: started.append(1) or start(self, place))
    sweep = Sweep(parse(CONFIG), tmp_path)
    said = []
    plan = executor.plan(sweep, said.append)
    executor.run(sweep, plan, None, lambda *_: None, lambda _, line: said.append(line))
    assert fake.connections == 4 and sum("going on through node" in line for line in said) == 2
    # The planner runs blocks too, and one of those that ran blocks compares masks: one more for the plan that was lost, and two for each connection.
    assert len(started) == 1 + 2 * 3
    same(read_records(tmp_path), plain)


@pytest.mark.parametrize(("lifetimes", "address"), [([1] * 5, "10.0.0.1:6379"), ([1], None)])
def test_a_driver_without_a_node_says_so_and_ends(tmp_path, fake_ray, lifetimes, address):
    """After as many losses as a block may have; at once where the cluster was its own."""
    fake, executor = fake_ray(lifetimes, address)
    with pytest.raises(SelgradError, match=r"node node000\d, through which this process was in the Ray cluster, ended; the same command goes on"):
        executor.plan(Sweep(parse(CONFIG), tmp_path), lambda _: None)
    assert fake.connections == (4 if address else 1)


@pytest.mark.once
@pytest.mark.timeout(1200)
def test_a_ray_cluster_that_loses_a_worker_a_node_that_of_the_driver_and_the_driver(plain, tmp_path, same):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    with ray_cluster() as cluster:
        cluster("add")
        cluster("add")
        engine = f"ray:address={cluster('attach')},workers=2"
        with driver(out, engine, tmp_path) as process:
            until(out, 1, process)
            os.kill(next(one.pid for one in psutil.process_iter() if one.name().startswith("ray::Worker")), signal.SIGKILL)
            until(out, 3, process)
            cluster("remove")
            until(out, 5, process)
            cluster("add")
            cluster("detach")
            until(out, 7, process)
        assert not (out / "equivalence.parquet").exists(), "the driver ended before the sweep did"
        cluster("add")
        with driver(out, engine, tmp_path) as again:
            assert again.wait(timeout=600) == 0, (tmp_path / "driver.log").read_text()
    same(read_records(out), plain)
