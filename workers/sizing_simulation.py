"""How frames of a planned plant fare: by the load of a worker, and when one ends without a word.

Workers are queues beside each other (`queueing`); stations lie on them as partitions do. Seeded: the same is the same.
"""

import math
from dataclasses import dataclass

import numpy as np

from workers.queueing import Served, Service, arrivals, serve
from workers.sizing import Plan, Plant

_LOADS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
_FRAMES = 20_000  # simulated for each load
_AFTER_S = 60.0
_BEFORE_S = 5.0
_FAILURES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fared:
    """How frames fared.

    Attributes:
        load: what came, over what the worker can do in full batches.
        busy: the share of the time that it computed.
        p50_ms: of the decided, from capture until the verdict is at the gate; so are the others.
        in_time: the share of all frames whose verdict was there by the deadline.
    """

    stations_per_worker: int
    load: float
    busy: float
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    in_time: float


def by_load(plant: Plant, service: Service, *, seed: int) -> list[Fared]:
    """How frames fare with more and more stations on a worker, up to more than it can do."""
    most = service.capacity / plant.rate
    counts = sorted({max(1, round(load * most)) for load in _LOADS})
    return [_fared(plant, service, stations, seed=seed) for stations in counts]


def _fared(plant: Plant, service: Service, stations: int, *, seed: int) -> Fared:
    rng = np.random.default_rng([seed, stations])
    seconds = max(2.0, min(20.0, _FRAMES / (4 * stations * plant.rate)))
    workers = max(1, math.ceil(_FRAMES / (seconds * stations * plant.rate)))
    served = []
    for _ in range(workers):
        came = arrivals(
            stations, plant.rate, seconds, jitter_s=plant.jitter_s, together=plant.together, rng=rng
        ).ravel()
        served.append(serve(came, service, plant.way))
    latency = np.concatenate([each.latency for each in served])
    decided = latency[np.isfinite(latency)] * 1000
    p50, p99, p999 = (
        (round(float(q), 1) for q in np.quantile(decided, (0.5, 0.99, 0.999))) if len(decided) else (None,) * 3
    )
    return Fared(
        stations_per_worker=stations,
        load=round(stations * plant.rate / service.capacity, 3),
        busy=round(min(1.0, sum(each.busy_s for each in served) / (workers * seconds)), 3),
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
        in_time=round(float(np.mean(latency <= plant.deadline_s)), 5),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What one worker's end does to its line: means of several failures.

    Attributes:
        frames: of the line, not decided in time from a little before it until a minute after.
        seconds: from the end until frames are decided in time again; None where that never came.
        load_after: of the others, until another worker takes its place.
        in_time_minute: the share of the line's frames of the minute after it that were decided in time.
        in_time_after: the same of that minute's last half.
    """

    frames: float
    seconds: float | None
    load_after: float
    in_time_minute: float
    in_time_after: float


def one_lost(plant: Plant, planned: Plan, service: Service, *, gap_s: float, pause_s: float, seed: int) -> Lost:
    """One worker of a line ends without a word; after `gap_s` its partitions are others', which pause for `pause_s`.

    Where a line has one worker alone, another takes its place after `gap_s`.
    """
    found = [
        _failure(plant, planned, service, gap_s=gap_s, pause_s=pause_s, rng=np.random.default_rng([seed, i]))
        for i in range(_FAILURES)
    ]
    late = [each.latency > plant.deadline_s for each in found]
    minute = [each.captured >= _BEFORE_S for each in found]
    half = [each.captured >= _BEFORE_S + _AFTER_S / 2 for each in found]
    last = [float(each.captured[bad].max()) if bad.any() else _BEFORE_S for each, bad in zip(found, late, strict=True)]
    left = max(1, planned.workers_per_line - 1)
    over = max(last) - _BEFORE_S
    return Lost(
        frames=round(float(np.mean([bad.sum() for bad in late])), 1),
        seconds=round(over, 1) if over < _AFTER_S - 1 else None,
        load_after=round(math.ceil(plant.per_line / left) * plant.rate / service.capacity, 3),
        in_time_minute=round(1 - float(np.mean([bad[m].mean() for bad, m in zip(late, minute, strict=True)])), 5),
        in_time_after=round(1 - float(np.mean([bad[h].mean() for bad, h in zip(late, half, strict=True)])), 5),
    )


def _failure(
    plant: Plant, planned: Plan, service: Service, *, gap_s: float, pause_s: float, rng: np.random.Generator
) -> Served:
    """A line's frames, from a little before its first worker ends until a minute later."""
    workers, end = planned.workers_per_line, _BEFORE_S + gap_s
    came = arrivals(
        plant.per_line, plant.rate, _BEFORE_S + _AFTER_S, jitter_s=plant.jitter_s, together=plant.together, rng=rng
    )
    homes = [station % workers for station in plant.settings.partitions().values()]
    others = list(range(1, workers)) or [0]
    parts = []
    for worker in range(workers):
        early, mine = [], []
        for station, home in enumerate(homes):
            gone = came[station] >= _BEFORE_S
            if home == worker:
                early.append(came[station] if worker else came[station][~gone])
            if home == 0 and others[station % len(others)] == worker:
                mine.append(came[station][gone])
        captured = np.concatenate([np.concatenate(early or [np.empty(0)]), *mine])
        orphan = np.zeros(len(captured), dtype=bool)
        orphan[len(captured) - sum(map(len, mine)) :] = True
        # Nobody has the orphans until the group is whole again, and the others pause while it is made so.
        paused = (captured >= end) & (captured < end + pause_s)
        held = np.where(orphan & (captured < end + pause_s), end + pause_s, np.where(paused, end + pause_s, 0.0))
        parts.append(serve(captured, service, plant.way, held=held))
    return Served(
        captured=np.concatenate([each.captured for each in parts]),
        latency=np.concatenate([each.latency for each in parts]),
        busy_s=sum(each.busy_s for each in parts),
    )
