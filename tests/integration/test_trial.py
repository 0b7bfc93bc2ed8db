"""A version on trial beside the one in service, through real servers: shadow, canary, and what differs."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from model_store import ModelKey, open_store
from tests.line import start_worker
from workers import bench_rig
from workers.bench_rig import Reader, pictures, play
from workers.camera import Camera
from workers.rig import Rig

STATION = "line-1/top"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    store = open_store(f"file://{tmp_path_factory.mktemp('made')}/models")
    return bench_rig.fit(store, bench_rig.backbone(), (0, 1))


def send(rig, reader, count):
    """Frames to their results."""
    camera = Camera(rig.settings, STATION, deadline_ms=60_000)
    sent = {frame_id for frame_id, _ in play([camera], pictures(8), rate=40.0, count=count)}
    camera.close()
    reader.wait_for(sent)
    assert sent <= reader.results.keys()
    return [reader.results[each] for each in sorted(sent)]


def compare(rig, *arguments):
    command = [sys.executable, "-m", "workers", "models", "compare", STATION, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def until(worker, words):
    end = time.monotonic() + 60
    while words not in worker.log.read_text():
        worker.check()
        assert time.monotonic() < end, worker.last_words()
        time.sleep(0.1)


def test_a_shadow_decides_nothing_a_canary_its_share_and_both_are_compared(broker, tmp_path, models):
    key = ModelKey(STATION)
    with Rig(tmp_path / "line", {"stations": {STATION: {}}}, address=broker) as rig:
        store = open_store(rig.store_url)
        a, b = (store.put(key, inspector.save()) for inspector, _ in models)
        store.promote(key, a, expected=None, who="tests")
        marks = replace(store.marks(key), shadow=b)
        store.mark(key, marks, expected=store.marks(key), who="tests")
        worker = start_worker(rig, assigned=1)
        with Reader(rig) as reader:
            results = send(rig, reader, 40)
            assert {r.model.version for r in results} == {a}
            store.mark(key, replace(marks, canary_share=0.5), expected=marks, who="tests")
            time.sleep(2.5)  # two looks at the store
            shared = send(rig, reader, 60)
        assert {r.model.version for r in shared} == {a, b}
        assert 10 < sum(r.model.version == b for r in shared) < 50
        assert worker.end() == 0
        report = compare(rig, a, b, "--config", str(rig.config), "--store", rig.store_url)
        decided_by_a = 40 + sum(r.model.version == a for r in shared)
        assert report["frames"] == decided_by_a
        assert (report["a"], report["b"]) == (a, b)
        counts = ("both_pass", "both_reject", "a_rejects_alone", "b_rejects_alone")
        assert sum(report[name] for name in counts) == decided_by_a
        assert 0 < report["rank_correlation"] < 1
        folder = tmp_path / "pictures"
        folder.mkdir()
        for i, image in enumerate(pictures(8)):
            (folder / f"{i}.jpg").write_bytes(image)
        offline = compare(rig, a, b, "--frames", str(folder), "--store", rig.store_url)
        assert offline["frames"] == 8
        named = {each["frame"] for each in offline["examples"]}
        assert named <= {str(path) for path in folder.iterdir()}
        assert len(named) == offline["a_rejects_alone"] + offline["b_rejects_alone"]
