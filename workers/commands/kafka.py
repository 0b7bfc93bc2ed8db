"""`goldline kafka`: a Kafka broker of one's own, for trying things out."""

import json
from pathlib import Path

import click

from workers import dev_broker
from workers.dev_broker import Broker

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=dev_broker.DEFAULT_DIRECTORY,
    show_default=True,
    help="Where its data, log and pid live; each folder is a broker of its own.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


@click.group("kafka")
def command() -> None:
    """A Kafka broker for development: real, alone, on this machine only.

    It needs Java 17 and, the first time, Maven to fetch Kafka's jars. For production point `kafka.brokers` in
    line.toml at your own cluster; this one keeps a single copy of everything and lets anybody on the
    machine in.

    \b
    goldline kafka start
    goldline topics create --config line.toml
    goldline kafka stop
    """


@command.command()
@_directory
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Its port; 0 takes any free one.  [default: the folder's last, else {dev_broker.DEFAULT_PORT}]",
)
@_as_json
def start(directory: Path, port: int | None, *, as_json: bool) -> None:
    """Start the broker and wait until it answers; does nothing when it already runs.

    It keeps running when this terminal closes. Started again on the same folder it has the same port and
    data.
    """
    _tell(dev_broker.start(directory, port=port), as_json=as_json)


@command.command()
@_directory
@click.option("--erase", is_flag=True, help="Remove its topics, offsets and logs as well.")
@_as_json
def stop(directory: Path, *, erase: bool, as_json: bool) -> None:
    """Stop the broker; its data stay unless --erase is given."""
    stopped = dev_broker.stop(directory, erase=erase)
    if as_json:
        click.echo(json.dumps({"stopped": stopped, "erased": erase}))
    else:
        click.echo(f"stopped the broker in {directory}" if stopped else f"no broker runs in {directory}")
        if erase:
            click.echo("nothing of its topics, offsets and logs is left")


@command.command()
@_directory
@_as_json
def status(directory: Path, *, as_json: bool) -> None:
    """Say whether the broker runs and where; exits with 1 when it does not."""
    broker = dev_broker.status(directory)
    if broker is not None:
        _tell(broker, as_json=as_json)
        return
    click.echo(json.dumps({"running": False}) if as_json else f"no broker runs in {directory}")
    raise click.exceptions.Exit(1)


def _tell(broker: Broker, *, as_json: bool) -> None:
    facts = {
        "running": True,
        "address": broker.address,
        "pid": broker.pid,
        "directory": str(broker.directory),
    }
    text = f"Kafka answers at {broker.address} (pid {broker.pid}, data and log in {broker.directory})"
    click.echo(json.dumps(facts) if as_json else text)
