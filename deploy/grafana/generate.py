"""Writes the Grafana dashboards: `python deploy/grafana/generate.py [FOLDER]`; a test holds them to it.

What they show is in `panels.py`; here places are worked out, and Grafana's JSON made of it.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from panels import DASHBOARDS, Panel

WIDTH, HEIGHT = 24, 7
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(name: str, title: str, content: Sequence[str | Panel]) -> dict[str, Any]:
    """As Grafana keeps it."""
    return {
        "uid": f"goldline-{name}",
        "title": f"Goldline: {title}",
        "tags": ["goldline"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "Goldline", "tags": ["goldline"], "asDropdown": True}],
        "templating": {"list": list(_variables())},
        "panels": list(_placed(content)),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    query = "label_values(goldline_frames_received_total, station)"
    yield {
        "name": "station",
        "label": "Station",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "stations"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(content: Sequence[str | Panel]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, each in enumerate(content, start=1):
        if isinstance(each, str):
            y += HEIGHT if x else 0
            yield {
                "id": number,
                "type": "row",
                "title": each,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
            x, y = 0, y + 1
            continue
        if x + each.width > WIDTH:
            x, y = 0, y + HEIGHT
        yield _panel(each, number, x, y)
        x += each.width


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """As Grafana keeps it."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": "red", "value": panel.red}] if panel.red is not None else []
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": DATASOURCE,
            "expr": expr,
            "legendFormat": legend,
            "instant": table,
            "range": not table,
            **({"format": "table"} if table else {}),
        }
        for i, (expr, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {},
        "targets": targets,
    }


def files() -> dict[str, str]:
    """What belongs in each file."""
    made = {name: dashboard(name, title, content) for name, (title, content) in DASHBOARDS.items()}
    return {f"{name}.json": json.dumps(body, indent=2) + "\n" for name, body in made.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
