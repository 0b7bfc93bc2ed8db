"""Frames in and verdicts out: received = results + in flight, in whatever moment somebody looks."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.data import Decision, Reason
from workers.exposition import PREFIX, Place

if TYPE_CHECKING:
    from prometheus_client import Metric

NONE = "none"
ANSWERS = ((Decision.PASS, NONE), (Decision.REJECT, NONE), *((Decision.NO_DECISION, reason) for reason in Reason))
_PLACE = ("station", "recipe")


class Flow(Collector):
    """Counts by station and recipe. A frame that comes again after its verdict is counted apart."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._lock = threading.Lock()
        self._received = Counter(dict.fromkeys(places, 0))
        self._repeated = Counter(dict.fromkeys(places, 0))
        self._results = Counter({(*place, *answer): 0 for place in places for answer in ANSWERS})

    def receive(self, place: Place) -> None:
        """A frame was taken in that has no verdict yet."""
        with self._lock:
            self._received[place] += 1

    def repeat(self, place: Place) -> None:
        """A frame came that had its verdict already."""
        with self._lock:
            self._repeated[place] += 1

    def answer(self, place: Place, decision: Decision, reason: str) -> None:
        """The broker has a frame's verdict."""
        with self._lock:
            self._results[(*place, decision, reason)] += 1

    def totals(self) -> dict[str, int]:
        """Of all places together, for the log."""
        with self._lock:
            received, published, repeated = (each.total() for each in (self._received, self._results, self._repeated))
        return {"received": received, "published": published, "repeated": repeated, "in_flight": received - published}

    def collect(self) -> "Iterator[Metric]":
        """All four as they were at one moment."""
        with self._lock:
            received, repeated, results = dict(self._received), dict(self._repeated), dict(self._results)
        came = CounterMetricFamily(f"{PREFIX}frames_received", "Frames that had no verdict yet.", labels=_PLACE)
        again = CounterMetricFamily(f"{PREFIX}frames_repeated", "Frames that had their verdict.", labels=_PLACE)
        waiting = GaugeMetricFamily(f"{PREFIX}frames_in_flight", "Frames that wait for their verdict.", labels=_PLACE)
        out = CounterMetricFamily(f"{PREFIX}results", "Verdicts.", labels=(*_PLACE, "verdict", "reason"))
        in_flight = dict(received)
        for labels, count in results.items():
            out.add_metric([str(label) for label in labels], count)
            in_flight[labels[:2]] -= count
        for family, counts in ((came, received), (again, repeated), (waiting, in_flight)):
            for place, count in counts.items():
                family.add_metric(place, count)
        yield from (came, again, waiting, out)
