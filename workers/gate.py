"""The reject gate's subscriber: one action for each part, by its deadline, whatever happens upstream.

A part becomes known by its frame's message, by its result, or by an independent trigger such as a light barrier. No
verdict by the deadline means the station's default, `reject` unless set otherwise. A result that comes later is counted
and never reverses what was done. Frames can only tell of parts while broker and camera work; that is why an actuator
should rest at reject and a pass be permitted one by one, or a trigger be wired to the gate.

What decides a part, be it one frame or all that its stations saw of it, is in `fusion`; here it is decided once.
"""

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pipeline.settings import Settings
from workers.fusion import Decision, Finding, Part, Why, rules
from workers.messages import Result
from workers.wire import Arrival, rfc3339

_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What the gate does with one part.

    Attributes:
        frame_id: of the frame that decided, as are `station`, `reason` and `score`; empty where there was none.
        why: a verdict in time; an explicit `no_decision` in time; or nothing by the deadline.
        slack_ms: time left before the deadline; negative when the default was taken after it.
        in_a_row: parts without a verdict of pass up to and with this one, at all of the gate's stations.
        stations: what each station that decides together contributed.
        traceparent: of the frame that decided, where its message or its result had one.
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
    stations: Mapping[str, Finding] = field(default_factory=dict)
    traceparent: str | None = None

    def body(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


@dataclass(slots=True)
class Counts:
    """`on_time` parts had a verdict or an explicit no_decision by their deadline; `defaulted` had nothing.

    `late` parts had a result after they had been defaulted; `repeated` are all other results that change nothing.
    """

    parts: int = 0
    on_time: int = 0
    late: int = 0
    defaulted: int = 0
    passed: int = 0
    rejected: int = 0
    no_decision: int = 0
    repeated: int = 0


@dataclass(slots=True)
class _Done:
    why: Why
    until: float


class Gate:
    """Decides parts of the stations it stands behind. Pure: told of messages and of the time, it returns actions.

    With `[gate] fuse` a part is what bears one part id, at whichever station; a frame without one is a part of its
    own, which the other stations then miss. What was captured within twice the part's time after its first sighting
    and bears its id is that part, what is captured later another one. At most 200,000 parts wait (of more, the oldest
    is defaulted), and as many that were decided are remembered.

    Args:
        settings: of the line.
        stations: whose parts pass here.
        by_part: know parts by their part id, as a trigger does, instead of by frame id.
        clock: wall time in seconds.

    Raises:
        ConfigError: with these stations, what `[gate]` asks for would pass a part that no camera saw.
    """

    def __init__(
        self,
        settings: Settings,
        stations: frozenset[str],
        *,
        by_part: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules(settings, stations)
        self._fused = settings.gate.fuse != "none"
        self._by_part = by_part
        self._clock = clock
        self._waiting: OrderedDict[str, Part] = OrderedDict()
        self._due: list[tuple[float, str]] = []
        self._done: OrderedDict[str, _Done] = OrderedDict()
        self._early: OrderedDict[str, Part] = OrderedDict()
        self._displaced: list[Action] = []
        self.counts = Counts()
        self.in_a_row = 0

    def see_trigger(self, part_id: str, station: str, at: float) -> Action | None:
        """A part passed the barrier at this time (wall time, seconds): its action, if its verdicts came before it."""
        if station not in self._rules:
            return None
        key = self._key(station, part_id, "")
        if self._is_past(key, at) or self._awaited(key, at):
            return None
        part = self._early.pop(key, None)
        if part is None or self._clock() > at + part.rule.part_deadline_s:
            # Told of too late, a part is defaulted, whatever was said of it.
            part = self._part(key, part_id, station, at)
        part.trigger(at)
        self._await(part)
        return self._settle(part)

    def see_frame(self, arrival: Arrival) -> None:
        """A frame's message names a part."""
        frame, now = arrival.frame, self._clock()
        if frame.station in self._rules:
            captured = frame.captured_at.timestamp() if frame.captured_at else now
            deadline = frame.deadline_at.timestamp() if frame.deadline_at else now
            key = self._key(frame.station, frame.part_id, frame.frame_id)
            self._sight(key, frame.part_id, frame.station, frame.frame_id, captured, deadline)

    def see_result(self, result: Result) -> Action | None:
        """A result: its part's action, once that is certain, else None.

        Where a trigger announces parts, a verdict that comes before its part is kept until the part is there.
        """
        station = result.station or ""
        if station not in self._rules:
            return None
        key = self._key(station, result.part_id, result.frame_id)
        captured, deadline = result.captured_at.timestamp(), result.deadline_at.timestamp()
        part = self._sight(key, result.part_id, station, result.frame_id, captured, deadline)
        if part is None:
            self._count_again(key)
            return None
        if key in self._waiting and self._clock() > part.deadline:
            # It came between the deadline and our own look at the clock: late all the same.
            action = self._act(part, part.decide())
            self._count_again(key)
            return action
        if not part.hear(station, result):
            self.counts.repeated += 1
            return None
        return self._settle(part) if key in self._waiting else None

    def expire(self) -> list[Action]:
        """The actions that are due without a message: the default for every part whose deadline has passed."""
        now, actions, self._displaced = self._clock(), self._displaced, []
        while self._due and self._due[0][0] < now:
            _, key = heapq.heappop(self._due)
            part = self._waiting.get(key)
            if part and part.deadline < now:
                actions.append(self._act(part, part.decide()))
        return actions

    def until_next_s(self, at_most: float) -> float:
        """Seconds until a deadline passes."""
        return min(at_most, max(0.0, self._due[0][0] - self._clock())) if self._due else at_most

    @property
    def waiting(self) -> int:
        """Parts known and not decided."""
        return len(self._waiting)

    def _by_id(self, part_id: str | None) -> bool:
        return bool(part_id) and (self._fused or self._by_part)

    def _key(self, station: str, part_id: str | None, frame_id: str) -> str:
        # With the station: two cameras that count their frames from 1 must not pass for each other.
        if self._by_id(part_id):
            return f"part {part_id}" if self._fused else f"{station}\npart {part_id}"
        return f"{station}\nframe {frame_id}"

    def _part(self, key: str, part_id: str | None, station: str, captured: float) -> Part:
        first = min(captured, self._clock())
        return Part(key=key, part_id=part_id, rule=self._rules[station], first=first, reusable=self._by_id(part_id))

    def _is_past(self, key: str, captured: float) -> bool:
        """Whether what was captured then is a part that was decided."""
        done = self._done.get(key)
        return done is not None and captured <= done.until

    def _awaited(self, key: str, captured: float) -> Part | None:
        """The part that waits under this key, unless its time is over and this is the next to bear its id."""
        part = self._waiting.get(key)
        if part and captured > part.until and self._clock() > part.deadline:
            self._displaced.append(self._act(part, part.decide()))
            return None
        return part

    def _sight(
        self, key: str, part_id: str | None, station: str, frame_id: str, captured: float, deadline: float
    ) -> Part | None:
        """The part that a frame shows; None if that was decided, or can be no more."""
        if self._is_past(key, captured):
            return None
        now, part = self._clock(), self._awaited(key, captured)
        if part is None and self._by_part and self._by_id(part_id):
            part = self._early.setdefault(key, self._part(key, part_id, station, captured))
            part.forget(now)
            part.sight(station, frame_id, captured=captured, deadline=deadline)
            while len(self._early) > _REMEMBERED:
                self._early.popitem(last=False)
        elif part is None:
            part = self._part(key, part_id, station, captured)
            part.sight(station, frame_id, captured=captured, deadline=deadline)
            self._await(part)
        elif part.is_newer_than(captured, deadline):
            return None
        elif now <= (before := part.deadline):
            part.sight(station, frame_id, captured=captured, deadline=deadline)
            if part.deadline != before:
                heapq.heappush(self._due, (part.deadline, key))
        return part

    def _await(self, part: Part) -> None:
        self._waiting[part.key] = part
        heapq.heappush(self._due, (part.deadline, part.key))
        if len(self._waiting) > _REMEMBERED:
            oldest = next(iter(self._waiting.values()))
            self._displaced.append(self._act(oldest, oldest.decide()))

    def _count_again(self, key: str) -> None:
        """A result for a part that is done: late if nothing came before it, else a repeat."""
        done = self._done.get(key)
        if done and done.why == "no_verdict_in_time":
            self.counts.late += 1
            done.why = "verdict"
        else:
            self.counts.repeated += 1

    def _settle(self, part: Part) -> Action | None:
        decision = part.certain()
        return self._act(part, decision) if decision else None

    def _act(self, part: Part, decision: Decision) -> Action:
        now, found = self._clock(), decision.findings[decision.station]
        slack_s = part.deadline - now
        del self._waiting[part.key]
        self._done[part.key] = _Done(decision.why, part.until)
        self._done.move_to_end(part.key)
        while len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        self.counts.parts += 1
        self.counts.on_time += decision.why != "no_verdict_in_time"
        self.counts.defaulted += decision.why == "no_verdict_in_time"
        self.counts.no_decision += decision.why == "no_decision"
        self.counts.passed += decision.action == "pass"
        self.counts.rejected += decision.action == "reject"
        self.in_a_row = 0 if (decision.why, decision.action) == ("verdict", "pass") else self.in_a_row + 1
        return Action(
            part_id=part.part_id,
            frame_id=found.frame_id,
            station=decision.station,
            action=decision.action,
            why=decision.why,
            reason=found.reason,
            score=found.score,
            decided_at=rfc3339(datetime.fromtimestamp(now, UTC)),
            slack_ms=round(slack_s * 1000, 3),
            in_a_row=self.in_a_row,
            stations=decision.findings,
        )
