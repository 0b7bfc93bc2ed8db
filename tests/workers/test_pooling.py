"""Accepted frames reach the pool after their verdict, and nothing that its disk does reaches the line."""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from model_store.pool import MARKER, open_pool
from model_store.pool_records import Feedback
from pipeline.data import Decision, Failure, Reason, Verdict
from pipeline.settings import Pool
from tests.workers.test_publish import record, settings
from workers import pooling as module
from workers.messages import ModelBody, encode_feedback
from workers.outcomes import Outcome
from workers.pooling import Pooling
from workers.wire import read_frame

NOW = datetime.now(UTC)


def outcome(i, *, decision=Decision.PASS, p_value=0.5, image=b"a picture") -> Outcome:
    """What became of frame i, captured now."""
    headers = [("ce_id", f"f-{i}".encode()), ("ce_partid", f"p-{i}".encode())]
    came = replace(record(headers, value=image), timestamp_ms=round(time.time() * 1000))
    verdict = Verdict(frame_id=f"f-{i}", decision=decision, score=1.0, threshold=2.0, p_value=p_value)
    model = ModelBody(method="patchcore", version="a" * 64)
    return Outcome(arrival=read_frame(came, settings()), answer=verdict, decided_at=NOW, model=model)


@pytest.fixture
def pool(tmp_path):
    return open_pool(Pool(url=f"file://{tmp_path}/pool"))


def until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def ended(pooling):
    pooling.stop()
    counts = pooling.counts
    assert not pooling._thread.is_alive()
    assert counts.offered == counts.admitted + counts.refused + counts.dropped + counts.unstored
    return counts


def test_accepted_frames_go_into_the_pool_and_nothing_else(pool):
    pooling = Pooling(pool)
    pooling.start()
    failure = Failure(frame_id="f-9", reason=Reason.LATE, detail="late")
    pooling.offer(outcome(1, image=b"the picture"))
    pooling.offer(outcome(2, decision=Decision.REJECT))
    pooling.offer(outcome(3, p_value=0.05))
    pooling.offer(replace(outcome(4), answer=failure, model=None))
    pooling.offer(outcome(1))
    counts = ended(pooling)
    assert (counts.offered, counts.admitted, counts.refused) == (2, 1, 1)
    (pooled,) = pool.frames()
    assert pool.read(pooled) == b"the picture"
    assert (pooled.entry.part_id, pooled.entry.model, pooled.key.station) == ("p-1", "a" * 64, "line-1/top")


def hang(pool, part_id):
    """Let reading what is known of a part wait for a writer that does not come: a disk that hangs."""
    fifo = pool._reports._path(part_id, None, None)
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)
    return fifo


def release(fifo, part_id):
    said = Feedback(part_id=part_id, verdict="defect", by="ana", at=NOW)
    with fifo.open("wb") as file:
        file.write(encode_feedback(said))
        fifo.unlink()


def test_a_disk_that_hangs_holds_up_nobody_and_what_finds_no_room_is_counted(pool):
    pool.create()
    fifo = hang(pool, "p-0")
    pooling = Pooling(pool)
    pooling.start()
    pooling.offer(outcome(0))
    until(lambda: not pooling._waiting)
    for i in range(1, 101):
        pooling.offer(outcome(i))
    assert pooling.counts.dropped == 100 - module._QUEUE_FRAMES
    release(fifo, "p-0")
    until(lambda: pooling.counts.admitted + pooling.counts.refused == module._QUEUE_FRAMES + 1)
    assert ended(pooling).admitted == module._QUEUE_FRAMES
    assert len(pool.frames()) == module._QUEUE_FRAMES


def test_the_queue_is_bounded_in_bytes_too(pool, monkeypatch):
    monkeypatch.setattr(module, "_QUEUE_BYTES", 1000)
    pool.create()
    fifo = hang(pool, "p-0")
    pooling = Pooling(pool)
    pooling.start()
    pooling.offer(outcome(0, image=b"x" * 5000))
    until(lambda: not pooling._waiting)
    for i in range(1, 6):
        pooling.offer(outcome(i, image=b"x" * 400))
    assert pooling.counts.dropped == 3
    release(fifo, "p-0")
    ended(pooling)


def test_a_pool_that_is_away_is_one_line_in_the_log_until_it_is_back(pool):
    pool.root.write_text("in the way")
    pooling = Pooling(pool, again_s=0.0)
    with capture_logs() as logs:
        pooling.start()
        for i in range(5):
            pooling.offer(outcome(i))
        until(lambda: pooling.counts.unstored == 5)
        pool.root.unlink()
        pooling.offer(outcome(5))
        until(lambda: pooling.counts.admitted == 1)
        (pool.root / MARKER).unlink()
        pooling.offer(outcome(6))
        counts = ended(pooling)
    assert (counts.unstored, counts.admitted) == (6, 1)
    said = [line["event"] for line in logs if line["log_level"] in {"error", "warning"}]
    assert said == ["pool: accepted frames are not kept, inspection goes on"] * 2
    assert "is it mounted" in [line for line in logs if line["log_level"] == "error"][1]["error"]
    assert [line["event"] for line in logs][1] == "pool: accepted frames are kept again"


def test_a_disk_in_trouble_is_left_alone_for_a_while(pool):
    pool.root.write_text("in the way")
    pooling = Pooling(pool, again_s=3600.0)
    pooling.start()
    pooling.offer(outcome(1))
    until(lambda: pooling.counts.unstored == 1)
    pool.root.unlink()
    pooling.offer(outcome(2))
    assert ended(pooling).unstored == 2
    assert not pool.root.exists()
