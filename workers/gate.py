"""The reject gate's subscriber: one action for each part, by its deadline, whatever happens upstream.

A part becomes known by its frame's message, by its result, or by an independent trigger such as a light barrier. No
verdict by the deadline means the station's default, `reject` unless set otherwise. A result that comes later is counted
and never reverses what was done. Frames can only tell of parts while broker and camera work; that is why an actuator
should rest at reject and a pass be permitted one by one, or a trigger be wired to the gate.
"""

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from pipeline.settings import Settings
from workers.messages import Result
from workers.wire import Arrival, rfc3339

Why = Literal["verdict", "no_decision", "no_verdict_in_time"]
_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class _Part:
    frame_id: str
    part_id: str | None
    station: str
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What the gate does with one part.

    Attributes:
        why: a verdict in time; an explicit `no_decision` in time; or nothing by the deadline.
        slack_ms: time left before the deadline; negative when the default was taken after it.
        in_a_row: parts without a verdict of pass up to and with this one, at all of the gate's stations.
    """

    part_id: str | None
    frame_id: str
    station: str
    action: Literal["pass", "reject"]
    why: Why
    reason: str | None
    score: float | None
    decided_at: str
    slack_ms: float
    in_a_row: int

    def body(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


@dataclass(slots=True)
class Counts:
    """`on_time` parts had a verdict or an explicit no_decision by their deadline; `defaulted` had nothing.

    `late` results came after their part had been defaulted; `repeated` ones after their part had been decided.
    """

    parts: int = 0
    on_time: int = 0
    late: int = 0
    defaulted: int = 0
    passed: int = 0
    rejected: int = 0
    no_decision: int = 0
    repeated: int = 0


class Gate:
    """Decides parts of the stations it stands behind. Pure: told of messages and of the time, it returns actions.

    Args:
        settings: of the line.
        stations: whose parts pass here.
        by_part: know parts by their part id, as a trigger does, instead of by frame id; part ids must then be unique
            at a station (within the last 200,000).
        clock: wall time in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        stations: frozenset[str],
        *,
        by_part: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._stations = stations
        self._by_part = by_part
        self._clock = clock
        self._waiting: dict[str, _Part] = {}
        self._due: list[tuple[float, str]] = []
        self._done: OrderedDict[str, Why] = OrderedDict()
        self._early: OrderedDict[str, Result] = OrderedDict()
        self.counts = Counts()
        self.in_a_row = 0

    def expect(self, *, frame_id: str, part_id: str | None, station: str, deadline: float) -> Action | None:
        """A part is on its way: act by `deadline` (wall time, seconds); at once, if its verdict came before it."""
        part = _Part(frame_id, part_id, station, deadline)
        key = self._key(part)
        if station not in self._stations or key in self._waiting or key in self._done:
            return None
        early = self._early.pop(key, None)
        if early is not None:
            return self._settle(key, _Part(early.frame_id, part_id, station, deadline), early)
        self._waiting[key] = part
        heapq.heappush(self._due, (deadline, key))
        return None

    def see_frame(self, arrival: Arrival) -> Action | None:
        """A frame's message names a part."""
        frame = arrival.frame
        deadline = frame.deadline_at.timestamp() if frame.deadline_at else self._clock()
        return self.expect(frame_id=frame.frame_id, part_id=frame.part_id, station=frame.station, deadline=deadline)

    def see_result(self, result: Result) -> Action | None:
        """A result: the part's action if it is the first to say so, else None.

        Where a trigger announces parts, a verdict that comes before its part is kept until the part is there.
        """
        station = result.station or ""
        if station not in self._stations:
            return None
        part = _Part(result.frame_id, result.part_id, station, result.deadline_at.timestamp())
        key = self._key(part)
        if key in self._done:
            self._count_again(key)
            return None
        if self._by_part and part.part_id and key not in self._waiting:
            self._early.setdefault(key, result)
            while len(self._early) > _REMEMBERED:
                self._early.popitem(last=False)
            return None
        known = self._waiting.pop(key, part)
        return self._settle(key, _Part(part.frame_id, part.part_id, station, known.deadline), result)

    def _settle(self, key: str, part: _Part, result: Result) -> Action:
        if self._clock() > part.deadline:
            # It came between the deadline and our own look at the clock: late all the same.
            action = self._act(key, part, None, "no_verdict_in_time")
            self._count_again(key)
            return action
        return self._act(key, part, result, "no_decision" if result.verdict == "no_decision" else "verdict")

    def expire(self) -> list[Action]:
        """The default for every part whose deadline has passed."""
        now, actions = self._clock(), []
        while self._due and self._due[0][0] < now:
            _, key = heapq.heappop(self._due)
            part = self._waiting.pop(key, None)
            if part:
                actions.append(self._act(key, part, None, "no_verdict_in_time"))
        return actions

    def until_next_s(self, at_most: float) -> float:
        """Seconds until a deadline passes."""
        return min(at_most, max(0.0, self._due[0][0] - self._clock())) if self._due else at_most

    @property
    def waiting(self) -> int:
        """Parts known and not decided."""
        return len(self._waiting)

    def _key(self, part: _Part) -> str:
        # With the station: two cameras that count their frames from 1 must not pass for each other.
        if self._by_part and part.part_id:
            return f"{part.station}\npart {part.part_id}"
        return f"{part.station}\nframe {part.frame_id}"

    def _count_again(self, key: str) -> None:
        """A result for a part that is done: late if nothing came before it, else a repeat."""
        if self._done[key] == "no_verdict_in_time":
            self.counts.late += 1
            self._done[key] = "verdict"
        else:
            self.counts.repeated += 1

    def _act(self, key: str, part: _Part, result: Result | None, why: Why) -> Action:
        action: Literal["pass", "reject"] = self._settings.on_no_decision(part.station)
        if result is not None and result.verdict != "no_decision":
            action = result.verdict
        now = self._clock()
        self._done[key] = why
        while len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        self.counts.parts += 1
        self.counts.on_time += why != "no_verdict_in_time"
        self.counts.defaulted += why == "no_verdict_in_time"
        self.counts.no_decision += why == "no_decision"
        self.counts.passed += action == "pass"
        self.counts.rejected += action == "reject"
        self.in_a_row = 0 if why == "verdict" and action == "pass" else self.in_a_row + 1
        return Action(
            part_id=part.part_id,
            frame_id=part.frame_id,
            station=part.station,
            action=action,
            why=why,
            reason=result.reason if result else None,
            score=result.score if result else None,
            decided_at=rfc3339(datetime.fromtimestamp(now, UTC)),
            slack_ms=round((part.deadline - now) * 1000, 3),
            in_a_row=self.in_a_row,
        )
