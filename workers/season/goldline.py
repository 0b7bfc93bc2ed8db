"""Goldline's way through the season: pool, feedback, drift, a refit's review and calibration, as on a real line.

Only the clock is the season's, and there is no Kafka. What a person does is done here: looking at audited parts,
sending known defects through, accepting a baseline half a day after drift was raised, calibrating where no refit did
for a week.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from model_store.pool import DiskPool
from model_store.pool_records import Candidate, Feedback, Pooled
from pipeline.appearance import measure
from pipeline.commissioning import recalibrate
from pipeline.data import Decision, Frame
from pipeline.drift import Drift
from pipeline.inspection import Inspector
from pipeline.refit import Golden, Refitted, refit
from pipeline.refit_settings import Rules
from workers.season.service import Seen, Service
from workers.season.strategies import Night
from workers.season.world import Day, Part

DOWNSTREAM, AUDIT = "final inspection", "audit"
ANSWER_H = 12


@dataclass(kw_only=True)
class Goldline:
    """Refits from the pool, reviewed; thresholds from audited parts; drift pauses it all until a person has looked.

    Attributes:
        goods: verified good parts that no threshold chose and no model has learnt from, the newest last.
        defects: challenge parts as they looked last, by name.
        learnt: sha256 of pictures that the model in service, or one before it, was fitted on.
        anchor: the model that a person put in service last: losses are counted against it, too.
        goods_kept: how many verified goods a threshold rests on at most.
        refit_every: nights from one refit to the next.
        calibrate_every: nights after which the threshold is set anew where no refit brought another.
    """

    service: Service
    pool: DiskPool
    rules: Rules
    goods: list[Frame]
    defects: dict[str, Frame]
    learnt: set[str]
    delta: float
    seed: int
    refit_every: int = 3
    goods_kept: int = 600
    calibrate_every: int = 7
    name: str = "goldline"
    anchor: Inspector = field(init=False)
    _drift: Drift = field(init=False)
    _alarms: int = 0
    _asked: datetime | None = None
    _since: datetime | None = None
    _windows: list[tuple[datetime, datetime]] = field(default_factory=list)
    _today: list[Part] = field(default_factory=list)
    _to_be_found: list[tuple[datetime, Part]] = field(default_factory=list)
    _since_threshold: int = 0

    def __post_init__(self) -> None:
        self._drift = self._new_drift()
        self.anchor = self.service.inspector
        self.pool.create()

    def saw(self, part: Part, seen: Seen) -> None:
        """The pool is offered what passed; the monitors look at the picture; somebody may find a miss later."""
        verdict = seen.verdict
        self._answered(part.captured_at)
        (appearance,) = measure(seen.batch.pixels[part.frame.frame_id][None])
        passed = verdict.decision is Decision.PASS
        raised = self._drift.see(
            appearance,
            score=verdict.score if passed else None,
            version=self.service.version,
            at=part.captured_at,
            frame_id=part.frame.frame_id,
        )
        if raised and self._asked is None:
            self._asked, self._since = part.captured_at, min(each.alarm.since for each in raised)
            self._alarms += 1
        self._today.append(part)
        if passed and part.found_at is not None:
            self._to_be_found.append((part.found_at, part))
        self.pool.admit(
            Candidate(
                key=self.service.key,
                frame_id=part.frame.frame_id,
                part_id=part.frame.part_id,
                captured_at=part.captured_at,
                image=part.frame.image,
                decision=verdict.decision,
                score=verdict.score,
                p_value=verdict.p_value,
                model=self.service.version,
                exposure=appearance.numbers["exposure"] / 255,
            ),
            at=part.captured_at,
        )

    def night(self, day: Day) -> Night:
        """Feedback that has come, then a refit, unless drift waits for a person; or a threshold from audited parts."""
        self._hear(day.ends_at)
        self.defects |= {frame.frame_id.rpartition("-")[0]: frame for frame in day.challenges}
        self._since_threshold += 1
        alarms, self._alarms = self._alarms, 0
        return replace(self._decided(day), alarms=alarms)

    def _decided(self, day: Day) -> Night:
        if (day.number + 1) % self.refit_every:
            return Night()
        if self._asked is not None:
            return Night(outcome="paused", words="drift was raised, and nobody has looked yet")
        made = refit(
            self.service.inspector,
            self._frames(self.pool.usable(self.service.key, at=day.ends_at)),
            Golden(goods=self.goods, defects=list(self.defects.values()), learnt=self.learnt),
            backbone=self.service.backbone,
            rules=self.rules,
            anchor=None if self.anchor is self.service.inspector else self.anchor,
            seed=self.seed + day.number,
        )
        if made.candidate is not None and made.review.complete:
            return self._take(made, day)
        words = "; ".join((*made.review.reasons, *made.review.unchecked))
        if self._since_threshold >= self.calibrate_every:
            return self._calibrate(day, words)
        return Night(outcome="refused", words=words)

    def _hear(self, at: datetime) -> None:
        """What people found by now: audited parts of today, and misses that came to light."""
        found = [(part, DOWNSTREAM, when) for when, part in self._to_be_found if when <= at]
        self._to_be_found = [each for each in self._to_be_found if each[0] > at]
        audited = [part for part in self._today if part.audited]
        found += [(part, AUDIT, at) for part in audited if part.defect is not None]
        self.pool.report(
            [
                Feedback(
                    part_id=part.frame.frame_id, verdict="defect", by=by, at=when, station=self.service.key.station
                )
                for part, by, when in found
            ],
            at=at,
        )
        self.goods = [*self.goods, *(part.frame for part in audited if part.defect is None)][-self.goods_kept :]
        self._today = []

    def _answered(self, at: datetime) -> None:
        """A person has looked by now: a new baseline begins, and what was pooled meanwhile is not learnt from."""
        if self._asked is None or self._since is None or at < self._asked + timedelta(hours=ANSWER_H):
            return
        self._windows.append((self._since, at))
        self._asked = self._since = None
        self._drift = self._new_drift()

    def _frames(self, usable: Sequence[Pooled]) -> list[Frame]:
        """Of the pool, what was not captured while the station drifted."""
        return [
            Frame(
                frame_id=pooled.entry.frame_id,
                part_id=pooled.entry.part_id,
                captured_at=pooled.entry.captured_at,
                image=self.pool.read(pooled),
            )
            for pooled in usable
            if not any(since <= pooled.entry.captured_at <= until for since, until in self._windows)
        ]

    def _take(self, made: Refitted, day: Day) -> Night:
        assert made.candidate is not None  # noqa: S101 - the caller's condition
        fitted_on = set(made.fitted_on)
        self.learnt |= {sha256(frame) for frame in self.goods if frame.frame_id in fitted_on}
        self.service.take(made.candidate, why=f"refit of night {day.number}", lineage={"pool_frames": len(made.used)})
        self._since_threshold = 0
        return Night(outcome="live", learnt=made.used)

    def _calibrate(self, day: Day, words: str) -> Night:
        """`goldline calibrate` on the newest audited parts."""
        own: Inspector = self.service.inspector
        goods = [frame for frame in self.goods if sha256(frame) not in self.learnt]
        again = recalibrate(own, goods, rate=own.threshold.guarantee.rate)
        inspector = Inspector(own.detector, again.threshold, own.view, own.limits, shares=own.shares, device=own.device)
        self.service.take(inspector, why=f"threshold of night {day.number}")
        self.anchor = self.service.inspector
        self._since_threshold = 0
        return Night(outcome="recalibrated", words=words)

    def _new_drift(self) -> Drift:
        return Drift(self.delta, rng=Random(self.seed))  # noqa: S311 - ties, not secrets


def sha256(frame: Frame) -> str:
    """Of the encoded picture."""
    return hashlib.sha256(frame.image).hexdigest()
