"""The two apps that Flower runs: `client_app` for every participant, and `server_app` for a deployment.

A deployment's server reads `config` and `out` from Flower's run config; the simulation has a server app of its own.
"""

from __future__ import annotations

from typing import Any

from selgrad.federation.flower import FlowerTransport, answer, num_participants, quiet_flower

quiet_flower()
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def _train(message: Any, context: Any) -> Any:
    return answer(message, context)


@client_app.query()
def _query(message: Any, context: Any) -> Any:
    return answer(message, context)


@server_app.main()
def _serve(grid: Any, context: Any) -> None:
    """Runs all rounds; records are written to the folder `out` of the run config."""
    from pathlib import Path

    from selgrad import devices, files

    devices.configure()
    from selgrad.federation.config import load
    from selgrad.federation.enrolment import Public
    from selgrad.federation.journal import adopt
    from selgrad.federation.server import Server

    config, out = load(str(context.run_config["config"])), Path(str(context.run_config["out"]))
    with files.locked(out, "federated run"):
        adopt(config, out)
        public = Public(*(str(context.run_config[name]) for name in ("run", "fingerprint", "key_tag")))
        Server(config, public, out).run(FlowerTransport(grid, num_participants(config), config.timeout))
