"""How many waiting frames to score together, and how long that takes.

Scored together a frame takes less of the device; but whoever is in a batch waits for all of it. So a batch stays within
half the time that its most urgent frame has left, as long as those that go next can afford that. When they cannot,
small batches are what makes frames late, and the queue that they leave makes batches small: it does not end by itself
(measured: 35 frames a second where 65 are possible, each decided just before its deadline or just after). Then a batch
is as large as leaves the most in time, of those in it and of those that go next; the others are given up.

Nor may one station's flood take the time of frames that come to others while the batch runs: see `fair`.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

SHARE = 0.5  # of the time that the most urgent frame has left, for the batch that it is in
_FILL = 0.25  # of the time that another station's frame has in all, for a batch with frames of a flood
_FILL_LEAST = 2.0  # times as long as one takes alone, it may take in any case: smaller ones are a waste
_BACK_S = 0.010  # from a verdict to the gate, about: what comes out later is not in time
_BACK_SHARE = 0.1  # and at most this share of what a frame has in all
_SIZES = 32  # as many are tried, spread over those that there are
_NEWEST = 0.1  # the newest batch's share in what is known of them
_DOUBT = 1.0  # variance of sizes, in frames squared, at which the slope that they show counts half


class Matters(IntEnum):
    """Who may be given up for whom: nobody for one that matters less."""

    LITTLE = 0
    """Of a flood: they take what room there is."""
    SOME = 1
    """All of the station that floods, where its frame is the most urgent: they may be given up for each other."""
    MUCH = 2
    """All others."""


class Candidate(NamedTuple):
    """Who may be in the next batch; `left_s` is until it is due."""

    left_s: float
    matters: Matters = Matters.MUCH


def back_s(all_s: float) -> float:
    """How long before its deadline a frame is due that had `all_s` in all: its verdict has a way to go."""
    return min(_BACK_S, _BACK_SHARE * max(all_s, 0.0))


def size_of(waiting: Sequence[Candidate], takes_s: Callable[[int], float]) -> int:
    """How many to score together: the first so many that have as much time left as so many take.

    Args:
        waiting: in the order in which they have their turn.
        takes_s: seconds for a batch of so many.

    Returns:
        0 where none has the time that it takes alone.
    """
    least_s = takes_s(1)
    hopeful = [each for each in waiting if each.left_s >= least_s]
    if not hopeful:
        return 0
    takes = [takes_s(size) for size in range(len(hopeful) + 1)]
    gentle = _gentle(hopeful, takes)
    if _in_time(hopeful, gentle, takes) == _worth(hopeful):
        return gentle
    sizes = [gentle, *range(len(hopeful), 0, -max(1, len(hopeful) // _SIZES))]
    best: int = max(sizes, key=lambda size: _in_time(hopeful, size, takes))  # of equals the first
    return best


def _gentle(hopeful: Sequence[Candidate], takes: Sequence[float]) -> int:
    """The most that take no more than a share of what the most urgent of them has left, and one at least."""
    size, least_s = 1, hopeful[0].left_s
    for each in hopeful[1:]:
        least_s = min(least_s, each.left_s)
        if takes[size + 1] > SHARE * least_s:
            break
        size += 1
    return size


def _in_time(hopeful: Sequence[Candidate], size: int, takes: Sequence[float]) -> tuple[int, int]:
    """Who is in time if the first `size` that can go together, and all others that matter after them; see `_worth`."""
    together: list[Candidate] = []
    at = 0
    while len(together) < size:
        if at == len(hopeful):
            return -1, -1  # there are not so many
        if hopeful[at].left_s >= takes[size]:
            together.append(hopeful[at])
        at += 1
    rest = [each for each in hopeful[at:] if each.matters]
    until_s = takes[size] + takes[len(rest)]
    return _worth([*together, *(each for each in rest if each.left_s >= until_s)])


def _worth(candidates: Sequence[Candidate]) -> tuple[int, int]:
    """How many matter, all of the station that floods as one; and how many of these there are."""
    some = sum(each.matters is Matters.SOME for each in candidates)
    return sum(each.matters is Matters.MUCH for each in candidates) + (some > 0), some


def fair(size: int, waiting: Sequence[Candidate], takes_s: Callable[[int], float], all_s: float) -> int:
    """How many of a batch are left when a flood fills it only for a share of what another station's new frame has.

    That frame may come just after the batch started: it waits for this one, is in the next, and either may take longer
    than was thought.

    Args:
        size: as `size_of` says.
        waiting: as there.
        takes_s: seconds for a batch of so many.
        all_s: what frames of other stations have when they come.
    """
    most_s = max(_FILL * all_s, _FILL_LEAST * takes_s(1))
    filled = size
    while filled > 1 and takes_s(filled) > most_s:
        filled -= 1
    takes = takes_s(size)
    return max(filled, min(size, sum(each.left_s >= takes and each.matters is Matters.MUCH for each in waiting)))


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
        """Nobody survived what is known here: it may have been a hiccup, and half is believed until more is seen."""
        self._times /= 2
        self._products /= 2

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
