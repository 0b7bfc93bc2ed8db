"""The demo's live view in the terminal."""

from collections import Counter, deque
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workers.demo.tally import STAGES, Tally
from workers.messages import Result

_COLOURS = {"pass": "green", "reject": "red", "no_decision": "yellow"}
_RECENT = 8


class Show:
    """What a person watches while frames go by."""

    def __init__(self, tally: Tally, frames: int) -> None:
        self._tally = tally
        self._frames = frames
        self._recent: deque[Result] = deque(maxlen=_RECENT)
        self._counts: dict[str, Counter[str]] = {}

    def see(self, result: Result) -> None:
        """One more result."""
        self._recent.appendleft(result)
        self._counts.setdefault(result.station or "-", Counter())[result.verdict] += 1

    def __rich__(self) -> RenderableType:
        done = len(self._tally.results)
        stations = Table(expand=True, box=None)
        for column in ("station", "pass", "reject", "no decision"):
            stations.add_column(column, justify="left" if column == "station" else "right")
        for station, counts in sorted(self._counts.items()):
            cells = [Text(str(counts[v]), style=colour) for v, colour in _COLOURS.items()]
            stations.add_row(station, *cells)
        recent = Table(expand=True, box=None)
        for column in ("frame", "verdict", "score / limit", "ms"):
            recent.add_column(column)
        for r in self._recent:
            score = f"{r.score:.3f} / {r.threshold:.3f}" if r.score is not None else r.reason or ""
            recent.add_row(r.frame_id, Text(r.verdict, style=_COLOURS[r.verdict]), score, f"{r.timings_ms.total:.1f}")
        bar = ProgressBar(total=self._frames, completed=done)
        return Panel(Group(bar, stations, recent), title=f"Goldline: {done} of {self._frames} frames decided")


def summary_table(report: dict[str, Any]) -> Table:
    """The demo's end, for people."""
    table = Table(title="What happened", show_header=False)
    latency, gate = report["latency_ms"], report["gate"]
    verdicts = report["verdicts"]
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    trouble = ", ".join(f"{report[kind]} {kind}" for kind in ("lost", "duplicates", "contradictory"))
    rows = [
        ("backbone", report["backbone"]["name"] + f" ({report['backbone']['weights']})"),
        ("frames in", f"{report['frames']}"),
        ("verdicts", f"{report['results']}: {counted}; {trouble}"),
        ("missed defects", f"{report['missed_defects']} of {report['defects']}"),
        ("false rejects", f"{report['false_rejects']} of {report['goods']} goods"),
        ("image AUROC", f"{report['image_auroc']}"),
        ("latency", f"p50 {latency['p50']} ms, p99 {latency['p99']} ms, max {latency['max']} ms, from capture on"),
    ]
    rows += [
        (f"  {STAGES[stage]}", f"p50 {q['p50']} ms, p99 {q['p99']} ms") for stage, q in latency["by_stage"].items()
    ]
    rows.append(("gate", f"{gate['on_time']} on time, {gate['late']} late, {gate['defaulted']} defaulted"))
    for name, value in rows:
        table.add_row(name, value)
    return table


def defects_table(report: dict[str, Any]) -> Table:
    """Found and missed by kind of defect."""
    table = Table(title="Defects by kind")
    for column in ("defect", "frames", "found", "missed", "undecided"):
        table.add_column(column, justify="left" if column == "defect" else "right")
    for kind, counts in report["by_defect"].items():
        table.add_row(kind, *(str(counts[c]) for c in ("frames", "found", "missed", "undecided")))
    return table
