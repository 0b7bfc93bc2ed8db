"""Refits by a schedule: one process or many, on any machines; a lease lets one do each station's."""

import getpass
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from model_store import ModelKey
from pipeline.errors import ConfigError, GoldlineError, LeaseTaken, ModelNotFound
from pipeline.refit_settings import next_run
from pipeline.settings import Settings
from workers import logs, refitting
from workers.metrics import RefitMetrics

log = logs.get(__name__)

_LOOK_S = 30.0  # the clock may be set, and machines sleep


def wall() -> datetime:
    """What a clock on this machine's wall shows, without a time zone: summer time moves it, and schedules with it."""
    return datetime.now().astimezone().replace(tzinfo=None)


def run(
    settings: Settings,
    stop: threading.Event,
    clock: Callable[[], datetime] = wall,
    metrics: RefitMetrics | None = None,
) -> None:
    """Refit every station and recipe at each time of the schedule, until `stop` or a signal.

    A process that is ended in the middle of a refit leaves the model in service as it is. Times that nobody was there
    for are not made up for.

    Args:
        settings: of the line.
        stop: ends it before the next station's turn.
        clock: tells the time of the schedule.
        metrics: told of each refit.

    Raises:
        ConfigError: there is no schedule, or no station.
    """
    schedule = settings.refit.schedule
    if not schedule:
        raise ConfigError('there is no schedule: [refit] schedule = "0 3 * * *" is every night at three')
    keys = [ModelKey(name, recipe) for name, station in settings.stations.items() for recipe in station.recipes]
    if not keys:
        raise ConfigError("the settings name no station to refit")
    while not stop.is_set():
        due = next_run(schedule, clock())
        log.info("refit: waiting", until=due.isoformat(), stations=len(keys))
        while (left := due - clock()) > timedelta(0):
            if stop.wait(min(_LOOK_S, left.total_seconds())):
                return
        for key in keys:
            if not stop.is_set():
                once(settings, key, metrics)


def once(settings: Settings, key: ModelKey, metrics: RefitMetrics | None = None) -> None:
    """One station's refit; whatever comes of it is in the log, and the next one's turn comes."""
    metrics = metrics or RefitMetrics(settings)
    told = log.bind(station=key.station, recipe=key.recipe)
    began = time.monotonic()
    try:
        done = refitting.refit(settings, key, who=getpass.getuser(), why="schedule")
    except LeaseTaken as error:
        told.info("refit: another process is at it", holder=str(error))
    except ModelNotFound as error:
        told.info("refit: there is no model to refit", error=str(error))
    except GoldlineError as error:
        metrics.refit(key.station, key.recipe, "failed")
        told.error("refit: it could not be done", error=str(error))
    except Exception:  # noqa: BLE001 - whatever it is, the other stations are still to be refitted
        metrics.refit(key.station, key.recipe, "failed")
        told.exception("refit: it failed")
    else:
        level = told.warning if done.what == "refused" else told.info
        if done.what != "dry run":
            metrics.refit(key.station, key.recipe, done.what.replace(" ", "_"), seconds=time.monotonic() - began)
        level("refit", outcome=done.what, version=done.version, words=done.words)
