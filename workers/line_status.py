"""What `goldline status` says of a line, and its JSON."""

from datetime import datetime

import msgspec
from msgspec import Struct

from workers.drift_events import DriftAlarm


class ModelStatus(Struct, frozen=True, kw_only=True):
    """The version in service."""

    version: str
    promoted_at: datetime
    by: str


class RefitStatus(Struct, frozen=True, kw_only=True):
    """The last version that was made from the pool, in service or not."""

    version: str
    at: str
    by: str
    why: str


class RecipeStatus(Struct, frozen=True, kw_only=True):
    """One product at a station. `drift` are the alarms that stand, since a baseline was accepted last."""

    recipe: str
    model: ModelStatus | None
    refit: RefitStatus | None
    drift: tuple[DriftAlarm, ...]


class StationStatus(Struct, frozen=True, kw_only=True):
    """One station.

    Attributes:
        lag: frames that no worker has acknowledged; None where the topic is missing.
        results: decided within the window, each frame once; what follows is about these, None without any.
        rate_hz: results a second.
        p99_ms: of the time from received to decided, 99 of 100 took no longer.
        shares: of each verdict.
        last_result_at: by the broker's clock; None where there is no result on the topic.
    """

    station: str
    partition: int
    lag: int | None
    results: int
    rate_hz: float
    p99_ms: float | None
    shares: dict[str, float] | None
    last_result_at: datetime | None
    recipes: tuple[RecipeStatus, ...]


class LineStatus(Struct, frozen=True, kw_only=True):
    """All of it. `problems` say what could not be found out, and why."""

    at: datetime
    window_s: float
    workers: int | None
    stations: tuple[StationStatus, ...]
    problems: tuple[str, ...]


_encoder = msgspec.json.Encoder()


def to_json(status: LineStatus) -> bytes:
    """As JSON, an object."""
    return _encoder.encode(status)
