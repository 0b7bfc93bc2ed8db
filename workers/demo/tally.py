"""What came of the demo's frames: every claim of its summary is counted here."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.figures import auroc
from workers.messages import Result, decode_result
from workers.wire import Record

STAGES = {
    "to_worker": "camera and broker",
    "queue": "waiting in the worker",
    "decode": "decoding",
    "embed": "backbone",
    "score": "search, map and verdict",
    "publish": "publishing",
}
"""Where a frame's time goes, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a frame really shows."""

    path: Path
    station: str
    defect: str | None


@dataclass(slots=True)
class Tally:
    """Results as they come in, the first of each frame standing; `truth` is filled from the cameras' manifests."""

    truth: dict[str, Truth] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    appended_s: dict[str, float] = field(default_factory=dict)
    duplicates: int = 0
    contradictory: int = 0

    def see(self, record: Record) -> Result | None:
        """Take one record of the topic of results in; the result if it is a frame's first."""
        result = decode_result(record.value)
        if result is None:
            return None
        first = self.results.get(result.frame_id)
        if first is not None:
            self.duplicates += 1
            self.contradictory += (first.verdict, first.reason) != (result.verdict, result.reason)
            return None
        self.results[result.frame_id] = result
        self.appended_s[result.frame_id] = record.timestamp_ms / 1000
        return result

    def latencies_ms(self) -> dict[str, list[float]]:
        """Milliseconds by stage; `total` is from capture to the moment that the broker had the result."""
        spent = defaultdict(list)
        for frame_id, result in self.results.items():
            t, decided = result.timings_ms, result.decided_at.timestamp()
            captured = result.captured_at.timestamp()
            spent["total"].append((self.appended_s[frame_id] - captured) * 1000)
            spent["to_worker"].append((decided - captured) * 1000 - t.total)
            spent["publish"].append((self.appended_s[frame_id] - decided) * 1000)
            if result.reason is None:
                for stage in ("queue", "decode", "embed", "score"):
                    spent[stage].append(getattr(t, stage))
        # The broker's times are whole milliseconds: what they round below zero is zero.
        return {stage: [max(v, 0.0) for v in values] for stage, values in spent.items()}

    def summary(self) -> dict[str, Any]:
        """The report's figures, as JSON."""
        sent = self.truth.keys()
        answered = {i: r for i, r in self.results.items() if i in sent}
        verdicts = Counter(r.verdict for r in answered.values())
        reasons = Counter(r.reason for r in answered.values() if r.reason)
        by_kind: dict[str, dict[str, int]] = defaultdict(lambda: {"frames": 0, "found": 0, "missed": 0, "undecided": 0})
        false_rejects = goods = 0
        for frame_id, truth in self.truth.items():
            verdict = answered[frame_id].verdict if frame_id in answered else "no_decision"
            if truth.defect is None:
                goods += 1
                false_rejects += verdict == "reject"
                continue
            kind = by_kind[truth.defect]
            kind["frames"] += 1
            kind[{"reject": "found", "pass": "missed"}.get(verdict, "undecided")] += 1
        latencies = self.latencies_ms()
        return {
            "frames": len(sent),
            "results": len(answered),
            "duplicates": self.duplicates,
            "contradictory": self.contradictory,
            "lost": len(sent) - len(answered),
            "verdicts": {v: verdicts.get(v, 0) for v in ("pass", "reject", "no_decision")},
            "no_decision_reasons": dict(reasons),
            "goods": goods,
            "defects": sum(k["frames"] for k in by_kind.values()),
            "missed_defects": sum(k["missed"] for k in by_kind.values()),
            "false_rejects": false_rejects,
            "by_defect": dict(sorted(by_kind.items())),
            "image_auroc": self.image_auroc(),
            "latency_ms": {
                **quantiles(latencies.get("total", [])),
                "by_stage": {stage: quantiles(latencies.get(stage, [])) for stage in STAGES},
            },
        }

    def image_auroc(self) -> float | None:
        """Of all frames with a score; None where there is nothing to rank.

        Scores of two models cannot be compared: with several, it is their mean, weighted by frames.
        """
        groups: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
        for frame_id, result in self.results.items():
            truth = self.truth.get(frame_id)
            if truth is None or result.score is None or result.model is None:
                continue
            groups[result.model.version][truth.defect is not None].append(result.score)
        found = [(auroc(goods, defects), len(goods) + len(defects)) for goods, defects in groups.values()]
        weighted = [(value, weight) for value, weight in found if value is not None]
        if not weighted:
            return None
        return round(sum(v * w for v, w in weighted) / sum(w for _, w in weighted), 5)


def quantiles(values: list[float]) -> dict[str, float | None]:
    """p50, p99 and maximum, in the values' unit; nulls where there is none."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    return {
        "p50": round(statistics.median(values), 3),
        "p99": round(float(np.quantile(values, 0.99)), 3),
        "max": round(max(values), 3),
    }


def read_manifest(path: Path, station: str, defects: Mapping[str, str | None]) -> dict[str, Truth]:
    """Frame ids of what a camera sent, from its manifest.

    Args:
        path: JSON lines, as `goldline camera --manifest` writes them.
        station: the camera's.
        defects: what each picture shows, by path.
    """
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {
        line["frame_id"]: Truth(path=Path(line["path"]), station=station, defect=defects[line["path"]])
        for line in lines
        if line["frame_id"]
    }
