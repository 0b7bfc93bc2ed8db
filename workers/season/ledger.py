"""What a season's strategies cost: counts of each day, rates where the numbers bear them, and costs.

Rates come from the parts that are there for measuring alone; at 0.5 % defects the line's own are too few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Decision
from workers.season.service import Seen
from workers.season.strategies import Night
from workers.season.world import Part

GOODS_NEEDED = 100  # for a share of about 1 %; likewise of defects, for a point of recall
WEEK_DAYS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one part, in a currency of the reader's own."""

    miss: float = 50.0
    false_reject: float = 1.0

    def of(self, *, miss_rate: float, false_reject_rate: float, defect_rate: float) -> float:
        """What 1,000 parts cost."""
        missed = defect_rate * miss_rate * self.miss
        return 1000 * (missed + (1 - defect_rate) * false_reject_rate * self.false_reject)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayOf:
    """One strategy's day.

    Attributes:
        goods, defects: scores of the parts for measuring, each over the threshold of the day; above 1 is a reject.
        line: how many of the line's own parts were defective, missed, falsely rejected.
        night: what it did at the end.
    """

    goods: NDArray[np.float64]
    defects: NDArray[np.float64]
    line: dict[str, int]
    night: Night

    @property
    def body(self) -> dict[str, Any]:
        """Counts, for JSON."""
        return {
            "probe_goods": len(self.goods),
            "false_rejects": int((self.goods > 1).sum()),
            "probe_defects": len(self.defects),
            "misses": int((self.defects <= 1).sum()),
            "line": self.line,
            "night": self.night.outcome,
            "why": self.night.words,
            "drift_alarms": self.night.alarms,
        }


def day_of(probe: Sequence[Seen], goods: int, parts: Sequence[Part], seen: Sequence[Seen], night: Night) -> DayOf:
    """Count a day. The first `goods` of the probe are good, the others defective."""
    ratios = np.array([each.verdict.score / each.verdict.threshold for each in probe])
    passed = [each.verdict.decision is Decision.PASS for each in seen]
    line = {
        "parts": len(parts),
        "defective": sum(part.defect is not None for part in parts),
        "missed": sum(p and part.defect is not None for p, part in zip(passed, parts, strict=True)),
        "falsely_rejected": sum(not p and part.defect is None for p, part in zip(passed, parts, strict=True)),
    }
    return DayOf(goods=ratios[:goods], defects=ratios[goods:], line=line, night=night)


def rates(days: Sequence[DayOf]) -> dict[str, float | None]:
    """Of several days together; None where there are too few parts to say."""
    goods, defects = (np.concatenate([getattr(day, kind) for day in days]) for kind in ("goods", "defects"))
    return {
        "false_reject_rate": float((goods > 1).mean()) if len(goods) >= GOODS_NEEDED else None,
        "miss_rate": float((defects <= 1).mean()) if len(defects) >= GOODS_NEEDED else None,
    }


def weekly(days: Sequence[DayOf]) -> list[dict[str, float | None]]:
    """For each day the rates of the week that ends with it."""
    return [rates(days[max(0, k + 1 - WEEK_DAYS) : k + 1]) for k in range(len(days))]


def misses_at(days: Sequence[DayOf], false_reject_rate: float) -> float:
    """Misses, were each threshold times one factor, such that at most this share of the season's goods is rejected."""
    goods = np.sort(np.concatenate([day.goods for day in days]))[::-1]
    defects = np.concatenate([day.defects for day in days])
    factor = goods[min(int(false_reject_rate * len(goods) + 1e-9), len(goods) - 1)]
    return float((defects <= factor).mean())


def false_rejects_at(days: Sequence[DayOf], miss_rate: float) -> float:
    """False rejects, were each threshold times one factor, such that at most this share of the defects is missed."""
    goods = np.concatenate([day.goods for day in days])
    defects = np.sort(np.concatenate([day.defects for day in days]))
    most = int(miss_rate * len(defects) + 1e-9)
    return float((goods >= defects[most]).mean()) if most < len(defects) else 0.0


def summary(
    days: Sequence[DayOf],
    defective: set[str],
    *,
    costs: Costs,
    defect_rate: float,
    equal_false_rejects: float,
    equal_misses: float | None,
) -> dict[str, Any]:
    """A strategy's season.

    Args:
        days: all of them.
        defective: ids of the line's defective parts.
        costs: of a miss and of a false reject.
        defect_rate: of the line.
        equal_false_rejects: share at which strategies' misses are compared.
        equal_misses: share at which their false rejects are compared; None where too few parts say.
    """
    found = rates(days)
    miss, false = found["miss_rate"], found["false_reject_rate"]
    cost = misses = rejects = None
    if miss is not None and false is not None:
        misses = misses_at(days, equal_false_rejects)
        rejects = None if equal_misses is None else false_rejects_at(days, equal_misses)
        cost = costs.of(miss_rate=miss, false_reject_rate=false, defect_rate=defect_rate)
    nights = [day.night.outcome for day in days]
    learnt = {part for day in days for part in day.night.learnt}
    return {
        **found,
        "miss_rate_at_equal_false_rejects": misses,
        "false_reject_rate_at_equal_misses": rejects,
        "cost_per_1000_parts": cost,
        "line": {key: sum(day.line[key] for day in days) for key in days[0].line},
        "nights": {outcome: nights.count(outcome) for outcome in sorted(set(nights))},
        "drift_alarms": sum(day.night.alarms for day in days),
        "defective_parts_learnt": len(learnt & defective),
    }
