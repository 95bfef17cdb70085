"""Our messages carried by Flower: in its simulation engine, in a deployment of real processes, and in somebody else's app."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from selgrad import encryption
from selgrad.federation.config import parse

pytestmark = [
    pytest.mark.slow,
    # One after the other, also with the tests of executors: each starts a Ray of its own, and two at once may end each other.
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed (extra federation)"),
    pytest.mark.skipif(bool(encryption.unavailable()), reason=str(encryption.unavailable())),
]
RUN = {
    "dataset": {"name": "digits", "count": 200}, "test": {"name": "digits", "count": 100, "offset": 200}, "model": {"name": "mlp", "width": 8},
    "local": {"num_steps": 5, "batch_size": 16}, "ratio": 0.2,
}  # fmt: skip


def program(*command, **options):
    return subprocess.run([*command], capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, **options)


def test_simulation_goes_on_without_clients_that_fail(tmp_path, written):
    """One client dies in the first round, one sends too little in the second, one is late in the third and, so that somebody waits for it, in the fourth."""
    faults = [
        {"client": 1, "round": 1, "kind": "die"},
        {"client": 0, "round": 2, "kind": "malformed"},
        *({"client": 2, "round": r, "kind": "late"} for r in (3, 4)),
    ]
    config = {**RUN, "clients": {"count": 3}, "rounds": 4, "agreement": "fixed", "timeout": 25.0, "faults": faults}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "selgrad.cli", "federate", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), "--wandb", "offline"]
    done = program(*command)
    assert done.returncode == 0, done.stderr
    records, events = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("rounds", "events"))
    assert records["num_clients"].tolist() == [2, 2, 2, 2] and records["verified"].all() and "raylet" not in done.stdout + done.stderr
    told = set(events[["round", "client", "status"]].itertuples(index=False, name=None))
    assert {(1, 1, "died"), (2, 0, "malformed"), (3, 2, "missing")} <= told and "late" in set(events["status"])
    assert (tmp_path / "out" / "figures" / "federation.png").exists() and "equals FedAvg" in done.stdout
    again = program(*command)
    assert again.returncode == 0 and pd.read_parquet(tmp_path / "out" / "rounds.parquet").equals(records)
    # In W&B a run has one flat configuration and a row a round, however often it was begun.
    (run,) = written(tmp_path / "out").values()
    assert [row["round"] for row in run["history"]] == [1, 2, 3, 4] and run["summary"]["accuracy"] == pytest.approx(records["accuracy"].iloc[-1])
    assert {"metric": "magnitude", "ratio": 0.2, "agreement": "fixed", "protection": "selective", "model.width": 8, "clients.count": 3}.items() <= run[
        "config"
    ].items()
    from selgrad.federation.journal import ROUND_COLUMNS

    assert list(records.columns) == list(ROUND_COLUMNS), "docs/records.md says what each column is"
    assert (records[["metric", "ratio", "agreement", "protection"]] == ["magnitude", 0.2, "fixed", "selective"]).all().all()


def test_another_app_gets_selective_encryption_in_a_few_lines(tmp_path):
    done = program(sys.executable, str(Path(__file__).parent / "own_app.py"), str(tmp_path / "keys"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # 3 clients of 60 examples in all at a scale of 100, half a grid step each, and two rounds; float32 weights of 1.
    bound = 2 * (3 * 2.0**-25 / 0.6 + 4 * 2.0**-24)
    for plain, sealed in zip(found["plain"], found["sealed"], strict=True):
        assert 0 < np.abs(np.asarray(plain) - np.asarray(sealed)).max() <= bound
    assert found["forged"] == [], "what nobody could authenticate was averaged"
    # A mask that follows what moves changes what is encrypted, and nothing of the mean.
    for plain, sealed in zip(found["plain"], found["by_vote"], strict=True):
        np.testing.assert_allclose(plain, sealed, atol=bound)
    # Clients of 10, 20 and 30 examples of 70 at most move by 3: weighted 3/7, 6/7 and 9/7, of which the last lies beyond the bound of 1
    # and is refused: the mean is that of the first two, who are enough to be summed.
    moved, counted = (np.asarray(array) for array in found["refused"])
    np.testing.assert_allclose(moved, 6.0, atol=1e-4)
    assert counted.tolist() == [6, 6] and len(found["reasons"]) == 2
    assert {reason.partition(" in this round")[0] for reason in found["reasons"]} == {"entries to encrypt move by more than the public bound 1"}
    # Clipped the last is 1, so that two rounds move by 2 * (3/7 + 6/7 + 1) / (6/7) and not by 6; a counter is never encrypted nor clipped.
    moved, counted = (np.asarray(array) for array in found["clipped"])
    np.testing.assert_allclose(moved, 16 / 3, atol=1e-4)
    assert counted.tolist() == [6, 6] and done.stderr.count("4 entries beyond the public bound 1 were clipped") == 2


def certificate(folder):
    """A key and a certificate of this machine's loopback that vouches for itself: the paths of both."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")]), datetime.datetime.now(datetime.timezone.utc)
    alternatives = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1)).add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / "server.key", folder / "server.pem"
    plain = serialization.NoEncryption()
    paths[0].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    paths[1].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return tuple(map(str, paths))


class Deployment:
    """A SuperLink and SuperNodes, each a process of its own, over TLS on this machine's loopback."""

    def __init__(self, folder, enrolled, *, node=("flower-supernode",)):
        sockets = [socket.socket() for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        fleet, control, self.free = (one.getsockname()[1] for one in sockets)
        for one in sockets:
            one.close()
        home, (self.key, self.root) = folder / "home", certificate(folder)
        (home / ".flwr").mkdir(parents=True)
        (home / ".flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n\n[superlink.loop]\naddress = "127.0.0.1:{control}"\nroot-certificates = "{self.root}"\n'
        )
        self.tools, self.folder, self.log = Path(sys.executable).parent, folder, (folder / "log").open("wb")
        self.environment = {
            "PATH": f"{self.tools}:/usr/bin:/bin", "HOME": str(home), "FLWR_HOME": str(home / ".flwr"), "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "LANG": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        self.processes = []
        common = ["--isolation", "subprocess"]
        self.start(
            "flower-superlink", *common, "--ssl-certfile", self.root, "--ssl-keyfile", self.key, "--ssl-ca-certfile", self.root, "--serverappio-api-address",
            "127.0.0.1:0", "--fleet-api-address", f"127.0.0.1:{fleet}", "--control-api-address", f"127.0.0.1:{control}",
        )  # fmt: skip
        for number, seat in enumerate(enrolled):
            self.start(
                *node, *common, "--root-certificates", self.root, "--superlink", f"127.0.0.1:{fleet}", "--clientappio-api-address", "127.0.0.1:0",
                "--node-config", f'partition-id={number} num-partitions={len(enrolled)} enrolment="{seat}"',
            )  # fmt: skip

    def start(self, tool, *arguments):
        command = [str(self.tools / tool), *arguments]
        self.processes.append(subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=self.log, stderr=self.log, start_new_session=True))

    def __enter__(self):
        return self

    def flwr(self, *command):
        return json.loads(program(str(self.tools / "flwr"), *command, "--format", "json", env=self.environment, cwd=self.folder).stdout or "{}")

    def submit(self, app, *options):
        """Submits an app and returns the number of its run."""
        submitted, end = {}, time.monotonic() + 60
        while not submitted.get("success") and time.monotonic() < end:
            submitted = self.flwr("run", str(app), "loop", *options)
        assert submitted.get("success"), (submitted, self.said())
        return submitted["run-id"]

    def run(self, app, *options):
        """Submits an app and waits until it has ended; returns what its server said."""
        number = self.submit(app, *options)
        status, end = "", time.monotonic() + 400
        while not status.startswith("finished") and time.monotonic() < end:
            time.sleep(1)
            status = self.flwr("list", "loop", "--run-id", number)["runs"][0]["status"]
        assert status == "finished:completed", self.said()[-3000:]
        return program(str(self.tools / "flwr"), "log", number, "loop", "--show", env=self.environment, cwd=self.folder).stdout

    def said(self):
        return (self.folder / "log").read_text()

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.log.close()


def test_deployment_of_real_processes(tmp_path):
    """Two clients and a key holder, each a process of its own."""
    config = parse({**RUN, "clients": {"count": 2}, "rounds": 1, "agreement": "fixed", "timeout": 120.0})
    from selgrad.federation.run import write_app

    app, enrolled = write_app(config, tmp_path / "app", tmp_path / "out")
    with Deployment(tmp_path, [enrolled / str(number) for number in range(3)]) as deployment:
        deployment.run(app)
    records = pd.read_parquet(tmp_path / "out" / "rounds.parquet")
    assert records["num_clients"].tolist() == [2] and records["verified"].all()


def test_the_example_runs_on_nodes_with_a_key_holder_of_their_own(tmp_path):
    """Every participant has its own enrolment and process, and the server has no key: its README's second part."""
    enrol = ["key-holder", "keys", "--clients", "2", "--max-examples", "1500", "--ratio", "0.2", "--agreement", "vote", "--enrol-only"]
    done = program(sys.executable, "-m", "selgrad", *enrol, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == 0, done.stderr
    keys, example = tmp_path / "keys", Path(__file__).parents[2] / "examples" / "flower"
    node, other = ("selgrad", "supernode", str(example)), tmp_path / "other"
    with Deployment(tmp_path, [keys / "0", keys / "1"], node=node) as deployment:
        address = f"127.0.0.1:{deployment.free}"
        deployment.start("selgrad", "key-holder", "keys", "--address", address, "--ssl-certfile", deployment.root, "--ssl-keyfile", deployment.key)
        given = f'enrolment="{keys / "server"}" key-holder="{address}" root-certificates="{deployment.root}"'
        # The nodes run the app that they were started with; a server that sends another one gets no answer to what it asks.
        shutil.copytree(example, other, ignore=shutil.ignore_patterns("__pycache__"))
        stolen = other / "digits_app" / "client_app.py"
        stolen.write_text(stolen.read_text() + f"\nopen({str(tmp_path / 'stolen')!r}, 'w').close()\n")
        number, end = deployment.submit(other, "--run-config", given), time.monotonic() + 120
        while deployment.said().count("FAB verification failed") < 2 and time.monotonic() < end:
            time.sleep(1)
        assert deployment.said().count("FAB verification failed") >= 2 and not (tmp_path / "stolen").exists(), deployment.said()[-3000:]
        assert not list(keys.glob("[01]/answered-*")), "and the enrolment is as it was"
        assert deployment.flwr("stop", number, "loop")["success"]
        said = [line for line in deployment.run(example, "--run-config", given).splitlines() if "accuracy after 3 rounds" in line]
    assert said and "20% of every update left its client encrypted" in said[0], said
    assert float(said[0].split("rounds: ")[1].split(";")[0]) > 0.7
    assert all((keys / str(number) / "answered-train").exists() for number in range(2))
    # The secret key lies with the key holder alone, and the server's folder has no key at all.
    assert {path.name for path in (keys / "server").iterdir()} == {"participant.json"}


def test_the_example_runs_as_a_flower_app_does(tmp_path):
    """`flwr run .` in its folder: Flower packs it, starts a simulation, and masks follow what clients learned."""
    tools = Path(sys.executable).parent
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "FLWR_HOME": str(tmp_path / ".flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "LANG": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    folder = Path(__file__).parents[2] / "examples" / "flower"
    known = superlinks()
    try:
        done = program(str(tools / "flwr"), "run", str(folder), "--stream", "--federation-config", "num-supernodes=3", env=environment, cwd=tmp_path)
    finally:
        # Flower starts one of its own and leaves it.
        for process in superlinks() - known:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("accuracy after 3 rounds")]
    assert said and said[0].endswith("20% of every update left its client encrypted"), (done.stdout + done.stderr)[-3000:]
    assert float(said[0].split(": ")[1].split(";")[0]) > 0.7
    (keys,) = (tmp_path / ".cache" / "selgrad" / "flower").iterdir()
    assert {path.name for path in keys.iterdir()} >= {"0", "1", "2", "key-holder", "server"} and (keys / "0" / "answered-train").exists()


def superlinks():
    """Process numbers of Flower's own servers and engines."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and any(name in (folder / "cmdline").read_bytes() for name in (b"flower-superlink", b"flwr-simulation")):
                found.add(int(folder.name))
    return found
