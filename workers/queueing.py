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

from workers.batching import SHARE

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

    @property
    def capacity(self) -> float:
        """Frames a second in full batches."""
        return self.batch_max / (self.per_batch_s + self.per_frame_s * self.batch_max)


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
    available, due = here[order].tolist(), (captured[order] + way.deadline_s).tolist()
    decided = [math.inf] * len(available)
    at, free, busy, piece, batch_s = 0, 0.0, 0.0, 0.0, 0.0
    while at < len(available):
        start = max(free, _closes(available, due, at, batch_s, service))
        while at < len(available) and available[at] <= start and due[at] - start <= piece:
            at += 1  # late, or no time left to score it
        end = bisect_right(available, start, at)
        if end == at:
            continue
        # A batch alone spends at most this share of what its most urgent frame has left.
        room = SHARE * (min((each for each in due[at:end] if each > start), default=start) - start)
        fit = int(min(room / piece, service.batch_max)) if piece else service.batch_max
        frames = min(end - at, max(1, fit))
        batch_s = service.per_batch_s + service.per_frame_s * frames
        piece, free, busy = batch_s / frames, start + batch_s, busy + batch_s
        decided[at : at + frames] = [free] * frames
        at += frames
    latency = np.empty(len(decided))
    latency[order] = np.asarray(decided) - captured[order] + way.back_s
    return Served(captured=captured, latency=latency, busy_s=busy)


def _closes(available: list[float], due: list[float], at: int, batch_s: float, service: Service) -> float:
    """When the batch that begins with this frame closes, as far as the frames decide it."""
    last = at + service.batch_max - 1
    full = available[last] if last < len(available) else math.inf
    return max(available[at], min(full, available[at] + service.wait_s, due[at] - batch_s))
