"""The walk without the model: what Kafka, Faust and our own code cost, from frame sent to result read."""

import json
import math
import re
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from workers import clients, messages, pauses, topics
from workers.camera import Camera
from workers.rig import temporary
from workers.shots import Shot

STATION = "bench/walk"
# A broker runs for months, and a Java program is slow at first: cold, each message takes a millisecond longer.
_WARM_UP = 1000
_WARM_UP_RATE = 100.0
_PAUSE = re.compile(r"\[(\S+)\].* Pause .* ([\d.]+)ms$")
_LEFT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """Milliseconds from frame sent to result read, of a broker that is warm.

    `stages_ms` are medians and p99s; `slowest` the worst frames, with how long the development broker stood still for a
    garbage collection meanwhile.
    """

    frames: int
    rate: float
    size_bytes: int
    lost: int
    duplicates: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    achieved_rate: float
    growth_ms: float
    stages_ms: dict[str, dict[str, float]]
    slowest: list[dict[str, float]]

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def run(*, size: int, rate: float, frames: int, seed: int = 0) -> Walked:
    """Drive a real broker and a real worker process.

    Args:
        size: bytes of a frame; they are random, as a JPEG's are to Kafka.
        rate: frames a second.
        frames: how many are measured, after those that warm worker and broker up.
        seed: of the bytes.
    """
    tree = {
        "stations": {STATION: {"deadline_ms": 60_000}},
        "frames": {"inline_max_bytes": max(900_000, size)},
        "worker": {"wait_ms": 0.0, "heatmaps": "none", "threads": 1},
    }
    with temporary(tree) as rig:
        worker = rig.run("worker", "worker", "--config", str(rig.config), "--without-model")
        rig.wait_for(worker, "assigned")
        settings = rig.settings
        reader = _Reader(settings)
        reader.start()
        camera = Camera(settings, STATION)
        picture = np.random.default_rng(seed).bytes(size)
        shot = Shot(name="random", image=picture, content_type="application/octet-stream")
        camera.play(iter([shot] * _WARM_UP), rate=_WARM_UP_RATE)
        time.sleep(1.0)
        pauses.settle()
        sent: dict[str, float] = {}
        started = time.monotonic()
        for i in range(frames):
            left = started + i / rate - time.monotonic() if rate else 0.0
            if left > 0:
                time.sleep(left)
            at = time.time()
            sent[camera.send(shot) or ""] = at
        camera.close()
        until = time.monotonic() + _LEFT_S
        while time.monotonic() < until and len(reader.read.keys() & sent.keys()) < frames:
            time.sleep(0.05)
        reader.stop()
        worker.check()
        pauses_of_broker = _pauses(rig.directory / "kafka" / "gc.log")
    return _figures(sent, reader, pauses_of_broker, size=size, rate=rate)


def _pauses(log: Path) -> list[tuple[float, float]]:
    """Begin and end of the development broker's collections, in seconds of the epoch; none of another broker's."""
    if not log.exists():
        return []
    found = (_PAUSE.search(line) for line in log.read_text(encoding="utf-8").splitlines())
    ends = [(datetime.fromisoformat(m[1]).timestamp(), float(m[2]) / 1000) for m in found if m]
    return [(end - lasted, end) for end, lasted in ends]


class _Reader(threading.Thread):
    """Reads results as a gate would, noting when each was read."""

    def __init__(self, settings: Any) -> None:
        super().__init__(daemon=True)
        self._client = clients.tail(settings.kafka, topics.name(settings.kafka.prefix, "results"))
        self._ended = threading.Event()
        self.read: dict[str, tuple[float, float, messages.Result]] = {}
        self.duplicates = 0

    def run(self) -> None:
        while not self._ended.is_set():
            for record in clients.records(self._client, timeout_ms=50):
                now = time.time()
                result = messages.decode_result(record.value)
                if result is None:
                    continue
                self.duplicates += result.frame_id in self.read
                self.read.setdefault(result.frame_id, (now, record.timestamp_ms / 1000, result))
        self._client.close()

    def stop(self) -> None:
        self._ended.set()
        self.join(10)


def _figures(
    sent: dict[str, float], reader: _Reader, broker: list[tuple[float, float]], *, size: int, rate: float
) -> Walked:
    rows = []
    for frame_id, at in sent.items():
        if frame_id not in reader.read:
            continue
        read, appended, result = reader.read[frame_id]
        received = (result.decided_at - timedelta(milliseconds=result.timings_ms.total)).timestamp()
        rows.append(
            {
                "at_s": at,
                "total": (read - at) * 1000,
                "to_worker": (received - at) * 1000,
                "in_worker": result.timings_ms.total,
                "to_broker": (appended - result.decided_at.timestamp()) * 1000,
                "to_reader": (read - appended) * 1000,
                "broker_paused": 1000 * sum(max(0.0, min(read, end) - max(at, begin)) for begin, end in broker),
            }
        )
    total = np.array([r["total"] for r in rows] or [math.nan])
    tenth = max(1, len(rows) // 10)
    first, last = np.median(total[:tenth]), np.median(total[-tenth:])
    start = min(sent.values())
    span = max(r["at_s"] + r["total"] / 1000 for r in rows) - start if rows else math.nan
    stages = {
        name: {
            "p50": _round(np.median(values)),
            "p99": _round(np.quantile(values, 0.99)),
            "max": _round(max(values)),
        }
        for name in ("to_worker", "in_worker", "to_broker", "to_reader")
        if (values := [r[name] for r in rows])
    }
    slowest = sorted(rows, key=lambda r: -r["total"])[:5]
    return Walked(
        frames=len(sent),
        rate=rate,
        size_bytes=size,
        lost=len(sent) - len(rows),
        duplicates=reader.duplicates,
        p50_ms=_round(np.median(total)),
        p99_ms=_round(np.quantile(total, 0.99)),
        p999_ms=_round(np.quantile(total, 0.999)),
        max_ms=_round(total.max()),
        achieved_rate=_round(len(rows) / span),
        growth_ms=_round(last - first),
        stages_ms=stages,
        slowest=[{k: _round(v - (start if k == "at_s" else 0)) for k, v in row.items()} for row in slowest],
    )


def _round(value: Any) -> float:
    return round(float(value), 3)


def table(walked: Walked) -> str:
    """For people."""
    lines = [
        f"{walked.frames} frames of {walked.size_bytes:,} bytes at {walked.rate:g}/s ({walked.achieved_rate:g}/s done)",
        f"{walked.lost} lost, {walked.duplicates} duplicates; milliseconds from frame sent to result read:",
        f"p50 {walked.p50_ms:g}  p99 {walked.p99_ms:g}  p99.9 {walked.p999_ms:g}  max {walked.max_ms:g}",
        f"median of the last tenth minus the first: {walked.growth_ms:+g} ms (a growing queue would show here)",
    ]
    lines += [
        f"  {name:10} p50 {v['p50']:8.2f}  p99 {v['p99']:8.2f}  max {v['max']:8.2f}"
        for name, v in walked.stages_ms.items()
    ]
    lines.append("slowest frames: " + json.dumps(walked.slowest))
    return "\n".join(lines)
