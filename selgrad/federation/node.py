"""A Flower SuperNode that runs one app, read from its owner's own disk, and refuses every other.

Flower's nodes fetch the app from the SuperLink, so a server decides which program a client runs. `--trusted-entities` asks for signatures that Flower's hub
keeps, and refuses every app that does not come from there. Here the client has the app, looks at it, and its bytes are what the node compares.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selgrad.errors import SelgradError, UsageError

_PLACES = ("_pull_and_store_message", "_verify_fab")
"""Where Flower's node pulls an app and verifies it; neither is of its public interface, so the version of Flower is pinned and a change ends the node."""


def digest_of(app: Path) -> str:
    """Returns the SHA-256 of an app as Flower bundles it, which depends on its files alone.

    Args:
      app: folder with the app's pyproject.toml, or a bundle made by `flwr build`.

    Raises:
      UsageError: if there is no app.
    """
    from flwr.cli.build import build_fab_from_disk

    if app.is_file():
        return hashlib.sha256(app.read_bytes()).hexdigest()
    if not (app / "pyproject.toml").is_file():
        raise UsageError(f"{app} is not a Flower app: there is no pyproject.toml; name the folder that `flwr run` is given, or a .fab file")
    try:
        return hashlib.sha256(build_fab_from_disk(app)).hexdigest()
    except Exception as error:  # Flower's own errors are Click's, typer's and ValueError
        raise UsageError(f"{app}: Flower cannot bundle this app: {getattr(error, 'message', None) or error}") from error


def pin(digest: str) -> None:
    """Makes every SuperNode of this process run one app alone; messages for others get no answer, and the log says that their verification failed.

    Args:
      digest: SHA-256 of the bundled app, as `digest_of` returns it.

    Raises:
      SelgradError: if Flower verifies apps elsewhere than it did in the version that this was written for.
    """
    import flwr.supernode.start_client_internal

    node: Any = flwr.supernode.start_client_internal
    if not all(callable(getattr(node, name, None)) for name in _PLACES):
        raise SelgradError("this version of Flower verifies apps elsewhere, so none can be pinned; install flwr 1.30")
    pull = node._pull_and_store_message

    def marked(bundle: Any) -> Any:
        # Flower asks whether its hub has signatures before it verifies any.
        bundle.verifications["valid_license"] = "Valid"
        return bundle

    def pull_verified(**given: Any) -> Any:
        get_fab = given["get_fab"]
        return pull(**{**given, "get_fab": lambda *asked: marked(get_fab(*asked)), "trusted_entities": {"app": digest}})

    node._pull_and_store_message = pull_verified
    node._verify_fab = lambda bundle, _: hashlib.sha256(bundle.content).hexdigest() == digest


def supernode(app: Path, arguments: Sequence[str]) -> None:
    """Runs a SuperNode for one app until it is stopped.

    Args:
      app: folder of the app, or a bundle.
      arguments: options of `flower-supernode`.

    Raises:
      UsageError: if there is no app, or an option contradicts the pinning.
      SelgradError: if Flower verifies apps elsewhere than it did in the version that this was written for.
    """
    if any(argument.split("=")[0] == "--trusted-entities" for argument in arguments):
        raise UsageError("--trusted-entities verifies apps of Flower's hub alone, and this node runs the app that it is given; leave the option out")
    pin(digest_of(app))
    from flwr.supernode.cli import flower_supernode

    # Flower starts further programs of its own, which lie beside this Python even where its folder is not on the path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
