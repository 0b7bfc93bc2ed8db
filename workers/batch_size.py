"""How many waiting frames to score together, and how long that takes.

Scored together a frame takes less of the device; but whoever is in a batch waits for all of it. So a batch stays within
half the time that its most urgent frame has left, as long as those who wait meanwhile can afford that. When they
cannot, small batches are what makes frames late, and the queue that they leave makes batches small: it does not end by
itself (measured: 35 frames a second where 65 are possible, each decided just before its deadline or just after). Then a
batch is as large as leaves the most in time, of those in it and of those that wait; the others are given up.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

SHARE = 0.5  # of the time that the most urgent frame has left, for the batch that it is in
BACK_S = 0.010  # from a verdict to the gate, about: what comes out later is not in time
_NEWEST = 0.1  # the newest batch's share in what is known of them
_DOUBT = 1.0  # variance of sizes, in frames squared, at which the slope that they show counts half


class Candidate(NamedTuple):
    """Who may be in the next batch.

    Attributes:
        left_s: until its deadline.
        counts: whether it matters that it is in time. A flood's next ones, whose station has its turn already, take
            what room there is; nobody is given up for them.
    """

    left_s: float
    counts: bool = True


def size_of(waiting: Sequence[Candidate], takes_s: Callable[[int], float]) -> int:
    """How many to score together: the first so many that have as much time left as so many take.

    Args:
        waiting: in the order in which they have their turn.
        takes_s: seconds for a batch of so many.

    Returns:
        0 where none has the time that it takes alone.
    """
    hopeful = [each for each in waiting if each.left_s >= takes_s(1)]
    if not hopeful:
        return 0
    sizes = [_gentle(hopeful, takes_s), *range(len(hopeful), 0, -1)]
    best: int = max(sizes, key=lambda size: _in_time(hopeful, size, takes_s))  # of equals the first
    return best


def _gentle(hopeful: Sequence[Candidate], takes_s: Callable[[int], float]) -> int:
    """The most that take no more than a share of what the most urgent of them has left, and one at least."""
    size, least_s = 1, hopeful[0].left_s
    for each in hopeful[1:]:
        least_s = min(least_s, each.left_s)
        if takes_s(size + 1) > SHARE * least_s:
            break
        size += 1
    return size


def _in_time(hopeful: Sequence[Candidate], size: int, takes_s: Callable[[int], float]) -> int:
    """How many of those that count are in time if the first `size` that can go together, and all others after them."""
    in_time = together = at = 0
    while together < size:
        if at == len(hopeful):
            return -1  # there are not so many
        together += hopeful[at].left_s >= takes_s(size)
        in_time += hopeful[at].counts and hopeful[at].left_s >= takes_s(size)
        at += 1
    rest = [each.left_s for each in hopeful[at:] if each.counts]
    until_s = takes_s(size) + takes_s(len(rest))
    return in_time + sum(left_s >= until_s for left_s in rest)


class Pace:
    """What batches take: a line through the last ones, older ones counting less. Seconds.

    As long as all have the same size, as in quiet times, it goes through the origin: that a larger batch takes less
    for each frame is seen when there is one.
    """

    def __init__(self) -> None:
        self._weight = self._sizes = self._squares = self._times = self._products = 0.0

    def learn(self, size: int, seconds: float) -> None:
        """A batch of so many took so long."""
        kept = 1 - _NEWEST
        self._weight = kept * self._weight + 1
        self._sizes = kept * self._sizes + size
        self._squares = kept * self._squares + size**2
        self._times = kept * self._times + seconds
        self._products = kept * self._products + size * seconds

    def doubt(self) -> None:
        """Nobody survived what is known here: it may have been a hiccup, and is taken for less until it is seen."""
        self._times *= 1 - _NEWEST
        self._products *= 1 - _NEWEST

    def __call__(self, size: int) -> float:
        """What a batch of so many takes; 0 as long as nothing is known."""
        if not self._weight:
            return 0.0
        mean_size, mean_s = self._sizes / self._weight, self._times / self._weight
        each_s = mean_s / mean_size
        variance = max(0.0, self._squares / self._weight - mean_size**2)
        together = self._products / self._weight - mean_size * mean_s
        slope = min(max((together + _DOUBT * each_s) / (variance + _DOUBT), 0.0), each_s)
        return mean_s + slope * (size - mean_size)
