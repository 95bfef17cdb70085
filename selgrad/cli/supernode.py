"""`selgrad supernode`: a Flower SuperNode that runs the app on its owner's disk, and no other that a server sends.

`selgrad.federation.node` does the work.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, Command


@click.command("supernode", cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("app", type=PATH)
@click.argument("options", metavar="[FLOWER_OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
def supernode(app: Path, options: tuple[str, ...]) -> None:
    r"""Join a run of a Flower app as a client or key holder, and run APP and no other program. FLOWER_OPTIONS are those of flower-supernode.

    A SuperNode fetches the app from the server, which could send another one. This one compares what it is sent with APP, the folder of the app (or a .fab
    file) that its owner has and has read, byte for byte, runs nothing else, and says so in its log.

    \b
    selgrad supernode app --root-certificates ca.pem --superlink HOST:9092 \
      --node-config 'partition-id=0 num-partitions=6 enrolment="/home/client0/enrolment"'
    """
    import os

    # Flower reads this when it is imported; its log stays, since whoever runs a node wants it.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from selgrad.federation.flower import require_flower

    require_flower()
    from selgrad.federation.node import supernode as run

    run(app, options)
