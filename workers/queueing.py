"""A worker as a queue: frames of its stations, served in batches; simulated, to see who is decided in time and when.

Frames come by triggers: each station has its period, a phase of its own (or its line's), and some jitter. A worker
makes batches by the rules of `batching.Batcher`, and a batch of n takes a + b n seconds. What cannot be decided before
its deadline is shed, as a worker does. Times are seconds.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.batch_size import Candidate, back_s, size_of

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a worker takes for its frames.

    Attributes:
        per_frame_s: for each frame of a batch.
        per_batch_s: for a batch, whatever is in it.
        batch_max: most frames in a batch.
        wait_s: longest time that a batch's first frame waits for others.
    """

    per_frame_s: float
    per_batch_s: float = 0.0
    batch_max: int = 16
    wait_s: float = 0.005

    def takes_s(self, frames: int) -> float:
        """Seconds for a batch of so many."""
        return self.per_batch_s + self.per_frame_s * frames

    @property
    def capacity(self) -> float:
        """Frames a second in full batches."""
        return self.batch_max / self.takes_s(self.batch_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What stands around the worker: from capture to it, from the verdict to the gate, and both together at most."""

    there_s: float = 0.0
    back_s: float = 0.0
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of frames.

    Attributes:
        captured: (N,) when each was captured.
        latency: (N,) from capture until its verdict is at the gate; infinite without one.
        busy_s: how long the worker computed.
    """

    captured: Times
    latency: Times
    busy_s: float


def arrivals(
    stations: int, rate: float, seconds: float, *, jitter_s: float, together: bool, rng: np.random.Generator
) -> Times:
    """When each frame of some stations is captured, (stations, N).

    Args:
        stations: of one worker.
        rate: of each, frames a second.
        seconds: how long.
        jitter_s: standard deviation of a trigger.
        together: all stations are triggered at the same time; else each has a random phase.
        rng: draws phases and jitter.
    """
    phases = np.zeros((stations, 1)) if together else rng.uniform(0, 1 / rate, (stations, 1))
    times = phases + np.arange(max(1, round(seconds * rate))) / rate
    return np.maximum(times + rng.normal(0, jitter_s, times.shape), 0.0)


def serve(captured: Times, service: Service, way: Way = Way(), *, held: Times | None = None) -> Served:
    """One worker's way through its frames, oldest first.

    Args:
        captured: (N,) when each was captured, in any order.
        service: what a batch takes.
        way: there and back, and the deadline.
        held: (N,) until when each is out of reach, as while nobody has its partition; from the start unless given.
    """
    here = captured + way.there_s if held is None else np.maximum(captured + way.there_s, held)
    order = np.lexsort((captured, here))
    available, due = here[order].tolist(), (captured[order] + way.deadline_s - back_s(way.deadline_s)).tolist()
    decided = [math.inf] * len(available)
    waiting: list[int] = []
    at, free, busy = 0, 0.0, 0.0
    while waiting or at < len(available):
        first = waiting[0] if waiting else at
        last = at + service.batch_max - len(waiting) - 1  # with this one a batch is full
        full = available[last] if last < len(available) else math.inf
        closes = min(full, available[first] + service.wait_s, due[first] - service.takes_s(1))
        start = max(free, available[first], closes)
        end = bisect_right(available, start, at)
        waiting = [i for i in (*waiting, *range(at, end)) if due[i] - start >= service.takes_s(1)]
        at = end
        first_ones = waiting[: service.batch_max]
        size = size_of([Candidate(due[i] - start) for i in first_ones], service.takes_s)
        if not size:
            continue
        batch_s = service.takes_s(size)
        done = [i for i in first_ones if due[i] - start >= batch_s][:size]
        free, busy = start + batch_s, busy + batch_s
        for i in done:
            decided[i] = free
        waiting = [i for i in waiting if i > done[-1]]
    latency = np.empty(len(decided))
    latency[order] = np.asarray(decided) - captured[order] + way.back_s
    return Served(captured=captured, latency=latency, busy_s=busy)
