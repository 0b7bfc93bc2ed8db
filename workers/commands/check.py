"""`goldline check`."""

import json
from pathlib import Path

import click
import msgspec

from model_store import open_store
from pipeline.errors import ConfigError
from workers.commands import findings_page, options
from workers.words import counted


@click.command("check")
@click.argument("path", type=click.Path(path_type=Path), default=Path("line.toml"))
@click.option("--connect", is_flag=True, help="See whether device, broker and store answer, too.")
@options.as_json
@click.pass_context
def command(ctx: click.Context, path: Path, connect: bool, as_json: bool) -> None:
    """Validate the settings in PATH (line.toml): every wrong value is named with its path.

    Environment overrides (GOLDLINE_SECTION__KEY) are applied and checked too. Exit status 2 when something is wrong;
    1 when the settings are right, and with --connect something does not answer. `goldline doctor` looks at more.
    """
    try:
        settings = options.read_settings(path)
        if not settings.store.url.startswith(("redis://", "rediss://")):  # their secrets may be on other machines
            open_store(settings.store.url)
    except ConfigError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"ok": False, "problems": str(error).splitlines()}))
        ctx.exit(2)
    places = settings.partitions()
    found = []
    if connect:
        from workers import doctor  # noqa: PLC0415 - clients of Kafka, torch

        found = list(doctor.connections(settings))
    failing = [finding for finding in found if finding.state == "fail"]
    if as_json:
        body = {"ok": not failing, "problems": [], "partitions": places}
        click.echo(json.dumps(body | ({"findings": msgspec.to_builtins(found)} if connect else {})))
        ctx.exit(1 if failing else 0)
    click.echo(f"{path}: ok, {counted(len(settings.stations), 'station')}")
    if not settings.stations:
        click.echo('a worker needs one: [stations."line-1/top"]', err=True)
    for name, partition in places.items():
        recipes = ", ".join(settings.stations[name].recipes)
        click.echo(
            f"  {name}: partition {partition}, recipes {recipes}, {settings.deadline_ms(name)} ms, "
            f"no decision means {settings.on_no_decision(name)}"
        )
    for told in found:
        click.echo(findings_page.line(told))
    ctx.exit(1 if failing else 0)
