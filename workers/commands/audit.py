"""`goldline audit`."""

import getpass
import shlex
from pathlib import Path

import click
import msgspec

from model_store import ModelKey
from pipeline.selection import FILE
from pipeline.settings import Settings
from workers.commands import options


@click.group("audit")
def command() -> None:
    """Parts for a person to verify, whatever their verdict was."""


@command.command("sample")
@click.option("--station", required=True, help="The camera viewpoint, as in line-1/top.")
@click.option(
    "--n", "count", type=click.IntRange(1, 10_000), default=300, show_default=True, help="How many parts to mark."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="audit",
    show_default=True,
    help="A new folder for their pictures.",
)
@options.recipe
@options.config
@options.as_json
def sample(settings: Settings, station: str, count: int, out: Path, recipe: str, as_json: bool) -> None:
    """Mark N of the parts that STATION saw lately, by a hash of their ids, whatever their verdicts.

    Their pictures go into a folder, with a list of them, selection.json. A person takes out the pictures of parts that
    are not good, without knowing the verdicts; `goldline calibrate` takes the rest. Frames are read from their topic,
    which keeps them for an hour unless set otherwise; draw in several shifts, into several folders.

    \b
    Examples:
      goldline audit sample --n 300 --station line-1/top --out monday
      goldline calibrate line-1/top monday --verified-by "A. Jones"
    """
    from workers import auditing  # noqa: PLC0415 - Kafka's client, for those who run it

    made = auditing.sample(settings, ModelKey(station, recipe), count, out, who=getpass.getuser())
    if as_json:
        click.echo(msgspec.json.encode(made))
        return
    lost = sum(part.picture is None for part in made.parts)
    click.echo(f"marked {len(made.parts)} of {made.of} parts: {out / FILE}, their pictures beside it")
    if lost:
        click.echo(f"without a picture, which could not be read or fetched: {lost}")
    click.echo("take out the pictures of parts that are not good, then")
    told = ["goldline", "calibrate", station, str(out), "--recipe", recipe, "--store", settings.store.url]
    click.echo(f"{shlex.join(told)} --verified-by NAME")
