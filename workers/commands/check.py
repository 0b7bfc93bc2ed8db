"""`goldline check`."""

import json
from pathlib import Path

import click

from pipeline import settings as line
from pipeline.errors import ConfigError
from workers.commands import options


@click.command("check")
@click.argument("path", type=click.Path(path_type=Path), default=Path("line.toml"))
@options.as_json
@click.pass_context
def command(ctx: click.Context, path: Path, as_json: bool) -> None:
    """Validate the settings in PATH (line.toml): every wrong value is named with its path.

    Environment overrides (GOLDLINE_SECTION__KEY) are applied and checked too. Exit status 2 when something is wrong.
    """
    try:
        settings = line.read(path)
    except ConfigError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"ok": False, "problems": str(error).splitlines()}))
        ctx.exit(2)
    places = settings.partitions()
    if as_json:
        click.echo(json.dumps({"ok": True, "problems": [], "partitions": places}))
        return
    click.echo(f"{path}: ok, {len(settings.stations)} stations")
    for name, partition in places.items():
        recipes = ", ".join(settings.stations[name].recipes)
        click.echo(
            f"  {name}: partition {partition}, recipes {recipes}, {settings.deadline_ms(name)} ms, "
            f"no decision means {settings.on_no_decision(name)}"
        )
