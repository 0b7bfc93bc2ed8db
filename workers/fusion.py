"""How what the stations saw of a part becomes one decision.

Every station of a rule has a weight. A part is rejected once the weights of the stations that reject it reach the
rule's limit, and passed once they no longer can; until then it waits, and at its deadline a station that has not said
enough counts as its `on_no_decision`. "Any reject" is the rule where each weight and the limit are 1, and a gate that
acts on single frames has a rule of one station: there is one way to a decision. What a station said is never taken
back, so that the order of the messages before the deadline does not matter.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.settings import Default, Settings
from workers.messages import Result

Why = Literal["verdict", "no_decision", "no_verdict_in_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A station in a rule.

    Attributes:
        weight: what its reject weighs.
        frames: how many frames of a part it takes.
        optional: it may miss a part, which then counts for nothing.
        default: what a frame of it without a verdict counts as.
    """

    weight: float = 1.0
    frames: int = 1
    optional: bool = False
    default: Default


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What decides a part: its stations, the weight that rejects it, and how long it may take, in seconds.

    Attributes:
        bounded: `part_deadline_s` after the first sighting is the last moment, whatever the frames ask for.
        early_s: how long before its trigger a part may have been captured.
    """

    seats: Mapping[str, Seat]
    reject_at: float = 1.0
    part_deadline_s: float
    bounded: bool = True
    early_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one station contributes to a decision.

    Attributes:
        action: what it counts as; None when nothing was awaited of it (any more).
        frame_id: the frame that made it so; empty where there is none.
        frames: how many of its frames had a result.
    """

    action: Default | None
    why: Why | Literal["not_awaited"]
    reason: str | None = None
    score: float | None = None
    frame_id: str = ""
    frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a part.

    Attributes:
        why: `verdict` if the verdicts alone decide; else what the defaults that were needed stand in for.
        station: the first that made it so, with its finding in `findings`.
    """

    action: Default
    why: Why
    station: str
    findings: Mapping[str, Finding]


@dataclass(slots=True)
class _Sighting:
    captured: float
    deadline: float
    result: Result | None = None


@dataclass(slots=True, kw_only=True)
class Part:
    """What is known of a part. Times are wall time, in seconds.

    Attributes:
        part_id: None for a frame without one.
        first: when it was first captured, or when the trigger told of it.
        triggered: its deadline, where a trigger set it.
        reusable: its key may stand for another part later; a frame's id never may.
    """

    key: str
    part_id: str | None
    rule: Rule
    first: float
    triggered: float | None = None
    reusable: bool = True
    _stations: dict[str, dict[str, _Sighting]] = field(default_factory=dict)

    def sight(self, station: str, frame_id: str, *, captured: float, deadline: float) -> None:
        """There is such a frame; what was said of it first stands."""
        self._stations.setdefault(station, {}).setdefault(frame_id, _Sighting(captured, deadline))
        if self.triggered is None:
            self.first = min(self.first, captured)

    def hear(self, station: str, result: Result) -> bool:
        """The result of a frame that was sighted; False if it has one already, which stands."""
        sighting = self._stations[station][result.frame_id]
        if sighting.result is not None:
            return False
        sighting.result = result
        return True

    def trigger(self, at: float) -> None:
        """A trigger told of the part at this time. Frames too old to be of it (its id was used before) are dropped."""
        self.forget(at)
        self.first, self.triggered = at, at + self.rule.part_deadline_s

    def forget(self, now: float) -> None:
        """Drop frames that are too old for a trigger at this time."""
        for sightings in self._stations.values():
            for frame_id in [i for i, s in sightings.items() if self._over(s.captured, s.deadline) < now]:
                del sightings[frame_id]

    def is_newer_than(self, captured: float, deadline: float) -> bool:
        """Whether such a frame is too old to be of the part that the trigger told of: its id was used before."""
        return self.triggered is not None and self._over(captured, deadline) < self.first

    def _over(self, captured: float, deadline: float) -> float:
        return max(deadline, captured + self.rule.early_s)

    @property
    def deadline(self) -> float:
        """The trigger's; else the last of its frames' once each station has its frames, at most the rule's."""
        if self.triggered is not None:
            return self.triggered
        latest = self.first + self.rule.part_deadline_s if self.rule.bounded else math.inf
        if any(len(self._stations.get(name, ())) < seat.frames for name, seat in self.rule.seats.items()):
            return latest
        return min(latest, max(s.deadline for seen in self._stations.values() for s in seen.values()))

    @property
    def until(self) -> float:
        """What is captured up to then, and bears its id, is this part: twice its time, for the sake of stragglers."""
        return self.first + 2 * self.rule.part_deadline_s if self.reusable else math.inf

    def certain(self) -> Decision | None:
        """The decision, once nothing that may still come could change it."""
        return self._decide(final=False)

    def decide(self) -> Decision:
        """The decision at the deadline: what is missing counts as its station's default."""
        decision = self._decide(final=True)
        assert decision is not None  # noqa: S101 - nothing is open at the end
        return decision

    def _decide(self, *, final: bool) -> Decision | None:
        findings = {name: self._finding(name, seat, final=final) for name, seat in self.rule.seats.items()}

        def weight(counts: Callable[[Finding], bool]) -> float:
            # Rounded, so that 0.7 and 0.1 reach a limit of 0.8, as a person would expect.
            return round(math.fsum(self.rule.seats[name].weight for name, f in findings.items() if counts(f)), 9)

        limit = self.rule.reject_at
        rejected = weight(lambda f: f.action == "reject")
        possible = weight(lambda f: f.action == "reject" or (f.action is None and not final))
        if rejected < limit <= possible:
            return None
        action: Default = "reject" if rejected >= limit else "pass"
        # The verdicts alone decide where it is all the same what defaults were taken.
        least = weight(lambda f: (f.action, f.why) == ("reject", "verdict"))
        most = possible + weight(lambda f: f.action == "pass" and f.why != "verdict")
        reasons: tuple[Why, ...] = ("no_verdict_in_time", "no_decision") if least < limit <= most else ("verdict",)
        why, station = next(
            (why, name) for why in reasons for name, f in findings.items() if (f.action, f.why) == (action, why)
        )
        return Decision(action=action, why=why, station=station, findings=findings)

    def _finding(self, station: str, seat: Seat, *, final: bool) -> Finding:
        seen = self._stations.get(station, {})
        results = [s.result for s in seen.values() if s.result is not None]
        rejects = [r for r in results if r.verdict == "reject"]
        undecided = [r for r in results if r.verdict == "no_decision"]
        complete = len(results) == len(seen) >= seat.frames
        if rejects:
            return _found("reject", "verdict", rejects[0], results)
        if undecided and (complete or seat.default == "reject"):
            return _found(seat.default, "no_decision", undecided[0], results)
        if complete:
            return _found("pass", "verdict", results[0], results)
        if final and not (seat.optional and not seen):
            missing = next((frame_id for frame_id, s in seen.items() if s.result is None), "")
            return Finding(action=seat.default, why="no_verdict_in_time", frame_id=missing, frames=len(results))
        return Finding(action=None, why="not_awaited", frames=len(results))


def _found(action: Default, why: Why, result: Result, results: list[Result]) -> Finding:
    return Finding(
        action=action,
        why=why,
        reason=result.reason,
        score=result.score,
        frame_id=result.frame_id,
        frames=len(results),
    )


def rules(settings: Settings, stations: frozenset[str]) -> dict[str, Rule]:
    """The rule of each of a gate's stations: one of its own, or with `[gate] fuse` the same one for all.

    Raises:
        ConfigError: a part that nobody saw would pass, because the stations that must see it weigh too little.
    """
    gate, early_s = settings.gate, settings.frames.deadline_max_ms / 1000
    if gate.fuse == "none":
        return {
            name: Rule(
                seats={name: Seat(default=settings.on_no_decision(name))},
                part_deadline_s=settings.deadline_ms(name) / 1000,
                bounded=False,
                early_s=early_s,
            )
            for name in stations
        }
    weighted, seats = gate.fuse == "weighted", {}
    for name in sorted(stations):
        station = settings.stations[name]
        seats[name] = Seat(
            weight=station.weight if weighted else 1.0,
            frames=station.frames_per_part,
            optional=station.optional,
            default=settings.on_no_decision(name),
        )
    limit = gate.reject_at if weighted else 1.0
    needed = round(math.fsum(seat.weight for seat in seats.values() if not seat.optional), 9)
    if needed < limit:
        raise ConfigError(
            "gate: a part that no camera saw would pass, since the stations that are not optional weigh "
            f"{needed:g} together and reject_at is {limit:g}"
        )
    longest = gate.part_deadline_ms or max(settings.deadline_ms(name) for name in stations)
    rule = Rule(seats=seats, reject_at=limit, part_deadline_s=longest / 1000, early_s=early_s)
    return dict.fromkeys(stations, rule)
