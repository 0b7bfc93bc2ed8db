"""`goldline doctor`."""

import json
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from pipeline.errors import ConfigError
from workers.commands import findings_page, options
from workers.words import counted


@click.command("doctor")
@click.option("--config", type=click.Path(path_type=Path), default="line.toml", show_default=True, help="Settings.")
@options.as_json
@click.pass_context
def command(ctx: click.Context, config: Path, as_json: bool) -> None:
    """Whether this machine and what the line stands on are fit, and what to do where they are not.

    It looks at the settings, Java, the broker, topics and their limits, Redis, the store and its rights, models, places
    for pictures, the pool, weights, the device, the clock and disks. Each is a pass, a fail with what to do, or skipped
    where this line does not need it. Exit status 1 when one fails. Nothing is changed.

    \b
    Example:
      goldline doctor --config line.toml
    """
    from workers.doctor import Finding, everything  # noqa: PLC0415 - clients of Kafka

    def findings() -> Iterable[Finding]:
        try:
            settings = options.read_settings(config)
        except ConfigError as error:
            todo = "mend it; deploy/line.toml lists every setting"
            yield Finding(name="settings", state="fail", seen=str(error), todo=todo)
            return
        yield Finding(name="settings", state="pass", seen=f"{config}: {counted(len(settings.stations), 'station')}")
        yield from everything(settings)

    told = []
    for finding in findings():
        told.append(finding)
        if not as_json:
            click.echo(findings_page.line(finding))
    ok = all(finding.state != "fail" for finding in told)
    if as_json:
        click.echo(json.dumps({"ok": ok, "findings": msgspec.to_builtins(told)}))
    ctx.exit(0 if ok else 1)
