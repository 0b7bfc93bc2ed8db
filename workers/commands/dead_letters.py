"""`goldline dead-letters`."""

import json
import time
from pathlib import Path

import click

from pipeline.settings import Settings
from workers.commands import options
from workers.words import counted


@click.group("dead-letters")
def command() -> None:
    """Frames that could not be read: list them, look at one, send them again."""


@command.command("list")
@options.config
@options.as_json
def list_(settings: Settings, as_json: bool) -> None:
    """Every dead letter, with its reason and where it came from."""
    from workers import dead_letter  # noqa: PLC0415

    count = 0
    for letter in dead_letter.letters(settings):
        count += 1
        if as_json:
            click.echo(json.dumps(letter.body()))
        else:
            click.echo(
                f"{letter.number:>8}  {letter.at[:19]}  {letter.station or '-'}  {letter.reason}: {letter.detail}  "
                f"({letter.size_bytes} bytes, from {letter.origin}, frame {letter.frame_id})"
            )
    if not as_json:
        click.echo(counted(count, "dead letter"), err=True)


@command.command("show")
@click.argument("letter")
@options.config
@click.option("--output", type=click.Path(path_type=Path), help="Write the message's bytes there.")
def show(letter: str, settings: Settings, output: Path | None) -> None:
    """One LETTER, by its number (partition/offset) or frame id, with its headers as JSON."""
    from workers import dead_letter  # noqa: PLC0415

    found = dead_letter.find(settings, letter)
    headers = {name: (value or b"").decode("utf-8", "backslashreplace")[:1000] for name, value in found.record.headers}
    click.echo(json.dumps({**found.body(), "headers": headers}, indent=2))
    if output:
        output.write_bytes(found.record.value or b"")


@command.command("replay")
@click.argument("letter", nargs=-1)
@options.config
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--rate", default=10.0, show_default=True, help="Frames a second, so that a replay is not a flood.")
def replay(letter: tuple[str, ...], settings: Settings, everything: bool, rate: float) -> None:
    """Send LETTERs to the topic of frames again, each under a new frame id (ce_replayof names the old one)."""
    from workers import dead_letter  # noqa: PLC0415

    if bool(letter) == everything:
        raise click.UsageError("name the letters to replay, or say --all")
    found = list(dead_letter.letters(settings)) if everything else [dead_letter.find(settings, x) for x in letter]
    sent = 0
    for one in found:
        sent += dead_letter.replay(settings, [one])
        time.sleep(1 / rate if rate > 0 else 0)
    click.echo(f"{sent} sent again")
