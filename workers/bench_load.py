"""How the processors' time of a line grows with its frames, stations and workers: measured, fitted, and predicted.

  cores = frame x frames a second + line + station x stations + worker x workers

A frame's part is what every frame costs wherever it goes; the line's, what the broker does whether frames come or not;
stations and workers cost something of themselves, as their partitions are polled, their positions committed, their
gauges kept. Non-negative least squares of relative errors, as
in `pipeline/speed/cost.py`, which says what a frame's pictures and banks have in it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.progress import Progress, silent
from pipeline.speed.cost import of_each
from workers import bench_rate

TERMS = ("frame", "line", "station", "worker")
_P99_MS = 1000.0  # what is measured is time of processors: a frame may wait


class Point(NamedTuple):
    """A line: how many stations and workers, and frames a second of all together."""

    stations: int
    workers: int
    rate: float


FITTED = (
    Point(1, 1, 10),
    Point(1, 1, 30),
    Point(16, 1, 10),
    Point(16, 1, 30),
    Point(4, 2, 20),
    Point(16, 2, 10),
    Point(16, 2, 30),
)
UNSEEN = (Point(8, 1, 20), Point(8, 2, 25))


def run(
    line: bench_rate.Driven,
    *,
    fitted: Sequence[Point] = FITTED,
    unseen: Sequence[Point] = UNSEEN,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Drive a line of its own for each point.

    Args:
        line: its models and pictures; each point is driven for its seconds.
        fitted: points that the fit is of.
        unseen: points that are predicted, and measured as well.
        progress: told of every point.

    Returns:
        `milliseconds`: of a core, for a frame, and for a second of the line, of a station and of a worker; `rows`: each
        point with the `cores` that it kept busy, those predicted, and `cpu_ms`, where a frame's went;
        `largest_error_unseen`.

    Raises:
        ConfigError: the points cannot tell the terms apart, or frames of one of them were not decided.
    """
    system = np.array([terms(point) for point in fitted], dtype=np.float64)
    if np.linalg.matrix_rank(system) < len(TERMS):
        raise ConfigError("these points cannot tell frames, stations and workers apart: let each of them differ alone")
    rows: list[dict[str, Any]] = []
    for point in (*fitted, *unseen):
        progress("points", len(rows), len(fitted) + len(unseen))
        rows.append(_driven(line, point) | {"unseen": len(rows) >= len(fitted)})
    progress("points", len(rows), len(rows))
    measured = np.array([row["cores"] for row in rows[: len(fitted)]])
    costs = of_each(system, measured)
    for row, point in zip(rows, (*fitted, *unseen), strict=True):
        row["predicted_cores"] = round(float(terms(point) @ costs), 3)
        row["relative_error"] = round(row["predicted_cores"] / row["cores"] - 1, 4)
    return {
        "method": line.method,
        "settings": dict(line.settings),
        "size_bytes": line.size_bytes,
        "seconds": line.seconds,
        "milliseconds": {name: round(1000 * float(each), 3) for name, each in zip(TERMS, costs, strict=True)},
        "largest_error_unseen": max((abs(row["relative_error"]) for row in rows if row["unseen"]), default=None),
        "rows": rows,
    }


def terms(point: Point) -> NDArray[np.float64]:
    """How often each of `TERMS` comes in a second of a line, (4,)."""
    return np.array([point.rate, 1, point.stations, point.workers], dtype=np.float64)


def table(report: dict[str, Any]) -> str:
    """For people."""
    frame, line, station, worker = (f"{report['milliseconds'][name]:.1f} ms" for name in TERMS)
    lines = [
        f"a frame takes {frame} of a core; a second of the line {line}, of a station {station}, of a worker {worker}",
        "stations  workers  frames/s   cores  predicted   error",
    ]
    lines += [
        f"{row['stations']:8}  {row['workers']:7}  {row['rate_per_s']:8g}  {row['cores']:6.3f}  "
        f"{row['predicted_cores']:9.3f}  {row['relative_error']:+6.1%}" + ("  (unseen)" if row["unseen"] else "")
        for row in report["rows"]
    ]
    return "\n".join(lines)


def _driven(line: bench_rate.Driven, point: Point) -> dict[str, Any]:
    report = bench_rate.run(line, stations=point.stations, rate=point.rate, workers=point.workers, p99_ms=_P99_MS)
    (tried,) = report["tried"]
    if not tried["kept_up"]:
        raise ConfigError(f"{point} is more than this machine keeps up with: {tried['said']}; lower its rate")
    return {
        "stations": point.stations,
        "workers": point.workers,
        "rate_per_s": point.rate,
        "engine": report["engine"],
        "cores": round(sum(tried["cpu_ms"].values()) * tried["achieved_per_s"] / 1000, 4),
        "cpu_ms": tried["cpu_ms"],
        "stolen": tried["stolen"],
    }
