"""`goldline drift`."""

import json
import math
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers.commands import options

if TYPE_CHECKING:
    from workers.baselines import Kept


@click.command("drift")
@click.argument("station")
@options.config
@options.as_json
def command(settings: Settings, station: str, as_json: bool) -> None:
    """How STATION's monitors stand: light, sharpness, alignment and scores against what they were.

    Read from the folder that the worker keeps them in ([drift] folder), as it wrote them last: every ten seconds, and
    at an alarm. A monitor raises its alarm where the evidence reaches the limit, and takes no more frames then;
    `goldline baseline accept STATION --by NAME --why WORDS` begins anew.
    """
    if station not in settings.stations:
        raise ConfigError(f"no station {station} in the settings; there are {', '.join(settings.stations) or 'none'}")
    from workers import baselines  # noqa: PLC0415 - torch takes seconds to import

    found: dict[str, Kept] = {}
    for recipe in settings.stations[station].recipes:
        path = baselines.place(settings, station, recipe)
        try:
            kept = baselines.read(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        if kept is not None:
            found[recipe] = kept
    if not found:
        raise ConfigError(
            f"nothing is kept of {station} in {settings.drift.folder}: no frame was scored yet, or its worker keeps "
            "it on another machine"
        )
    if as_json:
        click.echo(json.dumps({"station": station, "recipes": {r: _body(kept) for r, kept in found.items()}}))
    else:
        click.echo("\n".join(_page(recipe, kept) for recipe, kept in found.items()))


def _body(kept: "Kept") -> dict[str, Any]:
    return {
        "saved_at": kept.saved_at.isoformat(),
        "log_limit": kept.log_limit,
        "model": kept.baseline.version,
        "monitors": {
            name: {
                "frames": monitor.seen,
                "log_martingale": monitor.log_value,
                "alarm": msgspec.to_builtins(monitor.alarm),
            }
            for name, monitor in kept.baseline.monitors.items()
        },
    }


def _page(recipe: str, kept: "Kept") -> str:
    rows = [
        f"recipe {recipe}, as of {kept.saved_at:%Y-%m-%d %H:%M:%S} UTC; alarm at {_power(kept.log_limit)}",
        f"{'monitor':10} {'frames':>8} {'evidence':>9}",
    ]
    for name, monitor in kept.baseline.monitors.items():
        alarm = monitor.alarm
        told = (
            f"  ALARM: {alarm.direction} since {alarm.since:%Y-%m-%d %H:%M:%S}, frame {alarm.frame_id}" if alarm else ""
        )
        rows.append(f"{name:10} {monitor.seen:8} {_power(monitor.log_value):>9}{told}")
    return "\n".join(rows)


def _power(log_value: float) -> str:
    return f"10^{log_value / math.log(10):.1f}"
