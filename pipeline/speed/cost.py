"""How a picture's cost grows with its pixels and the bank's rows: measured on a grid, fitted, tried on unseen points.

The terms are what PatchCore does (`methods/patchcore.py`, `pruning.py`):

  a                     whatever a picture is
  b pixels              the backbone, pooling, smoothing: as many patches as pixels / 64
  c rows                re-weighting: one row's neighbours in the bank, once a picture
  d patches rows        the search; where a bound rules most rows out, e in place of d, and f patches for the bound

Non-negative least squares of relative errors, so that a point of 5 ms counts as one of 500.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from pipeline import engines
from pipeline.devices import resolve_device
from pipeline.errors import ConfigError
from pipeline.methods.patchcore import PatchCoreConfig, PatchCoreDetector
from pipeline.progress import Progress, silent
from pipeline.pruning import ROWS_MIN
from pipeline.speed import turns
from pipeline.speed.score import inspector_of, net_of, pictures, timed

TERMS = ("picture", "pixel", "row", "patch_row", "bounded_patch_row", "bounded_patch")
Point = tuple[int, int]
"""A picture's side in pixels, and rows of the bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        sizes: sides of the pictures, in pixels, each with
        bank_rows: every bank; these points are fitted.
        unseen: points that are predicted from the others, and measured in the same turns.
        engine: what runs the backbone.
    """

    sizes: Sequence[int] = (128, 224, 320)
    bank_rows: Sequence[int] = (250, 500, 1500, 4096, 16384)
    unseen: Sequence[Point] = ((176, 1000), (288, 8192))
    backbone: str = "goldline-s"
    engine: str = "openvino-fp32"
    device: str = "cpu"
    repeats: int = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A point of the grid, or an unseen one.

    Attributes:
        bounded: whether a bound rules most rows out.
        ms: median of the turns for a picture, decoded pixels to verdict and map; `ms_low`, `ms_high` its quartiles.
        predicted_ms: by the fit.
        relative_error: of the prediction; above 0 it is too high.
    """

    size: int
    pixels: int
    patches: int
    bank_rows: int
    bounded: bool
    unseen: bool
    ms: float
    ms_low: float
    ms_high: float
    predicted_ms: float = 0.0
    relative_error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What was found: nanoseconds for one of each term, and all points."""

    engine: str
    backbone: str
    nanoseconds: Mapping[str, float]
    rows: Sequence[Row]


def run(asked: Asked, *, progress: Progress = silent) -> Grown:
    """Measure the grid and the unseen points, fit the one, predict the other.

    Raises:
        ConfigError: a name is unknown, the device is not there, or the grid cannot tell the terms apart.
    """
    device = resolve_device(asked.device)
    engine = asked.engine if asked.engine in engines.candidates(device) else "torch"
    seen = [(size, rows) for size in asked.sizes for rows in asked.bank_rows]
    points = {point: point not in seen for point in (*seen, *asked.unseen)}
    net = net_of(asked.backbone, engine, str(device))
    variants, known = {}, {}
    for done, point in enumerate(points):
        size, count = point
        inspector = inspector_of("patchcore", net, count, size, PatchCoreConfig())
        detector = inspector.detector
        assert isinstance(detector, PatchCoreDetector)  # noqa: S101 - it has a bank
        picture = pictures(1, size, first=1000)
        height, width = detector.embed(picture.images.pixels).maps["patch"].shape[2:]
        known[point] = height * width, detector.bounded
        variants[f"{size} {count}"] = timed(inspector, picture)
        progress("banks", done + 1, len(points))
    took = turns.measured(variants, repeats=asked.repeats, progress=progress)
    rows = []
    for (size, count), unseen in points.items():
        each, (patches, bounded) = took[f"{size} {count}"].spread, known[size, count]
        rows.append(
            Row(
                size=size,
                pixels=size * size,
                patches=patches,
                bank_rows=count,
                bounded=bounded,
                unseen=unseen,
                ms=round(each.median * 1000, 3),
                ms_low=round(each.low * 1000, 3),
                ms_high=round(each.high * 1000, 3),
            )
        )
    return grown(rows, engine=engine, backbone=asked.backbone)


def grown(rows: Sequence[Row], *, engine: str, backbone: str) -> Grown:
    """The fit of the points that are not unseen, and its predictions of all.

    Raises:
        ConfigError: they cannot tell the terms apart.
    """
    fitted = fit([row for row in rows if not row.unseen])
    predicted = terms(rows) @ fitted
    told = [
        Row(**{**asdict(row), "predicted_ms": round(float(ms), 3), "relative_error": round(float(ms) / row.ms - 1, 4)})
        for row, ms in zip(rows, predicted, strict=True)
    ]
    each = {name: float(value) * 1e6 for name, value in zip(TERMS, fitted, strict=True)}
    return Grown(engine=engine, backbone=backbone, nanoseconds=each, rows=told)


def terms(rows: Sequence[Row]) -> NDArray[np.float64]:
    """How often each of `TERMS` comes in a picture of each point, (N, 6)."""
    return np.array(
        [
            (
                1,
                row.pixels,
                row.bank_rows,
                0 if row.bounded else row.patches * row.bank_rows,
                row.patches * row.bank_rows if row.bounded else 0,
                row.patches if row.bounded else 0,
            )
            for row in rows
        ],
        dtype=np.float64,
    ).reshape(-1, len(TERMS))


def fit(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Milliseconds for one of each term, (6,), none below 0; 0 for what no point has.

    Raises:
        ConfigError: the points cannot tell the terms apart.
    """
    counts, measured = terms(rows), np.array([row.ms for row in rows])
    there = counts.any(axis=0)
    largest = counts[:, there].max(axis=0, initial=1.0)
    system = counts[:, there] / largest
    if np.linalg.matrix_rank(system) < there.sum() or not there.any():
        raise ConfigError(
            f"{len(rows)} points cannot tell {there.sum()} terms apart: name two sizes at least, and either no bank or "
            f"two below {ROWS_MIN} rows, where searches begin to be bounded, and the same above"
        )
    found = np.zeros(len(TERMS))
    found[there] = of_each(system, measured) / largest
    return found


def of_each(counts: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """What one of each term costs, (T,), none below 0.

    Args:
        counts: (N, T), how often each comes.
        measured: (N,), what they came to; the least squares are of relative errors.
    """
    costs: NDArray[np.float64] = nnls(counts / measured[:, None], np.ones(len(measured)))[0]
    return costs


def body(found: Grown) -> dict[str, Any]:
    """As JSON."""
    unseen = [abs(row.relative_error) for row in found.rows if row.unseen]
    return {
        "machine": turns.machine(),
        "backbone": found.backbone,
        "precision": found.engine,
        "nanoseconds": dict(found.nanoseconds),
        "largest_error_unseen": max(unseen, default=None),
        "rows": [asdict(row) for row in found.rows],
    }
