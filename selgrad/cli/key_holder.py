"""`selgrad key-holder`: makes the keys of a Flower app's run and opens the sums of its rounds, in a process that is not the server's.

`selgrad.federation.key_holder` does the work.
"""

from __future__ import annotations

from pathlib import Path

import click

from selgrad.cli.options import PATH, SEED, Command
from selgrad.errors import UsageError


@click.command("key-holder", cls=Command)
@click.argument("folder", type=PATH)
@click.option("--clients", type=int, help="Enrol a run of so many clients in FOLDER; without it the run that is enrolled there is served.")
@click.option("--max-examples", type=float, help="The largest number of examples of one client; an update is weighted by its share of this. Needed to enrol.")
@click.option("--ratio", type=float, default=0.1, show_default=True, help="Share of the float entries of an update that every client encrypts.")
@click.option(
    "--agreement",
    default="fixed",
    show_default=True,
    help="How clients agree on a mask: fixed or, from their scores, vote, union, interleaved or encrypted_sensitivity.",
)
@click.option("--profile", default="exact", show_default=True, help="Encryption profile; `selgrad profiles` lists them.")
@click.option("--bound", type=float, help="Largest absolute value of a weighted update's entry.  [default: the profile's]")
@click.option("--min-clients", type=int, default=2, show_default=True, help="Smallest number of clients whose sum is decrypted.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed of the fixed mask.")
@click.option("--address", default="127.0.0.1:9095", show_default=True, help="HOST:PORT to listen on.")
@click.option("--ssl-certfile", type=PATH, help="Certificate of this host, PEM.")
@click.option("--ssl-keyfile", type=PATH, help="Its private key, PEM.")
@click.option("--insecure", is_flag=True, help="Listen without TLS beyond this machine: whoever listens reads the sums.")
@click.option("--enrol-only", is_flag=True, help="Write the folders and do not serve.")
def key_holder(
    folder: Path, clients: int | None, max_examples: float | None, ratio: float, agreement: str, profile: str, bound: float | None, min_clients: int,
    seed: int, address: str, ssl_certfile: Path | None, ssl_keyfile: Path | None, insecure: bool, enrol_only: bool,
) -> None:  # fmt: skip
    r"""Hold the key of an app of your own, and open the sums of its rounds. FOLDER is for the enrolment of one run.

    With --clients the keys are made: FOLDER/0, FOLDER/1, ... are for the clients, FOLDER/server for the server, FOLDER/key-holder stays here. Bring each to
    its owner on a way that the server does not see, and delete the copy. The service forms every sum itself, of what clients vouch for to it, once a round.

    \b
    selgrad key-holder keys --clients 5 --max-examples 2000 --ratio 0.2 --agreement vote
    selgrad key-holder keys --address 0.0.0.0:9095 --ssl-certfile holder.pem --ssl-keyfile holder.key
    """
    from selgrad.federation.flower import quiet_flower

    quiet_flower()
    from selgrad.federation.key_holder import serving
    from selgrad.federation.terms import KEY_HOLDER, SERVER, Terms, enrol

    if (ssl_certfile is None) != (ssl_keyfile is None):
        raise UsageError("--ssl-certfile and --ssl-keyfile belong together; give both, or neither")
    host = address.rpartition(":")[0]
    if not enrol_only and ssl_certfile is None and not insecure and host not in ("127.0.0.1", "localhost", "[::1]"):
        raise UsageError(f"--address {address} is reached from elsewhere and talks in the clear; give --ssl-certfile and --ssl-keyfile, or --insecure")
    if clients is not None:
        if max_examples is None:
            raise UsageError("--clients enrols a run and needs --max-examples, the largest number of examples that one client has")
        enrol(Terms(clients, max_examples, ratio, agreement, profile, min_clients, bound, seed), folder)
        click.echo(f"enrolled in {folder}: give 0 .. {clients - 1} to the clients and {SERVER} to the server, each to its owner alone; {KEY_HOLDER} stays here")
    if enrol_only:
        if clients is None:
            raise UsageError("--enrol-only enrols a run and needs --clients")
        return
    with serving(folder / KEY_HOLDER, address, certificate=ssl_certfile, private_key=ssl_keyfile, note=click.echo) as port:
        click.echo(f"listening at {host}:{port}; Ctrl-C ends it, and the same command goes on")
        import threading

        threading.Event().wait()
