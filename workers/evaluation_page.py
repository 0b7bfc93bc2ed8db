"""`goldline evaluate --html`: histograms, ROC curves, and the worst misses and false rejects with their heatmaps."""

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.commissioning import GOODS_MIN
from pipeline.evaluation.trial import Pictures, Row, Trial
from workers import picture_page

_WIDTH, _HEIGHT, _BINS = 360, 160, 40
_WORST = 6
_NAMES = 100
_TOLD_APART = frozenset({"dataset", "method", "unreadable", "lost_masks", "choice"})
_NO_MAP = "<p>This method does not tell where: its pictures have no heatmap.</p>"
_LEGEND = (
    "<h1>Evaluation</h1><p>Blue: good parts. Red: defects. Scores are each method's own.</p>"
    "<p>Figures of pixels (pixel_auroc, aupro) are there where every defect has a mask. A mask is positive where it is "
    "lighter than half after a nearest resize to what the model sees. With a region of interest only pixels inside "
    "it count: what a mask shows outside is no miss.</p><p>Of several seeds the first is shown.</p>"
)
_LOST = (
    "defects with no pixel of their mask left where the model looks (after the resize, in the crop and in the region "
    "of interest): in figures of pixels there is nothing to find of them"
)


def render(sections: Sequence[str]) -> str:
    """A self-contained page of what `section` made."""
    return picture_page.page("evaluation", _LEGEND + "".join(sections))


def warnings(of: Pictures | Row, most: int) -> list[str]:
    """What a person has to know of a dataset before its figures, a line each, with at most so many names."""
    told = (("pictures that cannot be read, in no figure", of.unreadable), (_LOST, of.lost_masks))
    few = f"learnt from {of.learnt_from} good pictures: a model that serves is refused with fewer than {GOODS_MIN}"
    return [few] * (of.learnt_from < GOODS_MIN) + [
        f"{what}: {len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
        for what, names in told
        if names
    ]


def section(trial: Trial) -> str:
    """One trial's part of the page. Everything that came from a file name is escaped."""
    row = trial.row
    defective = np.array([sample.defect is not None for sample in trial.samples])
    goods, defects = trial.scores[~defective], trial.scores[defective]
    misses = sorted(np.flatnonzero(defective).tolist(), key=lambda i: trial.scores[i])[:_WORST]
    rejects = sorted(np.flatnonzero(~defective).tolist(), key=lambda i: -trial.scores[i])[:_WORST]
    told = "; ".join(f"{k}: {_plain(v)}" for k, v in row.body().items() if k not in _TOLD_APART)
    warned = "".join(f"<p><strong>{html.escape(line)}</strong></p>" for line in warnings(row, most=_NAMES))
    tried = "".join(
        f"<p>{'Taken' if each['taken'] else 'Tried'}: {html.escape(each['method'])} "
        f"{html.escape(_plain(each['settings']))} (AUROC {each['planted_auroc']:.3f} of planted defects, "
        f"lead {each['lead']:+.3f} with a standard error of {each['lead_error']:.3f})</p>"
        for each in row.choice
    )
    return (
        f"<h2>{html.escape(row.dataset)}: {html.escape(row.title)}</h2><p>{html.escape(told)}</p>{tried}{warned}"
        f"{'' if trial.localises else _NO_MAP}"
        f"<div class=row>{_histogram(goods, defects)}{_roc(goods, defects)}</div>"
        f"<h3>Defects that score lowest</h3>{_frames(trial, misses)}"
        f"<h3>Good parts that score highest</h3>{_frames(trial, rejects)}"
    )


def _plain(value: object) -> str:
    """A figure, a list or a mapping, for a person."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


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
    bars.append(f'<text x="{_WIDTH / 2 - 40:.0f}" y="{_HEIGHT}">score of a picture</text>')
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
        f'<text x="0" y="{_HEIGHT - 2}">false rejects 0 to 1; upwards, defects found</text></svg>'
    )


def _frames(trial: Trial, places: Sequence[int]) -> str:
    low, high = float(np.median(trial.maps)), float(np.quantile(trial.maps, 0.999))
    pictures = ((trial.pixels[i], trial.maps[i], _caption(trial, i)) for i in places)
    return picture_page.frames(pictures, low=low, high=high)


def _caption(trial: Trial, place: int) -> str:
    sample = trial.samples[place]
    return f"{sample.defect or 'good'}: {sample.path.name}, score {trial.scores[place]:.4g}"
