"""What the dashboards and rules ask for, and what there is to be asked."""

import re
from pathlib import Path
from typing import Any

from deploy.local.prometheus import DASHBOARDS, RULES, panels, rules
from pipeline.settings import Settings, build
from workers.camera import Sent
from workers.exposition import Exposition
from workers.gate import Gate
from workers.metrics import CameraMetrics, GateMetrics, RefitMetrics, WorkerMetrics

__all__ = ["DASHBOARDS", "ROOT", "RULES", "RUNBOOKS", "alerts", "asked", "exported", "panels", "rules", "series_names"]

ROOT = Path(__file__).resolve().parent.parent
RUNBOOKS = ROOT / "docs/alerts"
_NAME = re.compile(
    r"\b(?:goldline[a-z0-9_:]*|process_[a-z0-9_]+|up)\b(?=\s*[{\[)/*+<>=-]|\s*$|\s+(?:and|or|unless|offset)\b)"
)


def alerts() -> dict[str, dict[str, Any]]:
    """Alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def asked(expr: str) -> set[str]:
    """The metrics that a query names."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expr)))


def expositions() -> list[Exposition]:
    """One of each kind of process."""
    settings: Settings = build({"stations": {"line-1/top": {}}})
    gate = GateMetrics(settings)
    gate.watch(Gate(settings, frozenset(settings.stations)))
    return [WorkerMetrics(settings), gate, CameraMetrics(settings, "line-1/top", Sent()), RefitMetrics(settings)]


def exported() -> dict[str, str]:
    """Every metric of every process by its name in queries, with its type; a histogram by its name alone."""
    families = [family for each in expositions() for family in each.registry.collect()]
    return {f.name + ("_total" if f.type == "counter" else ""): f.type for f in families}


def series_names() -> set[str]:
    """What may be asked for: of a histogram its buckets, sum and count."""
    found = set()
    for name, kind in exported().items():
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found
