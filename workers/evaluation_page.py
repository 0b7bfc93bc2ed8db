"""`goldline evaluate --html`: histograms, ROC curves, and the worst misses and false rejects with their heatmaps."""

import base64
import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.trial import Trial
from pipeline.heatmap import encode_picture, overlay

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fbfaf7; max-width: 64rem; margin: 2rem auto; }
h2 { margin-top: 2.5rem; } .row { display: flex; gap: 2rem; flex-wrap: wrap; align-items: end; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid #d9d4c7; } figure div { display: flex; } figure img { width: 50%; }
figcaption { padding: .3rem .5rem; font-size: .8rem; } svg text { font-size: 11px; fill: #1c2430; }
"""
_WIDTH, _HEIGHT, _BINS = 360, 160, 40
_WORST = 6


def render(trials: Sequence[Trial]) -> str:
    """A self-contained page. Everything that came from a file name is escaped."""
    body = "".join(_section(trial) for trial in trials)
    return (
        f"<!doctype html><meta charset=utf-8><title>Goldline: evaluation</title><style>{_STYLE}</style>"
        f"<h1>Evaluation</h1><p>Blue: good parts. Red: defects. Scores are each method's own.</p>{body}"
    )


def _section(trial: Trial) -> str:
    row = trial.row
    defective = np.array([sample.defect is not None for sample in trial.samples])
    goods, defects = trial.scores[~defective], trial.scores[defective]
    misses = sorted(np.flatnonzero(defective).tolist(), key=lambda i: trial.scores[i])[:_WORST]
    rejects = sorted(np.flatnonzero(~defective).tolist(), key=lambda i: -trial.scores[i])[:_WORST]
    told = ", ".join(f"{k} {v}" for k, v in row.body().items() if k not in {"dataset", "method"})
    return (
        f"<h2>{html.escape(row.dataset)}: {html.escape(row.method)}</h2><p>{html.escape(told)}</p>"
        f"<div class=row>{_histogram(goods, defects)}{_roc(goods, defects)}</div>"
        f"<h3>Defects that score lowest</h3>{_frames(trial, misses)}"
        f"<h3>Good parts that score highest</h3>{_frames(trial, rejects)}"
    )


def _histogram(goods: NDArray[np.float32], defects: NDArray[np.float32]) -> str:
    both = np.concatenate([goods, defects])
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-9), _BINS + 1)
    bars = []
    tallest = max(1, *(np.histogram(part, edges)[0].max() for part in (goods, defects) if len(part)))
    for part, colour in ((goods, "#35608f"), (defects, "#b3261e")):
        for place, count in enumerate(np.histogram(part, edges)[0]):
            tall = count / tallest * (_HEIGHT - 20)
            bars.append(
                f'<rect x="{place * _WIDTH / _BINS:.1f}" y="{_HEIGHT - 15 - tall:.1f}" '
                f'width="{_WIDTH / _BINS - 1:.1f}" height="{tall:.1f}" fill="{colour}" fill-opacity=".6"/>'
            )
    ends = zip((0, _WIDTH - 50), (edges[0], edges[-1]), strict=True)
    bars += [f'<text x="{x}" y="{_HEIGHT}">{edge:.4g}</text>' for x, edge in ends]
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="scores">{"".join(bars)}</svg>'


def _roc(goods: NDArray[np.float32], defects: NDArray[np.float32]) -> str:
    lines = np.unique(np.concatenate([goods, defects]))[::-1]
    side = _HEIGHT - 15
    points = [(0.0, float(side))]
    for line in lines:
        false, found = (goods >= line).mean() if len(goods) else 0.0, (defects >= line).mean() if len(defects) else 0.0
        points.append((float(false) * side, side - float(found) * side))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<svg width="{side + 90}" height="{_HEIGHT}" role="img" aria-label="ROC"><polyline points="{path}" '
        f'fill="none" stroke="#35608f" stroke-width="2"/>'
        f'<rect width="{side}" height="{side}" fill="none" stroke="#d9d4c7"/>'
        f'<text x="0" y="{_HEIGHT - 2}">false rejects 0 to 1</text></svg>'
    )


def _frames(trial: Trial, places: Sequence[int]) -> str:
    figures = []
    for place in places:
        sample = trial.samples[place]
        picture, scores = trial.pixels[place].transpose(1, 2, 0), trial.maps[place]
        low, high = float(np.median(trial.maps)), float(np.quantile(trial.maps, 0.999))
        coloured = overlay(picture, scores, low=low, high=max(high, low + 1e-9))
        kind = sample.defect or "good"
        figures.append(
            f"<figure><div>{_img(picture)}{_img(coloured)}</div><figcaption>{html.escape(kind)}: "
            f"{html.escape(sample.path.name)}, score {trial.scores[place]:.4g}</figcaption></figure>"
        )
    return f"<div class=frames>{''.join(figures)}</div>"


def _img(picture: NDArray[np.uint8]) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(encode_picture(picture)).decode()}">'
