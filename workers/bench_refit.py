"""What a refit beside a line does to its frames: times without and with one, in turns, real servers and processes."""

import statistics
import threading
import time
from pathlib import Path
from typing import Any

from model_store import ModelKey, open_store
from model_store.pool import MARKER, open_pool
from pipeline import synthetic
from pipeline.errors import ConfigError
from pipeline.progress import Progress, silent
from workers.bench_busy import Busy
from workers.bench_rate import Driven, assigned, attempt, fitted, pictures_of
from workers.bench_rig import PART, Reader, play
from workers.camera import Camera
from workers.rig import Process, Rig, temporary

_STATION = "bench/refit"
_KEY = ModelKey(_STATION)
_DEADLINE_MS = 1000
_POOLED = 60
_GOODS, _DEFECTS = 40, 25
_FILL_S = 120.0
# Nothing may end a refit early: what is measured is all of its work, not what it concludes from drawn parts.
_RULES = {"frames_min": _POOLED, "p_min": 0.0, "outliers_max": 1.0, "distance_max": 1e5}


def run(
    *, rate: float, size_bytes: int, seconds: float, turns: int, method: str = "patchcore", progress: Progress = silent
) -> dict[str, Any]:
    """One camera, one worker; every other turn `goldline refit --dry-run` runs beside them, again and again.

    Args:
        rate: frames a second.
        size_bytes: of a frame, about.
        seconds: of a turn.
        turns: of each kind.
        method: of the model, with goldline-s and its defaults.
        progress: told of every turn.

    Returns:
        `without` and `with`: for each turn the frames, what was said, p50 and p99 from capture to result read;
        `p99_ratio`, the median of the turns with over the median of those without; and how many refits went through,
        and the seconds of one.
    """
    images = pictures_of(size_bytes)
    tree: dict[str, Any] = {
        "stations": {_STATION: {"deadline_ms": _DEADLINE_MS}},
        "frames": {"inline_max_bytes": max(900_000, 2 * size_bytes)},
        "refit": {"rules": _RULES},
    }
    rig = temporary(tree)
    tree["pool"] = {"url": f"file://{rig.directory.resolve()}/pool", "quarantine_h": 0.0, "p_min": 0.0}
    tree["refit"]["golden"] = str(_golden(rig.directory.resolve() / "golden"))
    with rig:
        store = open_store(rig.store_url)
        version = store.put(_KEY, fitted(Driven(size_bytes=size_bytes, method=method)).save())
        store.promote(_KEY, version, expected=None, who="bench")
        worker = rig.run("worker", "worker", "--config", str(rig.config))
        assigned(rig, 1)
        camera = Camera(rig.settings, _STATION)
        with Reader(rig) as reader:
            _fill(rig, camera, images, rate)
            busy = Busy.of(rig)
            turned: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
            took: list[float] = []
            for turn in range(2 * turns):
                progress("turns", turn, 2 * turns)
                kind = ("without", "with")[turn % 2]
                beside = _Refits(rig, took) if kind == "with" else None
                row = attempt([camera], images, reader, rate, seconds, float("inf"), busy)
                if beside:
                    beside.end()
                turned[kind].append({name: row[name] for name in ("frames", "said", "p50_ms", "p99_ms")})
            progress("turns", 2 * turns, 2 * turns)
        camera.close()
        worker.check()
    p99 = {kind: statistics.median(row["p99_ms"] for row in rows) for kind, rows in turned.items()}
    return {
        "rate_per_s": rate,
        "frame_bytes": round(statistics.mean(map(len, images))),
        "seconds": seconds,
        **turned,
        "p99_ratio": round(p99["with"] / p99["without"], 3),
        "refits": len(took),
        "refit_s": round(statistics.median(took), 1) if took else None,
    }


class _Refits:
    """Refits one after another, until `end`, which waits for the last."""

    def __init__(self, rig: Rig, took: list[float]) -> None:
        self._rig, self._took = rig, took
        self._stop = threading.Event()
        self._failed: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No further one; the last one's failure is raised here."""
        self._stop.set()
        self._thread.join()
        if self._failed:
            raise ConfigError(self._failed[0])

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            refit = self._start()
            status = refit.popen.wait()
            if status not in {0, 3}:  # 3: refused, after all the work
                self._failed.append(f"goldline refit ended with status {status}: {refit.last_words()}")
                return
            self._took.append(time.monotonic() - started)

    def _start(self) -> Process:
        return self._rig.run("refit", "refit", "--station", _STATION, "--dry-run", "--config", str(self._rig.config))


def _fill(rig: Rig, camera: Camera, images: list[bytes], rate: float) -> None:
    """Frames until the pool has enough."""
    until = time.monotonic() + _FILL_S
    pool = open_pool(rig.settings.pool)
    while not (pool.root / MARKER).exists() or len(pool.usable(_KEY)) < _POOLED:
        if time.monotonic() > until:
            raise TimeoutError(f"{rig.directory}: the pool did not get {_POOLED} frames within {_FILL_S:g} s")
        for _ in play([camera], images, rate=rate, count=round(5 * rate)):
            pass


def _golden(folder: Path) -> Path:
    kinds: list[str | None] = [None] * _GOODS
    kinds += [synthetic.DEFECTS[i % len(synthetic.DEFECTS)] for i in range(_DEFECTS)]
    for i, kind in enumerate(kinds):
        place = folder / _STATION / "default" / ("defect" if kind else "good")
        place.mkdir(parents=True, exist_ok=True)
        drawn = synthetic.draw(PART, seed=50_000 + i, defect=kind, size=(224, 224))
        (place / f"{i}.jpg").write_bytes(synthetic.encode(drawn.image))
    return folder
