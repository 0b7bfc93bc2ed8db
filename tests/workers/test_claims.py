"""A picture by reference is fetched by its deadline, or the frame is answered without it."""

import asyncio
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from model_store.frames import describe, open_roots
from model_store.frames_disk import DiskFrames
from pipeline import settings as line
from pipeline.data import Reason
from workers import wire
from workers.claims import Claims
from workers.wire import Record, read_frame

PICTURE = os.urandom(200_000)
STATION = "line-1/top"


def roots_of(*urls):
    roots = open_roots(urls, keep_s=3600)
    for store in roots.stores:
        if isinstance(store, DiskFrames):
            store.create()
    return roots


def arrival(reference, *, in_s=60.0, **headers):
    """What a message with this reference says; headers replace its own."""
    said = wire.frame_headers(
        frame_id="f",
        part_id="p",
        source="s",
        captured_at=datetime.now(UTC),
        content_type="image/png",
        deadline_ms=round(in_s * 1000),
        reference=reference,
    )
    record = Record(
        topic="goldline.frames",
        partition=0,
        offset=0,
        timestamp_ms=round(time.time() * 1000),
        key=STATION.encode(),
        value=b"",
        headers=[(n, v) for n, v in said if n not in headers] + [(n, v) for n, v in headers.items() if v is not None],
    )
    return read_frame(record, line.build({"stations": {STATION: {}}}))


def fetched(roots, *arrivals, meanwhile=None):
    """The arrivals with their pictures, all fetched at once."""

    async def scenario():
        claims = Claims(roots)
        fetches = [claims.fetch(a, deadline=a.frame.deadline_at.timestamp()) for a in arrivals]
        running = asyncio.gather(*fetches)
        if meanwhile is not None:
            await asyncio.sleep(0)
            await asyncio.to_thread(meanwhile)
        try:
            return await running
        finally:
            claims.close()

    return asyncio.run(scenario())


def test_the_picture_comes_to_its_frame(tmp_path):
    roots = roots_of(tmp_path.as_uri())
    (came,) = fetched(roots, arrival(roots.put(PICTURE)))
    assert came.frame.image == PICTURE
    assert came.problem is None


@pytest.mark.parametrize(
    "headers",
    [
        {"ce_dataref": b"file:///etc/passwd"},
        {"ce_dataref": b"http://127.0.0.1/picture"},
        {"ce_datasha256": b"0" * 64},
        {"ce_datasize": b"199999"},
        {"ce_datasize": b"200001"},
    ],
)
def test_a_picture_that_is_not_what_was_said_is_a_bad_frame_and_a_dead_letter(tmp_path, headers):
    roots = roots_of(tmp_path.as_uri())
    (came,) = fetched(roots, arrival(roots.put(PICTURE), **headers))
    assert came.problem.reason is Reason.BAD_FRAME
    assert came.unreadable
    assert came.frame.image == b""


def test_without_roots_every_reference_is_refused(tmp_path):
    (came,) = fetched(roots_of(), arrival(describe(f"{tmp_path.as_uri()}/a", PICTURE)))
    assert came.problem.reason is Reason.BAD_FRAME
    assert "[frames] roots" in came.problem.detail


def test_redis_that_comes_back_in_time_is_nobody_s_loss(server):
    roots = roots_of(f"redis://{server.address}/0")
    waiting = [arrival(roots.put(PICTURE)) for _ in range(8)]
    server.kill()
    came = fetched(roots, *waiting, meanwhile=server.start)
    assert [a.frame.image for a in came] == [PICTURE] * 8


def test_a_disk_that_comes_back_in_time_is_nobody_s_loss(tmp_path):
    roots = roots_of((tmp_path / "frames").as_uri())
    waiting = [arrival(roots.put(PICTURE)) for _ in range(8)]
    (tmp_path / "frames").rename(tmp_path / "away")

    def mount():
        time.sleep(0.3)
        (tmp_path / "away").rename(tmp_path / "frames")

    assert [a.frame.image for a in fetched(roots, *waiting, meanwhile=mount)] == [PICTURE] * 8


def test_a_store_that_stays_away_is_an_explicit_no_decision_at_the_deadline(server, tmp_path):
    roots = roots_of(f"redis://{server.address}/0", (tmp_path / "frames").as_uri())
    gone = [arrival(store.put(PICTURE), in_s=0.5) for store in roots.stores]
    server.kill()
    (tmp_path / "frames").rename(tmp_path / "away")
    for came in fetched(roots, *gone):
        assert came.problem.reason is Reason.LATE
        assert "not fetched by its deadline" in came.problem.detail
        assert not came.unreadable, "the message is not at fault: no dead letter"
    server.start()


def test_a_root_that_hangs_holds_up_no_frame_of_another(server, tmp_path):
    roots = roots_of(f"redis://{server.address}/0", (tmp_path / "frames").as_uri())
    redis, disk = roots.stores
    slow = [arrival(redis.put(PICTURE), in_s=1.0) for _ in range(20)]
    fast = [arrival(disk.put(PICTURE)) for _ in range(20)]
    server.process.send_signal(signal.SIGSTOP)
    try:
        came = fetched(roots, *slow, *fast)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert [a.problem and a.problem.reason for a in came[:20]] == [Reason.LATE] * 20
    assert [a.frame.image for a in came[20:]] == [PICTURE] * 20


def test_the_event_loop_goes_on_while_pictures_are_read(tmp_path):
    """Large pictures take a while to read and to digest; a tick between any two of them shows that others get on."""
    roots = roots_of(tmp_path.as_uri())
    large = os.urandom(60_000_000)
    came = [arrival(roots.put(large)) for _ in range(4)]

    async def scenario():
        claims, ticks = Claims(roots), 0
        running = asyncio.gather(*(claims.fetch(a, deadline=time.time() + 60) for a in came))
        while not running.done():
            await asyncio.sleep(0.001)
            ticks += 1
        claims.close()
        return ticks

    assert asyncio.run(scenario()) > 10


def test_a_deadline_in_the_past_is_late_at_once(tmp_path):
    roots = roots_of(tmp_path.as_uri())
    late = arrival(roots.put(PICTURE))
    past = datetime.now(UTC) - timedelta(seconds=5)

    async def scenario():
        return await Claims(roots).fetch(late, deadline=past.timestamp())

    assert asyncio.run(scenario()).problem.reason is Reason.LATE
