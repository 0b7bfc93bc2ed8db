"""What metrics are made of: a registry for each process, labels from the settings alone, series that begin at 0."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from pipeline.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import Metric

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the series

Place: TypeAlias = tuple[str, str]
"""Station and recipe, as labels."""

PREFIX = "goldline_"
OTHER = "other"

_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class Exposition:
    """A process's registry. Whatever is not in the settings has the label `other`.

    Args:
        process: which kind it is.
        settings: whose stations and recipes are label values.

    Attributes:
        stations: as labels, `other` included.
        places: stations and recipes of the settings, as labels.
        all_places: the same with every `other`.
    """

    def __init__(self, process: str, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._recipes = {name: station.recipes for name, station in settings.stations.items()}
        self.stations = [*self._recipes, OTHER]
        self.places: list[Place] = [(name, recipe) for name in self._recipes for recipe in self._recipes[name]]
        self.all_places: list[Place] = [*self.places, *((name, OTHER) for name in self.stations)]
        self._free = self.gauge("disk_free_bytes", "Free on the disk of a folder of the settings.", ("folder",))
        self._size = self.gauge("disk_size_bytes", "Size of that disk.", ("folder",))
        build = self.gauge("build_info", "Always 1: which Goldline this is.", ("version", "process"))
        build.labels(version("goldline"), process).set(1)

    def disk(self, folder: str, *, free: int, size: int) -> None:
        """How full the disk of a folder is, in bytes."""
        self._free.labels(folder).set(free)
        self._size.labels(folder).set(size)

    def station(self, name: str | None) -> str:
        """A station as a label."""
        return name if name is not None and name in self._recipes else OTHER

    def place(self, station: str | None, recipe: str) -> Place:
        """A station and recipe as labels."""
        name = self.station(station)
        return name, recipe if recipe in self._recipes.get(name, ()) else OTHER

    def counter(self, name: str, what: str, labels: Sequence[str] = (), *values: Iterable[str]) -> Counter:
        """A counter; with the values of its labels, every combination of them begins at 0."""
        return _begun(Counter(PREFIX + name, what, labels, registry=self.registry), values)

    def gauge(self, name: str, what: str, labels: Sequence[str] = (), *values: Iterable[str]) -> Gauge:
        """A gauge; `values` as for `counter`."""
        return _begun(Gauge(PREFIX + name, what, labels, registry=self.registry), values)

    def histogram(
        self, name: str, what: str, buckets: Sequence[float], labels: Sequence[str] = (), *values: Iterable[str]
    ) -> Histogram:
        """A histogram; `values` as for `counter`."""
        return _begun(Histogram(PREFIX + name, what, labels, registry=self.registry, buckets=buckets), values)

    def counted(
        self, name: str, what: str, labels: Sequence[str], read: Callable[[], Mapping[Sequence[str], int]]
    ) -> None:
        """A counter that something else counts: it is read when somebody looks."""
        self.registry.register(_Counted(PREFIX + name, what, labels, read))


class _Counted(Collector):
    def __init__(
        self, name: str, what: str, labels: Sequence[str], read: Callable[[], Mapping[Sequence[str], int]]
    ) -> None:
        self._name, self._what, self._labels = name, what, labels
        self._read = read

    def collect(self) -> "Iterator[Metric]":
        family = CounterMetricFamily(self._name, self._what, labels=self._labels)
        for values, count in self._read().items():
            family.add_metric(values, count)
        yield family


def _begun(metric: _Metric, values: Sequence[Iterable[str]]) -> _Metric:
    for each in product(*values) if values else ():
        metric.labels(*each)
    return metric
