"""A refit beside a line at work: from its pool to a candidate, through a trial, into service, and no frame is lost."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_store import ModelKey, open_store, promote
from model_store.pool import MARKER, open_pool
from pipeline import synthetic
from pipeline.data import Artifact
from tests.line import STATIONS, assert_one_verdict_each, results, start_worker
from workers import baselines
from workers.camera import Camera
from workers.rig import Rig
from workers.shots import shots

pytestmark = pytest.mark.kafka

STATION = STATIONS[0]
KEY = ModelKey(STATION)
RULES = {
    "frames_min": 8,
    "frames_max": 12,
    "goods_min": 12,
    "defects_min": 1,
    "folds": 2,
    "p_min": 0.0,
    "distance_max": 1e5,
    "outliers_max": 1.0,
}


def until(holds: Callable[[], object], *, within_s: float = 90.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def refit(rig: Rig) -> dict[str, Any]:
    """What a refit says, run as people run it."""
    command = [sys.executable, "-m", "workers", "refit", "--station", STATION, "--config", str(rig.config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def golden(folder: Path) -> Path:
    """The defects are quite another part: no chance decides whether two models catch them."""
    for kind, part, n in (("good", "cap", 16), ("defect", "gear", 4)):
        place = folder / STATION / "default" / kind
        place.mkdir(parents=True)
        for i in range(n):
            drawn = synthetic.draw(part, seed=5000 + 100 * n + i, size=(96, 96))
            (place / f"{i}.jpg").write_bytes(synthetic.encode(drawn.image))
    return folder


def test_a_refit_learns_tries_and_goes_live_while_the_line_runs(
    make_line: Callable[..., Rig], pictures: Path, model: Artifact, tmp_path: Path
) -> None:
    trial = {"approval": "shadow-then-auto", "shadow_h": 0.0, "shadow_frames": 10, "differ_max": 1.0}
    trial |= {"shadow_rejects": 1, "passes_max": 1.0}
    rig = make_line(
        pool={"url": f"file://{tmp_path}/pool", "quarantine_h": 0.0},
        refit={"golden": str(golden(tmp_path / "golden")), "rules": RULES, **trial},
    )
    store = open_store(rig.store_url)
    meta = dict(model.meta) | {"threshold": dict(model.meta["threshold"]) | {"pixel": 1e3}}
    known = Artifact(method=model.method, tensors=model.tensors, meta=meta)
    first = store.put(KEY, known, lineage={"pictures": ["0" * 12], "method": "patchcore"})
    promote(store, KEY, first, expected=store.current(KEY), who="ana")
    worker = start_worker(rig)
    sent, done = [0], threading.Event()

    def play() -> None:
        camera = Camera(rig.settings, STATION, deadline_ms=60_000)
        while not done.is_set():
            camera.play(shots(str(pictures)), rate=10.0)
            sent[0] += 40
        camera.close()

    traffic = threading.Thread(target=play)
    traffic.start()
    try:
        pool = open_pool(rig.settings.pool)
        until(lambda: (pool.root / MARKER).exists() and len(pool.usable(KEY)) >= 12)
        until(lambda: baselines.place(rig.settings, STATION, "default").exists())
        made = refit(rig)
        assert made["outcome"] == "on trial", made
        assert (store.current(KEY), store.marks(KEY).shadow) == (first, made["version"])
        until(lambda: refit(rig)["outcome"] == "promoted")
        assert store.current(KEY) == made["version"]
        until(lambda: made["version"] in worker.log.read_text())
    finally:
        done.set()
        traffic.join()
    read = results(rig, sent[0])
    assert_one_verdict_each(read, {result.frame_id for result in read})
    assert len({result.frame_id for result in read}) == sent[0]
    assert {result.model.version for result in read if result.model} >= {first, made["version"]}
    assert {result.verdict for result in read} <= {"pass", "reject"}
