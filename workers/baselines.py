"""Monitors' states in a folder, a JSON file for each station and recipe: they outlast the worker.

A file is written whole, under another name first. Where workers share the folder, the last one that wrote is believed:
whoever finds a file that it did not write itself takes that.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import Struct

from pipeline.drift import Baseline
from pipeline.settings import Settings

_REMEMBERED = timedelta(days=90)


class Window(Struct, frozen=True, kw_only=True):
    """A time of which an alarm spoke: from when the numbers changed, until a person accepted what is now."""

    since: datetime
    until: datetime


class Kept(Struct, kw_only=True):
    """What is kept of one station and recipe.

    Attributes:
        accepted_ms: broker's time of the acceptance that the baseline began with; 0 for the first.
        log_limit: natural logarithm of the M at which a monitor raises its alarm.
        saved_at: when this was written.
        windows: of drift, that are over: nothing is learnt from their frames.
    """

    baseline: Baseline
    accepted_ms: int = 0
    log_limit: float
    saved_at: datetime
    windows: tuple[Window, ...] = ()


def place(settings: Settings, station: str, recipe: str) -> Path:
    """The file of a station and recipe; both as settings allow them, so that no path leads elsewhere."""
    return Path(settings.drift.folder).expanduser() / station / f"{recipe}.json"


def read(path: Path) -> Kept | None:
    """What was kept; None where nothing was.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None


def write(path: Path, kept: Kept) -> None:
    """Keep it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(msgspec.json.encode(kept))
    part.replace(path)


def windows(kept: Kept, until: datetime) -> tuple[Window, ...]:
    """Those there were, and that of the alarms there are, ended now; for as long as a pool may keep frames."""
    began = [monitor.alarm.since for monitor in kept.baseline.monitors.values() if monitor.alarm]
    now = (Window(since=min(began), until=until),) if began else ()
    return (*(each for each in kept.windows if until - each.until < _REMEMBERED), *now)


def stamp(path: Path) -> int:
    """What differs when another wrote the file: its time of change in nanoseconds, 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
