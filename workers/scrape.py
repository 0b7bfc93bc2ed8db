"""Reads what another process tells at `/metrics`."""

import math
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import ConfigError

_ANSWER_S = 5.0
_MAX_BYTES = 32_000_000


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one moment: name, labels, value."""

    samples: tuple[tuple[str, dict[str, str], float], ...]

    def sum(self, name: str, **labels: str) -> float:
        """All samples of this name that have these labels, added up; 0 where there are none."""
        return math.fsum(value for _, value in self._find(name, labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The same for each value of a label, without those that come to 0."""
        found: dict[str, float] = {}
        for own, value in self._find(name, labels):
            found[own[label]] = found.get(own[label], 0.0) + value
        return {key: value for key, value in found.items() if value}

    def _find(self, name: str, labels: dict[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        for own_name, own, value in self.samples:
            if own_name == name and labels.items() <= own.items():
                yield own, value


def scrape(url: str) -> Scrape:
    """What the process at `http://HOST:PORT` tells now.

    Raises:
        ConfigError: it does not answer, or not with metrics.
    """
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_ANSWER_S) as answer:  # noqa: S310 - a URL of ours
            text = answer.read(_MAX_BYTES).decode()
        families = list(text_string_to_metric_families(text))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url}/metrics does not answer with metrics: {error}") from error
    return Scrape(tuple((s.name, dict(s.labels), s.value) for family in families for s in family.samples))
