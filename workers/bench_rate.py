"""The highest rate that a line keeps up with, real servers and processes, and where the time of a frame goes.

A rate is kept up with when every frame is decided, none is shed or late, and p99 from capture to result read is within
the bound. The search doubles a rate until it is not kept up with, then halves the interval. Others on the same host may
spoil a try: too high is a rate that was not kept up with twice.
"""

import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_store import ModelKey, open_store
from pipeline import commissioning, engines, methods, settings, synthetic
from pipeline.data import Decision, Frame
from pipeline.decode import Limits
from pipeline.errors import ConfigError
from pipeline.inspection import Inspector
from pipeline.progress import Progress, silent
from pipeline.speed.encoded import PART, drawn, side_of
from pipeline.view import View
from workers.backbones import Choice, choose
from workers.bench_busy import Busy
from workers.bench_rig import Reader, Stolen, play, said
from workers.camera import Camera
from workers.rig import Rig, temporary
from workers.words import counted

_GOODS, _FITTED_FIRST = 30, 500  # the seed of the first
_PICTURES = 12
_SHOWN = 25  # one of them is rejected; stations show it in turn, as long as their number and this have no common factor
_DEFECTS_MAX = 50
_DEADLINE_MS = 1000
_WARM_UP = 60
_FIRST_RATE = 8.0
_TRIES = 2
_STEP = 1.1  # the search ends when what is kept up with and what is not lie this near
STAGES = ("to_worker", "queue", "decode", "embed", "score", "rest", "to_reader")


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """A line's models and pictures.

    Attributes:
        size_bytes: of a frame, about: parts are drawn as large as that takes.
        seconds: how long each rate is tried.
        method: of the models, with goldline-s.
        settings: those of the method that are not its paper's.
        engine: what runs it.
    """

    size_bytes: int = 200_000
    seconds: float = 20.0
    method: str = "patchcore"
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: str = engines.AUTO


def run(
    line: Driven,
    *,
    stations: int,
    rate: float,
    workers: int = 1,
    at_once: int = 0,
    p99_ms: float = 200.0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Drive `stations` cameras through a broker and worker processes.

    Args:
        line: what they see, and with what.
        stations: cameras, in turn.
        rate: frames a second, of all together; 0 looks for the highest that is kept up with.
        workers: processes, which share the cores.
        at_once: batches that each computes at the same time; 0 leaves it to the worker.
        p99_ms: the bound, from capture to result read.
        progress: told of every rate.

    Returns:
        `highest_per_s`, the rate that was kept up with (null where none was), and `tried`: for each rate what was said,
        p50 and p99 in milliseconds, `stolen`, what share of the processors' time others on the same host took,
        `cpu_ms`, what a frame took of a core by whose it was, and `waterfall_ms`, medians of the stages that a frame
        goes through.
    """
    names = [f"bench/c{i:02d}" for i in range(stations)]
    goods, inspector = pictures_of(line.size_bytes), fitted(line)
    images, model = shown(inspector, goods, line.size_bytes), inspector.save()
    tree = {
        "stations": {name: {"deadline_ms": _DEADLINE_MS} for name in names},
        "frames": {"inline_max_bytes": max(900_000, 2 * line.size_bytes)},
        "worker": {"threads": max(1, (os.cpu_count() or 1) // workers), "at_once": at_once},
    }
    with temporary(tree) as rig:
        store = open_store(rig.store_url)
        for name in names:
            version = store.put(ModelKey(name), model)
            store.promote(ModelKey(name), version, expected=None, who="bench")
        running = [rig.run(f"worker-{i}", "worker", "--config", str(rig.config)) for i in range(workers)]
        assigned(rig, stations)
        cameras = [Camera(rig.settings, name) for name in names]
        with Reader(rig) as reader:
            warm = {frame_id for frame_id, _ in play(cameras, images, rate=_FIRST_RATE, count=_WARM_UP)}
            reader.wait_for(warm)
            busy = Busy.of(rig)
            tried: list[dict[str, Any]] = []

            def keeps_up(per_s: float) -> bool:
                for _ in range(1 if rate else _TRIES):
                    progress("rates", len(tried), len(tried) + 1)
                    tried.append(attempt(cameras, images, reader, per_s, line.seconds, p99_ms, busy))
                    if tried[-1]["kept_up"]:
                        return True
                return False

            highest = (rate if keeps_up(rate) else None) if rate else _highest(keeps_up)
        for camera in cameras:
            camera.close()
        for worker in running:
            worker.check()
    return {
        "stations": stations,
        "workers": workers,
        "at_once": at_once,
        "method": line.method,
        "settings": dict(line.settings),
        "engine": model.meta["backbone"]["engine"],
        "frame_bytes": round(statistics.mean(map(len, images))),
        "seconds": line.seconds,
        "p99_bound_ms": p99_ms,
        "highest_per_s": round(highest, 1) if highest else None,
        "tried": tried,
    }


def table(report: dict[str, Any]) -> str:
    """For people: rates, and a waterfall of the highest that was kept up with, or else of the lowest."""
    lines = [
        f"{counted(report['stations'], 'station')}, {counted(report['workers'], 'worker')}, {report['method']} run by "
        f"{report['engine']}, "
        f"{report['frame_bytes']:,} bytes a frame: "
        + (f"{report['highest_per_s']:g}/s kept up with" if report["highest_per_s"] else "no rate was kept up with"),
    ]
    lines += [
        f"  {row['rate_per_s']:8.1f}/s  p50 {row['p50_ms']:7.1f} ms  p99 {row['p99_ms']:7.1f} ms  "
        + ", ".join(f"{count} {word}" for word, count in row["said"].items())
        + ("" if row["kept_up"] else "  (not kept up with)")
        for row in report["tried"]
    ]
    kept = [row for row in report["tried"] if row["kept_up"]]
    shown = max(kept, key=lambda row: row["rate_per_s"]) if kept else report["tried"][0]
    lines.append(f"where the time goes at {shown['rate_per_s']:g}/s, medians in ms:")
    total, begun = max(sum(shown["waterfall_ms"].values()), 1e-9), 0.0
    for name, spent in shown["waterfall_ms"].items():
        left, width = round(40 * begun / total), max(1, round(40 * spent / total))
        lines.append(f"  {name:10} {spent:8.2f}  {' ' * left}{'#' * width}")
        begun += spent
    return "\n".join(lines)


def _highest(keeps_up: Any) -> float | None:
    low, rate = None, _FIRST_RATE
    while keeps_up(rate):
        low, rate = rate, 2 * rate
    if low is None:
        return None
    high = rate
    while high / low > _STEP:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if keeps_up(middle) else (low, middle)
    return low


def attempt(
    cameras: Sequence[Camera],
    images: Sequence[bytes],
    reader: Reader,
    rate: float,
    seconds: float,
    p99_ms: float,
    busy: Busy,
) -> dict[str, Any]:
    """Send pictures at a rate for some seconds and wait for their results: what was said, times, and if it kept up."""
    sent: dict[str, float] = {}
    stolen = Stolen()
    busy.seconds()
    began = time.monotonic()
    for frame_id, _ in play(cameras, images, rate=rate, count=max(20, round(rate * seconds))):
        sent[frame_id] = time.monotonic()
    achieved = len(sent) / (time.monotonic() - began)
    reader.wait_for(set(sent))
    words = said(reader.results, set(sent))
    rows = [_stages(reader, frame_id) for frame_id in sent if frame_id in reader.results]
    totals = sorted(sum(row.values()) for row in rows) or [float("nan")]
    p99 = totals[min(len(totals) - 1, int(0.99 * len(totals)))]
    decided = words.keys() <= {"pass", "reject"} and not any(reader.results[each].late for each in sent)
    return {
        "rate_per_s": round(rate, 2),
        "achieved_per_s": round(achieved, 2),
        "frames": len(sent),
        "said": words,
        "p50_ms": round(statistics.median(totals), 2),
        "p99_ms": round(p99, 2),
        "stolen": round(stolen.share(), 4),
        "cpu_ms": {name: round(1000 * spent / len(sent), 2) for name, spent in busy.seconds().items()},
        "kept_up": decided and p99 <= p99_ms and achieved >= rate * 0.97,
        "waterfall_ms": {name: round(statistics.median(row[name] for row in rows), 2) for name in STAGES}
        if rows
        else {},
    }


def _stages(reader: Reader, frame_id: str) -> dict[str, float]:
    """Milliseconds of each stage of one frame; all of this machine's one clock."""
    result = reader.results[frame_id]
    spent = result.timings_ms
    captured, decided = result.captured_at.timestamp(), result.decided_at.timestamp()
    read = reader.read_wall[frame_id]
    received = decided - spent.total / 1000
    known = spent.queue + spent.decode + spent.embed + spent.score
    return {
        "to_worker": max(0.0, (received - captured) * 1000),
        "queue": spent.queue,
        "decode": spent.decode,
        "embed": spent.embed,
        "score": spent.score,
        "rest": max(0.0, spent.total - known),
        "to_reader": max(0.0, (read - decided) * 1000),
    }


def pictures_of(size_bytes: int) -> list[bytes]:
    """Drawn good parts as JPEG, each about as large as asked for."""
    side = side_of(size_bytes)
    return [drawn(i, side) for i in range(_PICTURES)]


def shown(inspector: Inspector, goods: Sequence[bytes], size_bytes: int) -> list[bytes]:
    """What cameras show: goods that the model passes, and as one of 25 a part that it rejects, whatever the model.

    Raises:
        ConfigError: the model passes no good, or rejects no defect.
    """
    side, kinds = side_of(size_bytes), itertools.cycle(synthetic.defects_of(PART))
    defects = (drawn(1000 + i, side, kind) for i, kind in zip(range(_DEFECTS_MAX), kinds, strict=False))
    passed = [image for image in goods if not _rejects(inspector, image)]
    rejected = next((image for image in defects if _rejects(inspector, image)), None)
    if not passed or rejected is None:
        raise ConfigError("the drawn model tells no good part from a defective one: choose another method or engine")
    return [*itertools.islice(itertools.cycle(passed), _SHOWN - 1), rejected]


def _rejects(inspector: Inspector, image: bytes) -> bool:
    (verdict,) = inspector.inspect([Frame(frame_id="", image=image)]).verdicts
    return verdict.decision is Decision.REJECT


def fitted(line: Driven) -> Inspector:
    """A model on goldline-s of drawn parts that no camera shows."""
    view, side = View(), side_of(line.size_bytes)
    goods = [Frame(frame_id=str(i), image=drawn(_FITTED_FIRST + i, side)) for i in range(_GOODS)]
    return commissioning.commission(
        goods,
        method=line.method,
        config=methods.make_config(line.method, line.settings),
        backbone=choose(Choice(name="goldline-s", engine=line.engine), settings.Settings(), view.size),
        view=view,
        limits=Limits(),
        rate=0.05,
    ).inspector


def assigned(rig: Rig, count: int, within_s: float = 120.0) -> None:
    """Wait until every station's partition is some worker's."""
    until = time.monotonic() + within_s
    while sum(p.log.read_text(encoding="utf-8").count('"event": "assigned"') for p in rig.processes) < count:
        for process in rig.processes:
            process.check()
        if time.monotonic() > until:
            raise TimeoutError(f"{rig.directory}: not every partition was assigned")
        time.sleep(0.1)
