"""What a gate is told, at times that a test chooses."""

from datetime import UTC, datetime, timedelta

from pipeline import settings as line
from workers import messages, wire
from workers.gate import Gate

TOP, SIDE, BACK, LAX = "line-1/top", "line-1/side", "line-1/back", "line-1/lax"
STEP_S = 0.02
PART_S = 1.0
START = 1_750_000_000.0
DEADLINE_S = 0.3


class Clock:
    """Wall time that moves when it is told to."""

    def __init__(self):
        self.at = START

    def __call__(self):
        return self.at


def at(seconds):
    return datetime.fromtimestamp(START, UTC) + timedelta(seconds=seconds)


def frame(frame_id="f", *, station=TOP, part_id="p", captured_s=0.0, deadline_s=DEADLINE_S):
    """A frame's message; its deadline is `deadline_s` after its capture."""
    headers = [
        ("ce_id", frame_id.encode()),
        ("ce_time", wire.rfc3339(at(captured_s)).encode()),
        ("ce_deadlinems", str(round(deadline_s * 1000)).encode()),
    ]
    headers += [("ce_partid", part_id.encode())] if part_id else []
    record = wire.Record(
        topic="goldline.frames",
        partition=0,
        offset=0,
        timestamp_ms=round((START + captured_s) * 1000) + 5,
        key=station.encode(),
        value=b"x",
        headers=headers,
    )
    return wire.read_frame(record, line.Settings())


def result(
    frame_id="f",
    verdict="pass",
    *,
    reason=None,
    station=TOP,
    part_id="p",
    captured_s=0.0,
    deadline_s=DEADLINE_S,
):
    """A result as it comes off the topic; the deadline is its frame's."""
    body = messages.Result(
        result_id="r",
        frame_id=frame_id,
        part_id=part_id,
        station=station,
        recipe="default",
        verdict=verdict,
        reason=reason,
        score=None if reason else 1.5,
        captured_at=at(captured_s),
        deadline_at=at(captured_s + deadline_s),
        decided_at=at(captured_s + 0.05),
    )
    return messages.decode_result(messages.encode_result(body))


def counts(gate):
    """What is not 0 of a gate's counts, which add up."""
    c = gate.counts
    assert c.parts == c.on_time + c.defaulted == c.passed + c.rejected
    return {name: value for name in c.__slots__ if (value := getattr(c, name))}


def fused(clock, stations=None, *, by_part=False, **rule):
    """A gate behind TOP and SIDE, or stations of one's own with their settings."""
    stations = stations or {TOP: {}, SIDE: {}}
    tree = {"gate": {"fuse": "any-reject", "part_deadline_ms": round(PART_S * 1000), **rule}, "stations": stations}
    return Gate(line.build(tree), frozenset(stations), by_part=by_part, clock=clock)


def sees(gate, station, verdict, part_id="p", frame_id=None, **more):
    """The gate sees a result; by default of the part's only frame there."""
    reason = "error" if verdict == "no_decision" else None
    return gate.see_result(
        result(frame_id or f"{station} {part_id}", verdict, reason=reason, station=station, part_id=part_id, **more)
    )


def announced(gate, station, part_id="p", frame_id=None, **more):
    """The gate sees a frame's message; by default of the part's only frame there."""
    gate.see_frame(frame(frame_id or f"{station} {part_id}", station=station, part_id=part_id, **more))
