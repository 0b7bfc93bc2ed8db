"""`goldline gate`."""

import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers import logs
from workers.commands import options


@click.command("gate")
@options.config
@click.option(
    "--station", "stations", multiple=True, help="Stand behind this station; may be repeated; all by default."
)
@click.option("--output", type=click.Path(path_type=Path), help="Append each action to this file, as JSON lines.")
@click.option(
    "--trigger",
    type=click.File("r"),
    help='Learn of parts from JSON lines {"part_id", "station"} of a light barrier (a file, a FIFO, or - for '
    "standard input) instead of from frames: only this notices a part that no camera saw.",
)
@options.as_json
def command(
    settings: Settings,
    stations: tuple[str, ...],
    output: Path | None,
    trigger: click.utils.LazyFile | None,
    as_json: bool,
) -> None:
    """Act as the reject gate: one action for each part, by its deadline, `reject` unless a verdict says otherwise.

    Commands and URLs to call are settings ([gate] on_pass, on_reject, pass_url, reject_url): they get the action as
    JSON. A late result never reverses an action. At the end the counts go to standard error.

    \b
    Example:
      goldline gate --station line-1/top --output actions.jsonl
    """
    logs.set_up("info", process="gate")
    unknown = set(stations) - settings.stations.keys()
    if unknown:
        raise ConfigError(
            f"no station {', '.join(sorted(unknown))} in the settings (there: {', '.join(settings.stations)})"
        )
    from workers import gate_loop  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    counts = gate_loop.run(
        settings,
        frozenset(stations or settings.stations),
        write=gate_loop.writer(output, as_json=as_json),
        stopped=stop.is_set,
        trigger=trigger,  # type: ignore[arg-type]
    )
    print(json.dumps({"event": "gate ended", **asdict(counts)}), file=sys.stderr)  # noqa: T201
