"""Checkpoints and tokenizers by their names on the hub, from a hub of our own on the loopback interface."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
import tokenizers

from selgrad.base import TextSpec
from selgrad.models import MODELS
from selgrad.models.huggingface import save_pretrained

READ = """
import sys
import numpy as np
from selgrad.base import TextSpec
from selgrad.data.tokenizer import from_files
from selgrad.errors import SelgradError
from selgrad.models import MODELS
import jax
try:
    for name in sys.argv[1:]:
        model = MODELS["bert"](TextSpec((8,), 2, 30), pretrained=name)
        print(model.config.num_layers, float(np.abs(jax.tree.leaves(model.init(jax.random.key(1)))[0]).sum()))
        print(from_files(name).encode("a b"))
except SelgradError as error:
    print("refused:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The two requests of a download, for files below `root`."""

    root: Path

    def do_GET(self, body=True):
        repository, _, name = self.path.partition("/resolve/main/")
        file = self.root / repository.lstrip("/") / name.partition("?")[0]
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if file.parent.is_dir() else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A function that reads names off a hub of `tmp_path / 'hub'`, in a process of its own, and returns what it printed."""
    handler = type("Handler", (Hub,), {"root": tmp_path / "hub"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def read(*names, endpoint=f"http://127.0.0.1:{server.server_port}"):
        # The endpoint is read when the client is imported.
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run([sys.executable, "-c", READ, *names], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield read
    server.shutdown()
    server.server_close()


def test_names_on_the_hub_are_fetched_and_read(tmp_path, hub):
    folder = tmp_path / "hub" / "someone" / "small-bert"
    model = MODELS["bert"](TextSpec((8,), 2, 30), size="tiny")
    params = model.init(jax.random.key(0))
    save_pretrained(model, params, folder)
    tokens = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokens.save(str(folder / "tokenizer.json"))
    total = float(abs(jax.tree.leaves(params)[0]).sum())
    first, second = hub("someone/small-bert").splitlines()
    assert first.split()[0] == "2"
    assert float(first.split()[1]) == pytest.approx(total, rel=1e-6)
    assert second == "[1, 2]"


def test_a_hub_without_the_name_or_without_an_answer_is_refused_in_one_line(tmp_path, hub):
    (tmp_path / "hub" / "someone" / "empty").mkdir(parents=True)
    assert "refused: checkpoint 'someone/empty' holds no config.json" in hub("someone/empty")
    absent = hub("someone/absent")
    assert absent.startswith("refused: 'someone/absent' could not be read from the Hugging Face hub")
    assert len(absent.strip().splitlines()) == 1
    closed = hub("someone/unreachable", endpoint="http://127.0.0.1:9")
    assert closed == "refused: 'someone/unreachable' is not a local folder and the Hugging Face hub cannot be reached; give the folder of a checkpoint\n"
