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
    help='Learn of parts from JSON lines {"part_id", "station"} of a light barrier (a file, a FIFO, or - for '
    "standard input) instead of from frames: only this notices a part that no camera saw.",
)
@options.metrics_port
@options.as_json
def command(
    settings: Settings,
    stations: tuple[str, ...],
    output: Path | None,
    trigger: str | None,
    metrics_port: int | None,
    as_json: bool,
) -> None:
    """Act as the reject gate: one action for each part, by its deadline, `reject` unless a verdict says otherwise.

    Commands and URLs to call are settings ([gate] on_pass, on_reject, pass_url, reject_url): they get the action as
    JSON. A late result never reverses an action. At the end the counts go to standard error.

    With [gate] fuse = "any-reject" or "weighted" a part that several stations see (ce_partid) gets one action: every
    station of this gate must have passed it by the part's deadline ([gate] part_deadline_ms). Name this gate's
    stations then; a trigger need not.

    \b
    Examples:
      goldline gate --station line-1/top --output actions.jsonl
      GOLDLINE_GATE__FUSE=any-reject goldline gate --station line-1/top --station line-1/side
    """
    logs.set_up("info", process="gate")
    unknown = set(stations) - settings.stations.keys()
    if unknown:
        raise ConfigError(
            f"no station {', '.join(sorted(unknown))} in the settings (there: {', '.join(settings.stations)})"
        )
    lines = {name.partition("/")[0] for name in settings.stations}
    if settings.gate.fuse != "none" and not stations and len(lines) > 1:
        raise ConfigError(
            f"gate: with fuse = {settings.gate.fuse!r} a part must pass every station of its gate, and the settings "
            f"have those of several lines ({', '.join(sorted(lines))}): name this gate's with --station"
        )
    from workers import gate_loop, spans  # noqa: PLC0415
    from workers.health import Health, Heart  # noqa: PLC0415
    from workers.metrics import GateMetrics  # noqa: PLC0415
    from workers.trigger import opened  # noqa: PLC0415

    metrics, heart, tracing = GateMetrics(settings), Heart(), spans.opened(settings, "gate")
    checks = {"live": lambda: [heart.alive()], "ready": lambda: [heart.started(), heart.alive()]}
    Health(metrics, settings, port=metrics_port, **checks).start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    counts = gate_loop.run(
        settings,
        frozenset(stations or settings.stations),
        write=gate_loop.writer(output, as_json=as_json),
        stopped=stop.is_set,
        trigger=None if trigger is None else opened(trigger),
        metrics=metrics,
        heart=heart,
        spans=tracing,
    )
    tracing.close()
    print(json.dumps({"event": "gate ended", **asdict(counts)}), file=sys.stderr)  # noqa: T201
