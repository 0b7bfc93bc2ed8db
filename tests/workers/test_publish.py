"""The result first and for certain; dead letter and heatmap after it."""

import asyncio
import io
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import settings as line
from pipeline.data import Decision, Failure, Reason, Verdict
from pipeline.decode import Placement
from workers import dead_letter, messages, publish, wire
from workers.messages import ModelBody, TimingsBody, decode_result
from workers.outcomes import Outcome
from workers.publish import Publisher
from workers.wire import Record, read_frame

VERSION = "c" * 64
NOW = datetime(2025, 6, 15, 12, 0, 0, 250_000, tzinfo=UTC)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def settings(**worker):
    return line.build({"stations": {"line-1/top": {"partition": 5}}, "worker": worker})


class Broker:
    """Takes what is sent, in order; may refuse the first few of a topic, or be slow."""

    def __init__(self, *, refuse=None, refuse_at="deliver", slow=()):
        self.taken = []
        self.refuse = dict(refuse or {})
        self.refuse_at = refuse_at
        self.slow = set(slow)
        self.open = asyncio.Event()

    async def send(self, topic, key, value, partition, headers):
        if self.refuse_at == "schedule":
            self._refuse(topic)
        return self._deliver(topic, key, value, partition, headers)

    async def _deliver(self, topic, key, value, partition, headers):
        if topic in self.slow:
            await self.open.wait()
        self._refuse(topic)
        await asyncio.sleep(0)
        self.taken.append((topic, key, value, partition, headers))

    def _refuse(self, topic):
        if self.refuse.get(topic, 0) > 0:
            self.refuse[topic] -= 1
            raise ConnectionError("no broker")

    @property
    def topics(self):
        return [t[0].removeprefix("goldline.") for t in self.taken]


def record(headers=None, *, value=b"a picture", key=b"line-1/top", partition=5):
    headers = headers or [("ce_id", b"f-1"), ("ce_partid", b"p-1"), ("traceparent", TRACE)]
    return Record(
        topic="goldline.frames",
        partition=partition,
        offset=42,
        timestamp_ms=round((NOW - timedelta(milliseconds=80)).timestamp() * 1000),
        key=key,
        value=value,
        headers=headers,
    )


def scored(decision=Decision.PASS, came=None):
    arrival = read_frame(came or record(), settings())
    return Outcome(
        arrival=arrival,
        answer=Verdict(frame_id=arrival.frame.frame_id, decision=decision, score=3.5, threshold=2.0, p_value=0.25),
        decided_at=NOW,
        model=ModelBody(method="patchcore", version=VERSION),
        timings=TimingsBody(total=12.5),
        map=torch.tensor([[0.5, 1.0], [1.5, 2.5]]),
        placement=Placement((480, 640), 80.0, 0.0, 240.0, 240.0),
    )


def unread(came, detail=None):
    """The outcome of a message that is itself at fault."""
    arrival = read_frame(came, settings())
    assert arrival.unreadable
    answer = arrival.problem
    if detail is not None:
        answer = Failure(frame_id=arrival.frame.frame_id, reason=Reason.BAD_FRAME, detail=detail)
    return Outcome(arrival=arrival, answer=answer, decided_at=NOW)


def published(broker, *outcomes, **worker):
    async def scenario():
        publisher = Publisher(broker.send, settings(**worker), "worker/1")
        for outcome in outcomes:
            await asyncio.wait_for(publisher.publish(outcome), 20)
        await asyncio.wait_for(publisher.settle(), 20)

    asyncio.run(scenario())
    return broker.taken


def dead(came, detail=None):
    """The dead letter of a message, as our reader sees it, and as it was sent."""
    (_, letter) = published(Broker(), unread(came, detail))
    topic, key, value, _, headers = letter
    sent = Record(topic=topic, partition=0, offset=9, timestamp_ms=0, key=key, value=value, headers=headers)
    return dead_letter._letter(sent), letter


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(publish, "_BACKOFF_S", (0.001, 0.002))


def test_who_waits_for_outcomes_is_told_once_the_result_is_out():
    broker, told = Broker(refuse={"goldline.results": 2}), []

    async def scenario():
        def hear(outcome):
            told.append((outcome, broker.topics))

        publisher = Publisher(broker.send, settings(), "worker/1", on_published=hear)
        await asyncio.wait_for(publisher.publish(outcome), 20)

    outcome = scored()
    asyncio.run(scenario())
    assert told == [(outcome, ["results"])]


def test_a_result_lies_where_its_frame_lay():
    ((topic, key, value, partition, headers),) = published(Broker(), scored())
    assert (topic, key, partition) == ("goldline.results", b"line-1/top", 5)
    body = decode_result(value)
    assert (body.frame_id, body.part_id, body.verdict, body.score) == ("f-1", "p-1", "pass", 3.5)
    assert (body.model.version, body.timings_ms.total, body.heatmap) == (VERSION, 12.5, None)
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": messages.result_id("f-1", VERSION).encode(),
        "ce_type": b"goldline.result.v1",
        "ce_source": b"worker/1",
        "ce_time": b"2025-06-15T12:00:00.250000Z",
        "content-type": b"application/json",
        "ce_subject": b"f-1",
        "traceparent": TRACE,
    }


def test_a_repeat_is_the_same_event():
    first, second = published(Broker(), scored(), scored())
    assert dict(first[4])["ce_id"] == dict(second[4])["ce_id"]


def test_the_frame_id_in_the_header_can_be_read_back_whatever_it_is():
    """Recovery knows answered frames by this header alone."""
    for frame_id in ("é" * 200, "x" * 200, "日本" * 100, None):
        came = record([("ce_id", frame_id.encode())] if frame_id else [("content-type", b"image/png")])
        ((_, _, value, _, headers),) = published(Broker(), scored(came=came))
        assert wire.header(headers, "ce_subject") == decode_result(value).frame_id
        assert frame_id in {None, decode_result(value).frame_id}


@pytest.mark.parametrize(
    ("wanted", "decision", "follows"),
    [
        ("all", Decision.PASS, True),
        ("all", Decision.REJECT, True),
        ("reject", Decision.PASS, False),
        ("reject", Decision.REJECT, True),
        ("none", Decision.REJECT, False),
    ],
)
def test_a_heatmap_follows_where_it_is_wanted(wanted, decision, follows):
    broker = Broker()
    published(broker, scored(decision), heatmaps=wanted)
    assert broker.topics == ["results", "heatmaps"] if follows else ["results"]
    announced = decode_result(broker.taken[0][2]).heatmap
    assert announced == (messages.HeatmapBody(topic="goldline.heatmaps", key="f-1") if follows else None)


def test_a_heatmap_says_how_to_read_it():
    broker = Broker()
    _, (topic, key, value, partition, headers) = published(broker, scored(Decision.REJECT))
    assert (topic, key, partition) == ("goldline.heatmaps", b"f-1", None)
    said = dict(headers)
    assert (said["ce_type"], said["content-type"]) == (b"goldline.heatmap.v1", b"image/png")
    low, high = float(said["goldline_low"]), float(said["goldline_high"])
    grey = np.asarray(Image.open(io.BytesIO(value)))
    np.testing.assert_allclose(low + grey / 255 * (high - low), [[0.5, 1.0], [1.5, 2.5]], atol=0.01)
    assert json.loads(said["goldline_affine"]) == [80.0, 0.0, 240.0, 240.0]
    assert json.loads(said["goldline_image_size"]) == [480, 640]


def test_a_heatmap_neither_delays_nor_fails_a_result():
    async def scenario():
        broker = Broker(slow=["goldline.heatmaps"])
        publisher = Publisher(broker.send, settings(heatmaps="all"), "worker/1")
        await asyncio.wait_for(publisher.publish(scored()), 20)
        assert broker.topics == ["results"], "published while the heatmap is stuck"
        broker.refuse["goldline.heatmaps"] = 1
        broker.open.set()
        await asyncio.wait_for(publisher.settle(), 20)
        assert broker.topics == ["results"], "a lost heatmap is not tried again"

    asyncio.run(scenario())


def test_a_map_that_cannot_be_drawn_is_no_harm():
    broker = Broker()
    outcome = scored()
    published(broker, Outcome(**{f: getattr(outcome, f) for f in Outcome.__slots__} | {"map": torch.empty(0, 0)}))
    assert broker.topics == ["results"]


def test_a_failure_of_the_frame_has_no_dead_letter():
    broker = Broker()
    arrival = read_frame(record(), settings())
    late = Failure(frame_id="f-1", reason=Reason.LATE, detail="80 ms past its deadline")
    ((_, _, value, _, _),) = published(broker, Outcome(arrival=arrival, answer=late, decided_at=NOW), heatmaps="all")
    body = decode_result(value)
    assert (body.verdict, body.reason, body.detail) == ("no_decision", "late", "80 ms past its deadline")
    assert body.model is None


def test_an_unreadable_message_has_its_result_before_its_dead_letter():
    broker = Broker()
    came = record(value=b"")
    result, letter = published(broker, unread(came))
    assert broker.topics == ["results", "dead-letters"]
    assert (decode_result(result[2]).verdict, decode_result(result[2]).reason) == ("no_decision", "bad_frame")
    assert (result[1], result[3]) == (b"line-1/top", 5)
    assert (letter[1], letter[2]) == (came.key, came.value)


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"x" * 5000])
def test_a_hostile_key_goes_round_as_it_is(key):
    result, letter = published(Broker(), unread(record(key=key)))
    assert result[1] == letter[1] == key
    assert result[3] == 5, "the partition does not follow from the key"
    assert decode_result(result[2]).station is None


def test_a_dead_letter_says_why_and_whence_and_keeps_the_message():
    headers = [("ce_id", b"f-1"), ("ce_time", b"\xff"), ("x-own", None), ("ce_id", b"again")]
    came = record(headers, value=b"")
    letter, sent = dead(came)
    assert letter.reason == "bad_frame"
    assert letter.detail == "the message has no picture: 0 bytes, and no readable reference to one"
    assert letter.origin == "goldline.frames/5/42"
    assert (letter.frame_id, letter.station, letter.number) == ("f-1", "line-1/top", "0/9")
    assert datetime.fromisoformat(letter.at).tzinfo is not None
    assert sent[4][7:] == [(name, value or b"") for name, value in headers]


FORGED = [
    (f"goldline_{part}", b"forged")
    for part in ("reason", "detail", "topic", "partition", "offset", "frame_id", "at", "headers_cut")
]


@pytest.mark.parametrize("detail", [None, "", "two\nlines", "\x1b[2J", "ü" * 500, "日" * 500, "x" * 10_000])
def test_a_header_of_the_message_cannot_pass_for_one_of_ours(detail):
    letter, _ = dead(record([*FORGED, ("ce_id", b"f-1")], value=b""), detail)
    assert "forged" not in json.dumps(letter.body())
    assert (letter.reason, letter.origin, letter.frame_id) == ("bad_frame", "goldline.frames/5/42", "f-1")


def test_a_dead_letter_stays_within_the_size_of_its_topic():
    noise = [(f"x-{i}", b"y" * 1000) for i in range(64)]
    _, (*_, headers) = dead(record([("ce_id", b"f-1"), *noise], value=b""), "ü" * 10_000)
    spent = sum(len(name.encode()) + len(value) for name, value in headers)
    assert spent < 40 * 1024
    assert headers[-1] == ("goldline_headers_cut", b"true")
    assert ("x-0", b"y" * 1000) in headers


@pytest.mark.parametrize("refuse_at", ["schedule", "deliver"])
def test_a_result_is_sent_until_the_broker_has_it(refuse_at):
    broker = Broker(refuse={"goldline.results": 7, "goldline.dead-letters": 3}, refuse_at=refuse_at)
    published(broker, unread(record(value=b"")))
    assert broker.topics == ["results", "dead-letters"]


def test_publishing_is_not_done_before_the_broker_has_the_result():
    async def scenario():
        broker = Broker(slow=["goldline.results"])
        publisher = Publisher(broker.send, settings(), "worker/1")
        task = asyncio.ensure_future(publisher.publish(scored()))
        await asyncio.sleep(0.02)
        assert not task.done()
        broker.open.set()
        await asyncio.wait_for(task, 20)
        assert broker.topics == ["results"]

    asyncio.run(scenario())


def test_a_cancelled_publish_ends():
    async def scenario():
        broker = Broker(refuse={"goldline.results": 10**9})
        publisher = Publisher(broker.send, settings(), "worker/1")
        task = asyncio.ensure_future(publisher.publish(scored()))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)

    asyncio.run(scenario())


def test_topics_carry_the_lines_prefix():
    async def scenario():
        broker = Broker()
        own = line.build({"kafka": {"prefix": "plant-7"}, "stations": {"line-1/top": {}}})
        await Publisher(broker.send, own, "worker/1").publish(scored())
        assert broker.taken[0][0] == "plant-7.results"

    asyncio.run(scenario())
