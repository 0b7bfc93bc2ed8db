"""`goldline status`."""

import time
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from model_store import short
from pipeline.settings import Settings
from workers.commands import options
from workers.commands.model_page import plain

if TYPE_CHECKING:
    from workers.line_status import LineStatus, RecipeStatus, StationStatus

_EVERY_S = 2.0
_WIDE = 200  # columns where no terminal says how many it has


@click.command("status")
@options.config
@click.option("--window", "window_s", type=click.FloatRange(1, 3600), default=60.0, show_default=True, help="Seconds.")
@click.option("--last", type=click.IntRange(1, 100_000), default=2000, show_default=True, help="Results of a station.")
@click.option(
    "--watch",
    "every_s",
    type=click.FloatRange(0.5, 3600),
    is_flag=False,
    flag_value=_EVERY_S,
    metavar="[SECONDS]",
    help="Look again every so many seconds, 2 unless given, until Ctrl-C.",
)
@options.as_json
def command(settings: Settings, window_s: float, last: int, every_s: float | None, as_json: bool) -> None:
    """How the line stands: each station's lag, rate, times, verdicts, model, drift and last refit.

    Read from the topics and the model store alone, so that it works from any machine that may read them, and says
    nothing of a worker but what it published. Rate, p99 and shares are of the results within --window, the --last ones
    of each station at most. p99 is of the time from received to decided; lag is how many frames no worker has
    acknowledged.

    With --json one object on a line, with --watch too one line for each look.

    \b
    Examples:
      goldline status --config line.toml
      goldline status --watch 5
    """
    from workers import line_status, status  # noqa: PLC0415 - the store loads torch, which takes seconds

    # For a file or a pipe a table is as wide as it has to be.
    console = Console() if Console().is_terminal else Console(width=_WIDE)
    with status.LineReader(settings, window_s=window_s, at_most=last) as reader:
        if as_json or every_s is None or not console.is_terminal:
            while True:
                found = reader.look()
                if as_json:
                    click.echo(line_status.to_json(found))
                else:
                    console.print(_table(found))
                if every_s is None:
                    return
                time.sleep(every_s)
        with Live(_table(reader.look()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                live.update(_table(reader.look()), refresh=True)


def _table(found: "LineStatus") -> Table:
    """A row for each station and recipe; what is a station's own stands in its first."""
    workers = "?" if found.workers is None else found.workers
    title = f"{found.at:%Y-%m-%d %H:%M:%S} UTC, workers: {workers}, the last {found.window_s:g} s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="")
    caption = "\n".join(plain(problem) for problem in found.problems)
    table.caption, table.caption_justify, table.caption_style = Text(caption) if caption else None, "left", "yellow"
    for name in ("station", "recipe"):
        table.add_column(name, overflow="fold")
    for name in ("lag", "per s", "p99 ms", "pass", "reject", "none"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("last result", "model", "drift", "last refit"):
        table.add_column(name, overflow="fold")
    for station in found.stations:
        own = _own(station)
        for recipe in station.recipes:
            table.add_row(*(Text(cell) for cell in (own[0], recipe.recipe, *own[1:], *_of(recipe))))
            own = [""] * len(own)
    return table


def _own(station: "StationStatus") -> list[str]:
    shares = station.shares or {}
    return [
        station.station,
        "?" if station.lag is None else str(station.lag),
        f"{station.rate_hz:.1f}",
        "-" if station.p99_ms is None else f"{station.p99_ms:.1f}",
        *(f"{shares[kind]:.1%}" if shares else "-" for kind in ("pass", "reject", "no_decision")),
        f"{station.last_result_at:%m-%d %H:%M:%S}" if station.last_result_at else "none",
    ]


def _of(recipe: "RecipeStatus") -> list[str]:
    model, refit = recipe.model, recipe.refit
    return [
        f"{short(model.version)} since {model.promoted_at:%m-%d %H:%M}" if model else "none",
        ", ".join(f"{plain(alarm.monitor)} {alarm.direction} since {alarm.since:%m-%d %H:%M}" for alarm in recipe.drift)
        or "-",
        f"{short(refit.version)} {plain(refit.at[5:16].replace('T', ' '))}" if refit else "none",
    ]
