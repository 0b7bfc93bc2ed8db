"""What is said on the topic of drift: alarms of the monitors, and people's word that a new baseline begins."""

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from pipeline.drift import Raised
from workers.messages import Moment


class DriftAlarm(Struct, frozen=True, kw_only=True, tag="alarm"):
    """A monitor's alarm. `log_martingale` is natural, and at least `log_limit`.

    Attributes:
        since: when the numbers began to change, as near as the martingale tells.
        frame_id: of the frame that raised it, captured `at`.
        frames: that the monitor had seen since its baseline began.
    """

    station: str
    recipe: str
    monitor: str
    direction: Literal["higher", "lower"]
    log_martingale: float
    log_limit: float
    since: Moment
    at: Moment
    frame_id: str
    frames: int


class BaselineAccepted(Struct, frozen=True, kw_only=True, tag="accepted"):
    """A person's word that things are as they should be now: all monitors there begin anew."""

    station: str
    recipe: str
    by: str
    why: str
    at: Moment


Event: TypeAlias = DriftAlarm | BaselineAccepted

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def alarm_of(station: str, recipe: str, raised: Raised, log_limit: float) -> DriftAlarm:
    """The message for an alarm."""
    alarm = raised.alarm
    return DriftAlarm(
        station=station,
        recipe=recipe,
        monitor=raised.monitor,
        direction=alarm.direction,
        log_martingale=alarm.log_martingale,
        log_limit=log_limit,
        since=alarm.since,
        at=alarm.at,
        frame_id=alarm.frame_id,
        frames=alarm.seen,
    )


def encode(event: Event) -> bytes:
    """An event as JSON; its `type` is `alarm` or `accepted`."""
    return _encoder.encode(event)


def decode(value: bytes | None) -> Event | None:
    """The event in a message; None when it is none of ours."""
    try:
        return _decoder.decode(value or b"")
    except msgspec.MsgspecError:
        return None
