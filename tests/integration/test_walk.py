"""A frame goes from a camera through a real broker and a real worker to a verdict at the gate."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import TopicPartition

from model_store import ModelKey, open_store
from tests.line import STATIONS, assert_one_verdict_each, results, start_worker
from workers import clients, topics
from workers.camera import Camera
from workers.rig import Rig
from workers.shots import shots

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("at_once", [1, 2])
def test_every_frame_has_one_verdict_and_the_gate_acts_on_it(
    make_line: Callable[..., Rig], pictures: Path, at_once: int
) -> None:
    rig = make_line(heatmaps="all", threads=2, at_once=at_once)
    start_worker(rig)
    actions = rig.directory / "actions.jsonl"
    gate = rig.run("gate", "gate", "--config", str(rig.config), "--output", str(actions))
    rig.wait_for(gate, "gate started")
    cameras = [
        rig.run(
            f"camera-{i}",
            "camera",
            str(pictures),
            "--config",
            str(rig.config),
            "--station",
            station,
            "--rate",
            "40",
            "--count",
            "60",
            "--loop",
            "--shuffle",
            "--json",
            "--manifest",
            str(rig.directory / f"{i}.jsonl"),
        )
        for i, station in enumerate(STATIONS)
    ]
    for camera in cameras:
        assert camera.popen.wait(60) == 0
        assert json.loads((rig.directory / f"{camera.name}.out").read_text())["accepted"] == 60
    sent = [
        json.loads(line)["frame_id"]
        for i in range(2)
        for line in (rig.directory / f"{i}.jsonl").read_text().splitlines()
    ]
    read = results(rig, 120)
    assert_one_verdict_each(read, set(sent))
    assert {r.verdict for r in read} <= {"pass", "reject"}
    current = {s: open_store(rig.store_url).current(ModelKey(s)) for s in STATIONS}
    for station in STATIONS:
        here = [r for r in read if r.station == station]
        assert [r.frame_id for r in here] == sorted(r.frame_id for r in here), "results come in the order of frames"
        assert all(r.model is not None and r.model.version == current[station] for r in here)
    assert gate.end(by=signal.SIGTERM) == 0
    acted = {a["frame_id"]: a for a in map(json.loads, actions.read_text().splitlines())}
    assert acted.keys() == set(sent)
    assert all(acted[r.frame_id]["action"] == r.verdict for r in read)
    heatmaps = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "heatmaps"), from_start=True)
    seen = {record.key for _ in range(30) for record in clients.records(heatmaps)}
    heatmaps.close()
    assert seen == {frame_id.encode() for frame_id in sent}


def test_sigterm_finishes_what_is_in_flight_and_repeats_nothing(make_line: Callable[..., Rig], pictures: Path) -> None:
    rig = make_line(threads=2, at_once=2)
    worker = start_worker(rig)
    sent, camera = _send(rig, pictures, 150, rate=150, close=False)
    asked = time.monotonic()
    assert worker.end(by=signal.SIGTERM) == 0, worker.last_words()
    last = worker.log.read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["event"] == "worker ended", "native libraries have nothing to add"
    assert time.monotonic() - asked < 10
    more, _ = _send(rig, pictures, 100, rate=0)
    start_worker(rig, "second")
    assert_one_verdict_each(results(rig, 250), sent | more)
    assert camera.close().failed == 0


def test_kill_9_loses_and_contradicts_nothing(make_line: Callable[..., Rig], pictures: Path) -> None:
    rig = make_line(threads=2, at_once=2)
    worker = start_worker(rig)
    sent, camera = _send(rig, pictures, 500, rate=100, close=False)
    worker.popen.kill()
    worker.popen.wait()
    more, _ = _send(rig, pictures, 500, rate=0)
    second = start_worker(rig, "second")
    assert_one_verdict_each(results(rig, 1000, within_s=120), sent | more, repeats=True)
    assert '"answered": 0, "event": "assigned"' not in _first_assignment(second.log), "answers were recovered"
    assert camera.close().failed == 0


def test_a_second_worker_shares_the_stations_and_none_contradicts(
    make_line: Callable[..., Rig], pictures: Path
) -> None:
    rig = make_line()
    start_worker(rig)
    sent, _ = _send(rig, pictures, 100, rate=100)
    second = start_worker(rig, "second", assigned=1)
    more, _ = _send(rig, pictures, 100, rate=100)
    assert_one_verdict_each(results(rig, 200), sent | more, repeats=True)
    assert second.end() == 0


@pytest.mark.timeout(240)
def test_a_broker_gone_for_20_s_stops_nobody(make_line: Callable[..., Rig], pictures: Path) -> None:
    rig = make_line(own_broker=True, deadline_ms=60_000)
    start_worker(rig)
    actions = rig.directory / "actions.jsonl"
    gate = rig.run("gate", "gate", "--config", str(rig.config), "--output", str(actions))
    rig.wait_for(gate, "gate started")
    manifest = rig.directory / "manifest.jsonl"
    camera = rig.run(
        "camera",
        "camera",
        str(pictures),
        "--config",
        str(rig.config),
        "--station",
        STATIONS[0],
        "--rate",
        "10",
        "--count",
        "400",
        "--loop",
        "--json",
        "--manifest",
        str(manifest),
    )
    time.sleep(5)
    rig.stop_broker()
    time.sleep(20)
    rig.start_broker()
    assert camera.popen.wait(120) == 0, camera.last_words()
    sent = {json.loads(line)["frame_id"] for line in manifest.read_text().splitlines()}
    assert len(sent) == 400
    assert_one_verdict_each(results(rig, 400, within_s=60), sent, repeats=True)
    for process in rig.processes:
        assert process.popen.poll() in {None, 0}, process.last_words()
    # Offsets move on after the outage: a worker started anew has nothing left to answer.
    until = time.monotonic() + 30
    while _lag(rig) and time.monotonic() < until:
        time.sleep(0.5)
    assert _lag(rig) == 0
    assert gate.end() == 0
    assert {json.loads(line)["frame_id"] for line in actions.read_text().splitlines()} == sent


def test_a_damaged_model_is_refused_and_the_worker_keeps_what_it_has(
    make_line: Callable[..., Rig], pictures: Path, model: object
) -> None:
    rig = make_line()
    worker = start_worker(rig)
    store, key = open_store(rig.store_url), ModelKey(STATIONS[0])
    before = store.current(key)
    assert before is not None
    changed = type(model)(method=model.method, tensors=dict(model.tensors), meta={**model.meta, "note": 1})  # type: ignore[attr-defined]
    version = store.put(key, changed)
    store.promote(key, version, expected=before, who="tests")
    blob = next(
        path for path in Path(rig.store_url.removeprefix("file://")).rglob(f"*{version[2:]}*") if path.is_file()
    )
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(bytes(data))
    rig.wait_for(worker, "model refused", within_s=20) if not _serves(worker.log, version) else None
    sent, _ = _send(rig, pictures, 10, rate=0)
    read = results(rig, 10)
    assert_one_verdict_each(read, sent)
    assert {r.model.version for r in read if r.model} <= {before, version}


def test_missing_topics_are_one_clear_error(tmp_path: Path, broker: str) -> None:
    config = tmp_path / "line.toml"
    config.write_text(f'[kafka]\nbrokers = ["{broker}"]\nprefix = "nobody-made-these"\n[stations."line-1/top"]\n')
    run = subprocess.run(
        [sys.executable, "-m", "workers", "worker", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert "topic nobody-made-these.frames is missing" in run.stderr
    assert "goldline topics create" in run.stderr
    assert "Traceback" not in run.stderr


def _send(rig: Rig, pictures: Path, count: int, *, rate: float, close: bool = True) -> tuple[set[str], Camera]:
    camera = Camera(rig.settings, STATIONS[0])
    sent: set[str] = set()
    camera.play(
        shots(str(pictures), loop=True), rate=rate, count=count, on_shot=lambda _, frame_id: sent.add(frame_id or "")
    )
    if close:
        assert camera.close().accepted == count
    return sent, camera


def _lag(rig: Rig) -> int:
    client = clients.consumer(rig.settings.kafka, group_id=rig.settings.kafka.group)
    frames = TopicPartition(topics.name(rig.prefix, "frames"), rig.settings.partitions()[STATIONS[0]])
    lag = client.end_offsets([frames])[frames] - (client.committed(frames) or 0)
    client.close()
    return lag


def _first_assignment(log: Path) -> str:
    return next(
        line for line in log.read_text().splitlines() if '"event": "assigned"' in line and '"partition": 0' in line
    )


def _serves(log: Path, version: str) -> bool:
    return any(version in line and "model in service" in line for line in log.read_text().splitlines())
