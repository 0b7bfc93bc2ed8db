"""What the dashboards and rules ask for, and what there is to be asked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.settings import Settings, build
from workers.camera import Sent
from workers.exposition import Exposition
from workers.gate import Gate
from workers.metrics import CameraMetrics, GateMetrics, RefitMetrics, WorkerMetrics

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = ROOT / "deploy/prometheus/rules.yaml"
RUNBOOKS = ROOT / "docs/alerts"
_NAME = re.compile(
    r"\b(?:goldline[a-z0-9_:]*|process_[a-z0-9_]+|up)\b(?=\s*[{\[)/*+<>=-]|\s*$|\s+(?:and|or|unless|offset)\b)"
)


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that is no row, with its dashboard's name."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield path.stem, panel


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


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
