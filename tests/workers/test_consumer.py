"""What Faust's own bookkeeping of offsets makes of messages that are answered before it takes them."""

import asyncio
import time

import pytest
from faust.transport.consumer import ConsumerMessage
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from pipeline import settings as line
from workers import app as faust_app

TOPIC = TP("goldline.frames", 0)
COMMITTED = 51


def message(offset: int) -> ConsumerMessage:
    return ConsumerMessage(
        TOPIC.topic, TOPIC.partition, offset, 0.0, 0, [], b"line-1/top", b"a picture", None, tp=TOPIC
    )


@pytest.mark.parametrize(
    ("offsets", "faust_takes"),
    [
        ([51, 52, 53], set()),
        ([51, 52, 60, 61], set()),
        ([60, 61, 75], set()),
        ([51, 60, 61, 70], {51, 61}),
        ([51, 53, 55, 57], {57}),
    ],
    ids=["no gap", "retention", "at once", "by turns", "markers of transactions"],
)
def test_all_of_it_can_be_committed_whatever_is_missing(offsets, faust_takes, monkeypatch):
    async def fetched(self, timeout):  # noqa: ASYNC109 - Faust's name
        for offset in offsets:
            yield TOPIC, message(offset)

    monkeypatch.setattr(driver.Consumer, "getmany", fetched)

    async def main():
        app = faust_app.build(line.build({"stations": {"line-1/top": {}}}))
        consumer = app._new_consumer()
        app.topics._acking_topics.add(TOPIC.topic)
        consumer._read_offset[TOPIC] = consumer._committed_offset[TOPIC] = COMMITTED

        async def answer(message, event):
            if message.offset in faust_takes:
                return False
            event.ack()
            return True

        app.answer = answer
        async for tp, left in consumer.getmany(1.0):  # as Consumer._drain_messages goes about it
            read = consumer._read_offset[tp]
            if left.offset - read > 1:
                await consumer._add_gap(tp, read + 1, left.offset)
            consumer._read_offset[tp] = left.offset
            consumer.ack(left)
        assert consumer._new_offset(TOPIC) == offsets[-1] + 1
        consumer._thread.thread_loop.close()  # of a thread that was not started

    asyncio.run(main())


@pytest.mark.parametrize(
    ("full", "waited_s"), [([], 1.0), ([1], faust_app._ROOM_S), ([0, 1], None)], ids=["none", "one", "all"]
)
def test_a_stream_that_has_enough_is_looked_at_again_soon(full, waited_s, monkeypatch):
    """Faust sleeps for a second where all have enough, and waits as long for the others where one has."""
    asked = []

    async def fetch(self, active_partitions, timeout):  # noqa: ASYNC109 - Faust's name
        asked.append((set(active_partitions), timeout))
        return {}

    monkeypatch.setattr(driver.Consumer, "_getmany", fetch)
    both = [TP(TOPIC.topic, 0), TP(TOPIC.topic, 1)]

    async def main():
        app = faust_app.build(line.build({"stations": {"line-1/top": {}}}))
        consumer = app._new_consumer()
        consumer.resume_flow()
        consumer.resume_partitions(both)
        for i in full:
            consumer.on_buffer_full(both[i])
        started = time.monotonic()
        records, _ = await consumer._wait_next_records(1.0)
        assert records == {}
        assert time.monotonic() - started < 0.5
        consumer._thread.thread_loop.close()  # of a thread that was not started

    asyncio.run(main())
    left = {tp for i, tp in enumerate(both) if i not in full}
    assert asked == ([(left, waited_s)] if left else [])
