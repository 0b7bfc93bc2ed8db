"""Monitors' states in a folder, a JSON file for each station and recipe: they outlast the worker.

A file is written whole, under another name first. Where workers share the folder, the last one that wrote is believed:
whoever finds a file that it did not write itself takes that.
"""

import os
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from pipeline.drift import Baseline
from pipeline.settings import Settings


class Kept(Struct, kw_only=True):
    """What is kept of one station and recipe.

    Attributes:
        accepted_ms: broker's time of the acceptance that the baseline began with; 0 for the first.
        log_limit: natural logarithm of the M at which a monitor raises its alarm.
        saved_at: when this was written.
    """

    baseline: Baseline
    accepted_ms: int = 0
    log_limit: float
    saved_at: datetime


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


def stamp(path: Path) -> int:
    """What differs when another wrote the file: its time of change in nanoseconds, 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
