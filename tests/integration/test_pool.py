"""Accepted frames into the pool and feedback out of it, through a real broker, a real worker, real commands."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model_store.pool import MARKER, open_pool
from model_store.pool_records import Feedback
from tests.line import STATIONS, results, start_worker
from workers import clients, feedback, messages, topics, wire
from workers.camera import Camera
from workers.rig import Process, Rig
from workers.shots import shots

pytestmark = pytest.mark.kafka

HOSTILE = (
    (b"p", b"{"),
    (b"p", b"\xff\xfe"),
    (b"p", None),
    (None, json.dumps({"part_id": "p", "verdict": "defect", "by": "x", "at": "2025-06-15T12:00:00Z"}).encode()),
    (b"p", json.dumps({"part_id": "p", "verdict": ["defect"], "by": "x", "at": 7}).encode()),
    (b"p", b"[" * 100_000),
    (b"p", b"x" * 900_000),
)


def until(holds: Callable[[], object], *, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def goldline(rig: Rig, *arguments: str) -> Any:
    """What a command prints with --json, run as people run it."""
    command = [sys.executable, "-m", "workers", *arguments, "--config", str(rig.config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def send(rig: Rig, messages_: list[tuple[bytes | None, bytes | None]]) -> None:
    """Raw messages onto the topic of feedback."""
    client = clients.producer(rig.settings.kafka)
    for key, value in messages_:
        client.send(topics.name(rig.prefix, "feedback"), key=key, value=value).get(timeout=30)
    client.close()


def frame(rig: Rig, part_id: str, image: bytes) -> str:
    """One frame of a part at the first station; its id."""
    frame_id = uuid.uuid4().hex
    headers = wire.frame_headers(
        frame_id=frame_id,
        part_id=part_id,
        source="tests",
        captured_at=datetime.now(UTC),
        content_type="image/jpeg",
        deadline_ms=60_000,
    )
    client = clients.producer(rig.settings.kafka)
    topic, partition = topics.name(rig.prefix, "frames"), rig.settings.partitions()[STATIONS[0]]
    client.send(topic, key=STATIONS[0].encode(), value=image, headers=headers, partition=partition).get(timeout=30)
    client.close()
    return frame_id


def logged(worker: Process, event: str) -> dict[str, Any]:
    """The last line of a worker's log with this event."""
    lines = [json.loads(each) for each in worker.log.read_text().splitlines() if event in each]
    assert lines, worker.last_words()
    return dict(lines[-1])


def test_accepted_frames_are_pooled_and_feedback_takes_them_out(
    make_line: Callable[..., Rig], pictures: Path, tmp_path: Path
) -> None:
    rig = make_line(pool={"url": f"file://{tmp_path}/pool"})
    pool = open_pool(rig.settings.pool)
    worker = start_worker(rig)
    camera = Camera(rig.settings, STATIONS[0], deadline_ms=60_000)
    camera.play(shots(str(pictures)), rate=40.0)
    camera.close()
    answered = results(rig, 40)
    wanted = {r.frame_id: r for r in answered if r.verdict == "pass" and (r.p_value or 0.0) >= 0.1}
    assert 10 < len(wanted) < 40
    until((pool.root / MARKER).exists)
    until(lambda: {pooled.entry.frame_id for pooled in pool.frames()} == wanted.keys())

    (row,) = goldline(rig, "pool", "stats")["stations"]
    assert (row["station"], row["frames"], row["quarantined"], row["usable"]) == (STATIONS[0], *[len(wanted)] * 2, 0)
    assert sum(row["days"].values()) == len(wanted)
    first, second, third, *_ = sorted(wanted.values(), key=lambda r: r.frame_id)
    parts = [str(r.part_id) for r in (first, second, third)]
    shown = goldline(rig, "pool", "show", parts[0])
    assert [each["frame_id"] for each in shown["frames"]] == [first.frame_id]
    assert first.model is not None
    assert (shown["frames"][0]["p_value"], shown["frames"][0]["model"]) == (first.p_value, first.model.version)
    picture = next(pool.read(pooled) for pooled in pool.frames(part_id=parts[0]))
    assert picture in {path.read_bytes() for path in pictures.iterdir()}

    send(rig, list(HOSTILE))
    said = goldline(rig, "feedback", parts[0], "defect", "--by", "ana", "--note", "a crack")
    assert "lists no pictures" in said["unknown"]
    goldline(rig, "feedback", parts[1], "good", "--by", "audit", "--station", STATIONS[0])
    until(lambda: any(pooled.verified for pooled in pool.frames()))
    assert not pool.frames(part_id=parts[0])
    (verified,) = [pooled for pooled in pool.frames() if pooled.verified]
    assert verified.entry.part_id == parts[1]
    assert goldline(rig, "pool", "remove", parts[2], "--by", "bob", "--why", "oil")["removed"] == 1
    assert [removal.feedback.by for removal in pool.removals()] == ["ana", "bob"]
    assert worker.end() == 0, worker.last_words()
    ended = logged(worker, "feedback: ended")
    assert (ended["applied"], ended["skipped"]) == (2, len(HOSTILE))
    assert logged(worker, "pool: ended")["admitted"] == len(wanted)

    again = start_worker(rig, "again")
    sent = {frame(rig, parts[0], picture), frame(rig, "another", picture)}
    assert sent <= {r.frame_id for r in results(rig, 42)}
    until(lambda: pool.frames(part_id="another"))
    goldline(rig, "feedback", "another", "defect", "--by", "ana")
    until(lambda: not pool.frames(part_id="another"))
    assert again.end() == 0, again.last_words()
    assert not pool.frames(part_id=parts[0])
    counts = logged(again, "pool: ended")
    assert (counts["admitted"], counts["refused"], counts["dropped"]) == (1, 1, 0)
    assert logged(again, "feedback: ended")["applied"] == 1, "what was applied before is not applied again"
    (row,) = goldline(rig, "pool", "stats")["stations"]
    assert (row["frames"], row["verified"]) == (len(wanted) - 2, 1)


@pytest.fixture
def rig(broker: str, tmp_path: Path) -> Iterator[Rig]:
    tree = {"stations": {STATIONS[0]: {}}, "pool": {"url": f"file://{tmp_path}/pool"}}
    with Rig(tmp_path / "line", tree, address=broker) as made:
        yield made


def test_feedback_waits_for_a_pool_that_is_away_and_none_is_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "_AGAIN_S", 0.2)
    pool = open_pool(rig.settings.pool)
    for i in range(30):
        feedback.publish(rig.settings, said(i)) if i < 2 else send(rig, [raw(i)])
    follower = feedback.Follower(rig.settings, pool)
    follower.start()
    until(lambda: follower._away)
    assert (follower.applied, pool.root.exists()) == (0, False)
    pool.create()
    until(lambda: follower.applied == 30)
    follower.stop()
    assert pool.defects() == 30
    after = feedback.Follower(rig.settings, pool)
    after.start()
    send(rig, [raw(30)])
    until(lambda: pool.defects() == 31)
    until(lambda: after.applied == 1)
    after.stop()


def said(i: int) -> Feedback:
    return Feedback(part_id=f"part-{i}", verdict="defect", by="ana", at=datetime.now(UTC))


def raw(i: int) -> tuple[bytes, bytes]:
    return said(i).part_id.encode(), messages.encode_feedback(said(i))
