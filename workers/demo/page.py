"""The demo's report as one self-contained HTML page: figures, a latency histogram, frames and their heatmaps."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data import Frame
from pipeline.inspection import Inspector
from workers.commands.score import overlay_of, picture_of
from workers.demo.tally import STAGES, Tally, Truth
from workers.messages import Result
from workers.picture_page import figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fbfaf7; --line: #d9d4c7; --pass: #1d7a46; --reject: #b3261e;
  --undecided: #8a6d00; --bar: #35608f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --paper: #16191e; --line: #383d46; --pass: #55c284;
  --reject: #ff7a70; --undecided: #e5c14a; --bar: #7ab0e6; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .4rem; overflow: hidden; }
figure div { display: flex; } figure img { width: 50%; display: block; }
figcaption { padding: .4rem .6rem; font-size: .85rem; }
.pass { color: var(--pass); } .reject { color: var(--reject); } .no_decision { color: var(--undecided); }
.wrong { font-weight: 600; } svg rect { fill: var(--bar); } svg text { fill: var(--ink); font-size: 11px; }
"""
_EACH = 6
_FOUND, _KINDS = "Defects found, one of each kind at each station", 4 * _EACH


@dataclass(frozen=True, slots=True)
class Picked:
    """A frame worth showing."""

    truth: Truth
    result: Result


def pick(tally: Tally) -> dict[str, list[Picked]]:
    """Worst misses, worst false rejects, then found defects of every kind and passes: all, of which a few are shown."""
    pairs = [Picked(tally.truth[i], r) for i, r in tally.results.items() if i in tally.truth and r.score is not None]

    def margin(p: Picked) -> float:
        return (p.result.score or 0.0) / (p.result.threshold or 1.0)

    missed = sorted((p for p in pairs if p.truth.defect and p.result.verdict == "pass"), key=margin)
    false = sorted((p for p in pairs if not p.truth.defect and p.result.verdict == "reject"), key=margin, reverse=True)
    kinds: dict[tuple[str, str | None], Picked] = {}
    for p in pairs:
        if p.truth.defect and p.result.verdict == "reject":
            kinds.setdefault((p.truth.station, p.truth.defect), p)
    passed = [p for p in pairs if not p.truth.defect and p.result.verdict == "pass"]
    return {
        "Missed defects, lowest score first": missed,
        "False rejects, highest score first": false,
        _FOUND: list(kinds.values()),
        "Passed": passed,
    }


def render(report: dict[str, Any], tally: Tally, inspectors: dict[str, Inspector]) -> str:
    """The whole page.

    Args:
        report: the figures.
        tally: the frames behind them.
        inspectors: by station, to show what the model saw.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Goldline demo</title><style>{_STYLE}</style>",
        "<h1>Goldline demo</h1>",
        f"<p>{_escape(_headline(report))}</p>",
        _table(_figures(report)),
        "<h2>Latency, capture to result on the broker; logarithmic</h2>",
        histogram(tally.latencies_ms().get("total", [])),
        "<h2>Defects by kind</h2>",
        _defects(report),
        "<p>Of each pair the left is the frame as the model saw it, the right the same under its heatmap.</p>",
        "<p>p is the share of calibration pictures that score as high, itself counted.</p>",
    ]
    for title, picked in pick(tally).items():
        shown = picked[: _KINDS if title == _FOUND else _EACH]
        count = f"{len(picked)}" if len(shown) == len(picked) else f"{len(shown)} of {len(picked)}"
        parts.append(f"<h2>{_escape(title)} ({count})</h2>")
        parts.append("<div class=frames>" if picked else "<p>None.</p>")
        parts += [_figure(p, inspectors[p.truth.station]) for p in shown]
        parts.append("</div>" if picked else "")
    return "\n".join(parts) + "\n"


def histogram(values: Sequence[float], *, width: int = 860, height: int = 200, bins: int = 50) -> str:
    """Milliseconds as an SVG histogram, on a logarithmic axis."""
    if not values:
        return "<p>No results.</p>"
    edges = np.geomspace(max(min(values), 1.0), max(2.0, *values) * 1.001, bins + 1)
    counts, _ = np.histogram(np.maximum(values, edges[0]), edges)
    step, top = width / bins, max(int(counts.max()), 1)
    bars = "".join(
        f"<rect x={i * step:.1f} y={height - 20 - (height - 40) * c / top:.1f} width={step - 1:.1f} "
        f"height={(height - 40) * c / top:.1f}><title>{edges[i]:.1f} to {edges[i + 1]:.1f} ms: {c}</title></rect>"
        for i, c in enumerate(counts)
    )
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if edges[0] <= t <= edges[-1]]
    span = np.log(edges[-1] / edges[0])
    places = [(t, width * np.log(t / edges[0]) / span) for t in ticks]
    labels = "".join(f"<text text-anchor=middle x={x:.0f} y={height - 4}>{t} ms</text>" for t, x in places)
    # With room on either side for half of the first label and of the last.
    return f"<svg viewBox='-30 0 {width + 60} {height}' role=img aria-label='latency histogram'>{bars}{labels}</svg>"


def _headline(report: dict[str, Any]) -> str:
    return (
        f"{report['frames']} frames in, {report['results']} verdicts out, {report['lost']} lost. "
        f"{report['missed_defects']} of {report['defects']} defects missed, "
        f"{report['false_rejects']} of {report['goods']} good parts rejected. "
        f"The gate had {report['gate']['on_time']} in time."
    )


def _figures(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    latency = report["latency_ms"]
    yield "method and backbone", f"{report['model']['method']} on {report['backbone']['name']}"
    yield "backbone's weights", str(report["backbone"]["weights"])
    yield "promise", "; ".join(f"{m['station']}: {m['guarantee']}" for m in report["model"]["versions"])
    yield "image AUROC", str(report["image_auroc"])
    yield "verdicts", ", ".join(f"{n} {v}" for v, n in report["verdicts"].items())
    yield "latency", f"p50 {latency['p50']} ms, p99 {latency['p99']} ms, max {latency['max']} ms"
    for stage, q in latency["by_stage"].items():
        yield f"of which {STAGES[stage]}", f"p50 {q['p50']} ms, p99 {q['p99']} ms"
    yield "gate", ", ".join(f"{report['gate'][k]} {k.replace('_', ' ')}" for k in ("on_time", "late", "defaulted"))


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{_escape(a)}<td>{_escape(b)}" for a, b in rows) + "</table>"


def _defects(report: dict[str, Any]) -> str:
    columns = ("frames", "found", "missed", "undecided")
    head = "<tr><th>defect" + "".join(f"<th class=n>{c}" for c in columns)
    rows = "".join(
        f"<tr><td>{_escape(kind)}" + "".join(f"<td class=n>{counts[c]}" for c in columns)
        for kind, counts in report["by_defect"].items()
    )
    return f"<table>{head}{rows}</table>"


def _figure(picked: Picked, inspector: Inspector) -> str:
    """The frame as the model saw it, beside its heatmap, scored again here by the same code."""
    result, encoded = picked.result, picked.truth.path.read_bytes()
    inspected = inspector.inspect([Frame(frame_id="shown", image=encoded)])
    picture, coloured = picture_of(inspected, "shown"), overlay_of(inspector, inspected, "shown")
    wrong = (picked.truth.defect is None) != (result.verdict == "pass")
    caption = (
        f"<span class='{result.verdict}{' wrong' if wrong else ''}'>{result.verdict}</span> "
        f"{_escape(picked.truth.defect or 'good')}<br>{_escape(result.station or '')} {_escape(result.frame_id)}"
        f"<br>score {result.score:.3f}, limit {result.threshold:.3f}, p {result.p_value:.3f}"
    )
    return figure(picture, coloured, caption)


def _escape(text: str) -> str:
    return html.escape(text)
