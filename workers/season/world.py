"""The season's parts: what is made each day, and what lamp, weather and lots have made of the station by then.

One seed is one season, whoever looks at it: parts, their pictures, what people find of them and when.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from pipeline.data import Frame, Size
from pipeline.errors import ConfigError
from pipeline.synthetic import Change, defects_of, draw, encode

START = datetime(2025, 3, 3, tzinfo=UTC)
STATION = "line-1/top"
_FIRST_H, _SHIFTS_H = 6, 16  # parts come from 6 to 22 o'clock
_YEAR_DAYS = 365
_SERIALS = 10_000_000  # parts of one seed: no two seeds share one
_PARTS_MOST = 2_000_000
_CHANGES_MOST = 10
_DEFECTIVE_FROM, _PROBE_FROM, _CHALLENGE_FROM = 4_000_000, 6_000_000, 9_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a season goes.

    Attributes:
        part: one of `pipeline.synthetic.PARTS`; `size` of its pictures (H, W).
        parts_per_day: made, and inspected.
        defect_rate: share of them that is defective.
        found_share: of the defective parts that pass, how many somebody finds later; the others nobody ever does.
        found_after_h: hours until then, on average; exponentially distributed.
        audits_per_day: parts that a person looks at whatever the verdict, and judges rightly.
        challenges_per_day: known defective parts that are sent through, of `challenges` in turn.
        probe_goods, probe_defects: each day's parts for measuring alone. No model, pool or person sees them.
        lamp_per_day: share of its light that the lamp loses each day; after `lamp_days` it is replaced.
        lot_days: how long a lot of material lasts, about; `lot_spread`: how lots differ in each colour (deviation).
        warmest_c: degrees above those of the first day, a quarter of a year later; `weather_c`: from day to day.
        changes: lamp, lots and warmth change so many times as much as the above says.
        blur_px_per_c, scale_per_c, red_per_c: what a degree does to focus (in pixels of a picture 224 wide), to the
            size that parts appear in, and to red; blue goes the other way.
    """

    part: str = "cap"
    size: Size = (96, 96)
    days: int = 90
    seed: int = 0
    parts_per_day: int = 60
    defect_rate: float = 0.005
    found_share: float = 0.7
    found_after_h: float = 12.0
    audits_per_day: int = 10
    challenges_per_day: int = 8
    challenges: int = 120
    probe_goods: int = 40
    probe_defects: int = 20
    lamp_per_day: float = 0.002
    lamp_days: int = 60
    lot_days: int = 12
    lot_spread: float = 0.02
    warmest_c: float = 8.0
    weather_c: float = 1.5
    changes: float = 1.0
    blur_px_per_c: float = 0.05
    scale_per_c: float = 0.0003
    red_per_c: float = 0.003

    def __post_init__(self) -> None:
        defects_of(self.part)  # raises for a part that there is not
        if self.days < 1 or self.seed < 0 or not 0 <= self.defect_rate < 1:
            raise ConfigError(
                f"a season has 1 day or more, a seed of 0 or more and a defect rate in [0, 1), not {self.days}, "
                f"{self.seed} and {self.defect_rate}"
            )
        if not 0 <= self.changes <= _CHANGES_MOST or not 0 <= self.changes * self.lamp_per_day < 1:
            raise ConfigError(f"changes of a season must be 0 to {_CHANGES_MOST} times the usual, not {self.changes}")
        if not self.audits_per_day <= self.parts_per_day <= _PARTS_MOST // (self.days + 10):
            raise ConfigError(
                f"{self.parts_per_day} parts a day: there must be {self.audits_per_day}, which are audited, and not "
                f"more than {_PARTS_MOST // (self.days + 10)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part that is made and inspected.

    Attributes:
        defect: None if it is good.
        found_at: when somebody finds the defect, if the part has passed; None for never.
        audited: a person looks at it whatever the verdict.
    """

    frame: Frame
    captured_at: datetime
    defect: str | None
    found_at: datetime | None
    audited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What a day brings.

    Attributes:
        change: what the station has become since it was commissioned.
        lot: number of the lot; `warmer_c`: degrees above those of the commissioning; `lamp_age`: in days.
        parts: in the order in which they come.
        challenges: known defective parts, as they look that day.
        probe_goods, probe_defects: for measuring alone.
        ends_at: after the last shift.
    """

    number: int
    change: Change
    lot: int
    warmer_c: float
    lamp_age: int
    parts: tuple[Part, ...]
    challenges: tuple[Frame, ...]
    probe_goods: tuple[Frame, ...]
    probe_defects: tuple[Frame, ...]
    ends_at: datetime


class World:
    """Draws a season, day by day."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self._defects = defects_of(course.part)
        rng = np.random.default_rng([course.seed, 1])
        lots, weather = [], []
        lot, left, anomaly = -1, 0, 0.0
        for _ in range(course.days):
            if left == 0:
                lot, left = lot + 1, int(rng.integers(max(1, course.lot_days * 2 // 3), course.lot_days * 4 // 3 + 2))
            lots.append(lot)
            left -= 1
            weather.append(anomaly)
            anomaly = 0.7 * anomaly + float(rng.normal(0, course.weather_c * math.sqrt(1 - 0.7**2)))
        spread = rng.normal(1, course.changes * course.lot_spread, (lot + 1, 3))
        spread[0] = 1.0  # the first lot is the one that was commissioned with
        self._lots = list(zip(lots, spread[lots].tolist(), strict=True))
        self._weather = weather

    def commissioning(self, count: int) -> list[Frame]:
        """Good parts, verified by a person, from before the first day."""
        return [self._frame(f"c-{k}", k, None, Change()) for k in range(count)]

    def challenges(self) -> list[Frame]:
        """All known defective parts, as they look at the beginning."""
        return [self._challenge(k, "golden", Change()) for k in range(self.course.challenges)]

    def day(self, number: int) -> Day:
        """Day 0 is the first after the commissioning."""
        course, change = self.course, self._change(number)
        first = number * course.challenges_per_day
        probed = number * (course.probe_goods + course.probe_defects) + _PROBE_FROM
        of_defects = probed + course.probe_goods
        return Day(
            number=number,
            change=change,
            lot=self._lots[number][0],
            warmer_c=self._warmer(number),
            lamp_age=number % course.lamp_days,
            parts=tuple(self._parts(number, change)),
            challenges=tuple(
                self._challenge(k % course.challenges, f"d{number}", change)
                for k in range(first, first + course.challenges_per_day)
            ),
            probe_goods=tuple(
                self._frame(f"pg-{k}", k, None, change) for k in range(probed, probed + course.probe_goods)
            ),
            probe_defects=tuple(
                self._frame(f"pd-{k}", k, self._kind(k), change)
                for k in range(of_defects, of_defects + course.probe_defects)
            ),
            ends_at=START + timedelta(days=number, hours=_FIRST_H + _SHIFTS_H + 1),
        )

    def _parts(self, number: int, change: Change) -> list[Part]:
        course = self.course
        rng = np.random.default_rng([course.seed, 2, number])
        audited = set(rng.choice(course.parts_per_day, course.audits_per_day, replace=False).tolist())
        made = []
        for k in range(course.parts_per_day):
            at = START + timedelta(days=number, hours=_FIRST_H + _SHIFTS_H * k / course.parts_per_day)
            spoilt, kind = rng.random() < course.defect_rate, int(rng.integers(len(self._defects)))
            found, after_h = rng.random() < course.found_share, float(rng.exponential(course.found_after_h))
            defect = self._defects[kind] if spoilt else None
            serial = 1_000 + (number + 1) * course.parts_per_day + k + (_DEFECTIVE_FROM if spoilt else 0)
            frame = self._frame(f"d{number}-{k}", serial, defect, change)
            made.append(
                Part(
                    frame=replace(frame, captured_at=at),
                    captured_at=at,
                    defect=defect,
                    found_at=at + timedelta(hours=after_h) if spoilt and found else None,
                    audited=k in audited,
                )
            )
        return made

    def _challenge(self, k: int, when: str, change: Change) -> Frame:
        return self._frame(f"challenge-{k}-{when}", _CHALLENGE_FROM + k, self._kind(k), change)

    def _kind(self, k: int) -> str:
        return self._defects[k % len(self._defects)]

    def _frame(self, name: str, serial: int, defect: str | None, change: Change) -> Frame:
        course = self.course
        drawn = draw(course.part, seed=course.seed * _SERIALS + serial, defect=defect, size=course.size, change=change)
        return Frame(frame_id=name, part_id=name, station=STATION, image=encode(drawn.image))

    def _warmer(self, number: int) -> float:
        season = self.course.warmest_c * math.sin(2 * math.pi * number / _YEAR_DAYS)
        return self.course.changes * (season + self._weather[number])

    def _change(self, number: int) -> Change:
        course, warmer = self.course, self._warmer(number)
        red, green, blue = self._lots[number][1]
        return Change(
            lamp=(1 - course.changes * course.lamp_per_day) ** (number % course.lamp_days),
            lot=(red, green, blue),
            balance=(1 + course.red_per_c * warmer, 1.0, 1 - course.red_per_c * warmer),
            blur_px=course.blur_px_per_c * abs(warmer),
            scale=1 + course.scale_per_c * warmer,
        )
