"""A line whose models are in Redis: killed, away, back, flushed. No frame is lost, and no model."""

import json
import subprocess
import sys
import time

import pytest

from model_store import ModelKey, open_store
from tests.line import assert_one_verdict_each, start_worker
from workers import bench_rig
from workers.bench_rig import Reader, pictures, play
from workers.camera import Camera
from workers.rig import Process, Rig

STATION = "line-1/top"
KEY = ModelKey(STATION)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    store = open_store(f"file://{tmp_path_factory.mktemp('made')}/models")
    return bench_rig.fit(store, bench_rig.backbone(), (0, 1))


def goldline(*arguments):
    command = [sys.executable, "-m", "workers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def until(worker: Process, words: str, times: int = 1) -> None:
    end = time.monotonic() + 90
    while worker.log.read_text().count(words) < times:
        worker.check()
        assert time.monotonic() < end, worker.last_words()
        time.sleep(0.1)


def test_redis_killed_flushed_and_back_while_frames_run(broker, tmp_path, server, models):
    url = f"redis://{server.address}/0?cache={tmp_path}/cache"
    store = open_store(url)
    with Rig(tmp_path / "line", {"stations": {STATION: {}}}, address=broker, store=url) as rig:
        first, second = (store.put(KEY, inspector.save()) for inspector, _ in models)
        store.promote(KEY, first, expected=None, who="tests")
        carried = tmp_path / "carried"
        exported = goldline("models", "export", STATION, "--out", carried, "--store", url)
        assert exported.returncode == 0, exported.stderr
        worker = start_worker(rig, assigned=1)
        with Reader(rig) as reader:
            camera = Camera(rig.settings, STATION, deadline_ms=60_000)
            sent: set[str] = set()

            def send(count: int) -> set[str]:
                batch = {frame_id for frame_id, _ in play([camera], pictures(8), rate=30.0, count=count)}
                sent.update(batch)
                reader.wait_for(batch)
                return {reader.results[each].model.version for each in batch}

            assert send(20) == {first}
            server.kill()
            until(worker, "store: keeping the models there are")
            assert send(20) == {first}, "with Redis away"
            refused = goldline("models", "promote", STATION, second, "--store", url)
            assert refused.returncode != 0
            assert "Redis" in refused.stderr
            server.start()
            assert [p.version for p in store.history(KEY)] == [first], "no model and no history was lost"
            store.promote(KEY, second, expected=first, who="tests")
            until(worker, f'"version": "{second}"')
            assert send(20) == {second}, "back"
            before = worker.log.read_text().count("was it flushed")
            store._redis.flushall()
            until(worker, "was it flushed", before + 1)
            assert send(20) == {second}, "flushed"
            restored = goldline("models", "import", carried, "--promote", "--store", url)
            assert restored.returncode == 0, restored.stderr
            until(worker, f'"version": "{first}"', 2)
            assert send(20) == {first}, "restored"
            camera.close()
        assert worker.end() == 0
        assert_one_verdict_each(list(reader.results.values()), sent)
        assert all(result.verdict in {"pass", "reject"} for result in reader.results.values())
        shown = goldline("models", "list", STATION, "--store", url, "--json")
        assert [row["version"] for row in json.loads(shown.stdout) if row["current"]] == [first]
