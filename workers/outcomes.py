"""What becomes of a frame, ready to be published; and of those that nobody scored."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from torch import Tensor

from pipeline.data import Failure, Reason, Verdict
from pipeline.decode import Placement
from workers.messages import ModelBody, TimingsBody
from workers.wire import Arrival

LOADING = ": its model was not in memory and had to be loaded"
"""What `detail` says of a frame that had no time left once its model was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one frame, ready to be published."""

    arrival: Arrival
    answer: Verdict | Failure
    decided_at: datetime
    model: ModelBody | None = None
    timings: TimingsBody = field(default_factory=TimingsBody)
    map: Tensor | None = None
    placement: Placement | None = None


def outcome_of(
    arrival: Arrival,
    answer: Verdict | Failure,
    received: float,
    *,
    queue_s: float = 0.0,
    decode: float = 0.0,
    embed: float = 0.0,
    score: float = 0.0,
) -> Outcome:
    """An outcome as of now.

    Args:
        arrival: the frame.
        answer: what was decided, or why nothing was.
        received: when it came, in seconds of the epoch.
        queue_s: how long it waited, in seconds.
        decode: milliseconds, as `embed` and `score`.
        embed: of the whole batch.
        score: of the whole batch.
    """
    now = time.time()
    timings = TimingsBody(
        queue=_ms(queue_s * 1000),
        decode=_ms(decode),
        embed=_ms(embed),
        score=_ms(score),
        total=_ms((now - received) * 1000),
    )
    return Outcome(arrival=arrival, answer=answer, decided_at=datetime.fromtimestamp(now, UTC), timings=timings)


def deadline_of(arrival: Arrival, received: float) -> float:
    """In seconds of the epoch; a frame without one has no time at all."""
    deadline_at = arrival.frame.deadline_at
    return deadline_at.timestamp() if deadline_at else received


def late(arrival: Arrival, received: float, *, loading: bool = False) -> Outcome:
    """Of a frame whose deadline has passed; `loading` where it waited for its model."""
    past_ms = (time.time() - deadline_of(arrival, received)) * 1000
    return failed(arrival, received, Reason.LATE, f"{past_ms:.0f} ms past its deadline{LOADING if loading else ''}")


def shed(arrival: Arrival, received: float, left_s: float, *, loading: bool = False) -> Outcome:
    """Of a frame that cannot be scored in the time that is left."""
    detail = f"{left_s * 1000:.0f} ms before its deadline there is no time left to score it"
    return failed(arrival, received, Reason.SHED, detail + (LOADING if loading else ""))


def no_model(arrival: Arrival, received: float) -> Outcome:
    """Of a frame that no model decides about."""
    detail = f"no model for station {arrival.frame.station}, recipe {arrival.frame.recipe}"
    return failed(arrival, received, Reason.NO_MODEL, detail)


def failed(arrival: Arrival, received: float, reason: Reason, detail: str) -> Outcome:
    """Of a frame without a decision, for any reason."""
    failure = Failure(frame_id=arrival.frame.frame_id, reason=reason, detail=detail)
    return outcome_of(arrival, failure, received)


def _ms(value: float) -> float:
    return round(max(value, 0.0), 3)
