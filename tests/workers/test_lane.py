"""One partition's frames: how many are in flight at once, and in which order they are acknowledged."""

import asyncio
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from pipeline import settings as line
from pipeline.data import Decision, Failure, Reason, Verdict
from workers import inspect, publish, wire
from workers.desk import Desk as RealDesk
from workers.inspect import Lane
from workers.metrics import WorkerMetrics
from workers.outcomes import Outcome
from workers.publish import Publisher

NOW = datetime.now(UTC)
SETTINGS = line.build({"stations": {"line-1/top": {}}, "worker": {"window": 2}})


class Event:
    """A frame as Faust hands it over, which came to the broker an hour ago unless it is fresh."""

    def __init__(self, frame_id, acknowledged, offset=0, *, fresh=False):
        headers = [("ce_id", frame_id.encode())]
        self.value = b"a picture"
        self.message = SimpleNamespace(
            topic="goldline.frames",
            partition=0,
            offset=offset,
            timestamp=time.time() if fresh else NOW.timestamp() - 3600,
            key=b"line-1/top",
            value=self.value,
            headers=headers,
        )
        self._told = lambda: acknowledged.append(frame_id)

    def ack(self):
        self._told()


class Desk:
    """Knows late frames by their ids; the others wait until `inspected` is set."""

    def __init__(self):
        self.inspected = asyncio.Event()

    def at_once(self, arrival):
        if not arrival.frame.frame_id.startswith("late"):
            return None
        failure = Failure(frame_id=arrival.frame.frame_id, reason=Reason.LATE, detail="")
        return Outcome(arrival=arrival, answer=failure, decided_at=NOW)

    async def decide(self, arrival):
        await self.inspected.wait()
        verdict = Verdict(
            frame_id=arrival.frame.frame_id, decision=Decision.PASS, score=1.0, threshold=2.0, p_value=0.5
        )
        return Outcome(arrival=arrival, answer=verdict, decided_at=NOW)


class Broker:
    """Takes what is handed to it at once, and confirms it when it is open."""

    def __init__(self):
        self.handed = []
        self.fails = 0
        self.open = asyncio.Event()

    async def send(self, topic, key, value, partition, headers):
        self.handed.append(wire.header([(n, v) for n, v in headers], "ce_subject"))
        self.fails -= 1
        return self._delivered(fails=self.fails >= 0)

    async def _delivered(self, *, fails):
        await self.open.wait()
        if fails:
            raise ConnectionError("the request timed out")


def scenario(run, monkeypatch):
    """Run with a lane, its desk and broker, and the list of what was acknowledged."""

    async def nothing_answered(self):
        """A lane whose partition has no past."""

    monkeypatch.setattr(Lane, "recover", nothing_answered)

    async def main():
        desk, broker, acknowledged = Desk(), Broker(), []
        lane = Lane(0, SETTINGS, desk, Publisher(broker.send, SETTINGS, "worker/1"), WorkerMetrics(SETTINGS))
        try:
            await asyncio.wait_for(run(lane, desk, broker, acknowledged), 20)
        finally:
            lane.close()

    asyncio.run(main())


def test_late_frames_do_not_wait_for_each_others_acknowledgement(monkeypatch):
    async def run(lane, desk, broker, acknowledged):
        events = [Event(f"late-{i}", acknowledged) for i in range(100)]
        for event in events:
            await asyncio.wait_for(lane.accept(event), 5)
        await asyncio.sleep(0.1)
        assert len(broker.handed) == 100
        assert not acknowledged
        assert all(event.message.value is None for event in events), "a hundred pictures are held for nothing"
        broker.open.set()
        await lane.drained()
        assert acknowledged == [f"late-{i}" for i in range(100)]

    scenario(run, monkeypatch)


def test_what_a_broker_that_was_away_failed_together_is_sent_again_together(monkeypatch):
    monkeypatch.setattr(publish, "_BACKOFF_S", (0.2,))

    async def run(lane, desk, broker, acknowledged):
        broker.fails = 50  # every first delivery
        for i in range(50):
            await lane.accept(Event(f"late-{i}", acknowledged))
        await asyncio.sleep(0.05)
        broker.open.set()
        await asyncio.wait_for(lane.drained(), 5)  # one after the other they would take 10 s
        assert acknowledged == [f"late-{i}" for i in range(50)]

    scenario(run, monkeypatch)


@pytest.mark.parametrize("late", [True, False], ids=["late", "no such station"])
def test_outcomes_that_wait_for_the_broker_hold_no_picture(late, monkeypatch):
    """A thousand of them may wait."""
    handed = []
    original = Publisher.hand

    async def hand(self, outcome):
        handed.append(outcome)
        return await original(self, outcome)

    monkeypatch.setattr(Publisher, "hand", hand)

    async def run(lane, desk, broker, acknowledged):
        monkeypatch.setattr(desk, "at_once", lambda arrival: RealDesk.at_once(desk, arrival))
        event = Event("a", acknowledged)
        if not late:
            event.message.key = b"line-9/new"
        await lane.accept(event)
        broker.open.set()
        await lane.drained()
        (outcome,) = handed
        assert outcome.answer.reason is (Reason.LATE if late else Reason.NO_MODEL)
        assert (outcome.arrival.frame.image, outcome.arrival.record.value) == (b"", None)

    scenario(run, monkeypatch)


def test_frames_to_inspect_wait_while_the_window_is_full(monkeypatch):
    async def run(lane, desk, broker, acknowledged):
        broker.open.set()
        await lane.accept(Event("a", acknowledged))
        await lane.accept(Event("b", acknowledged))
        third = asyncio.ensure_future(lane.accept(Event("c", acknowledged)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(third), 0.1)
        desk.inspected.set()
        await third
        await lane.drained()
        assert acknowledged == ["a", "b", "c"]

    scenario(run, monkeypatch)


def test_nothing_is_acknowledged_before_what_came_earlier(monkeypatch):
    async def run(lane, desk, broker, acknowledged):
        broker.open.set()
        await lane.accept(Event("a", acknowledged))
        await lane.accept(Event("late-1", acknowledged))
        await lane.accept(Event("late-1", acknowledged))  # once more
        await asyncio.sleep(0.05)
        assert not acknowledged
        desk.inspected.set()
        await lane.drained()
        assert acknowledged == ["a", "late-1", "late-1"]
        assert broker.handed == ["a", "late-1"], "a frame that comes again has its verdict"

    scenario(run, monkeypatch)


def test_frames_that_are_not_worth_inspecting_are_bounded_too(monkeypatch):
    monkeypatch.setattr(inspect, "_ASIDE", 3)

    async def run(lane, desk, broker, acknowledged):
        for i in range(3):
            await lane.accept(Event(f"late-{i}", acknowledged))
        fourth = asyncio.ensure_future(lane.accept(Event("late-3", acknowledged)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(fourth), 0.1)
        broker.open.set()
        await fourth
        await lane.drained()
        assert len(acknowledged) == 4

    scenario(run, monkeypatch)


def test_late_frames_are_answered_before_faust_takes_them(monkeypatch):
    async def run(lane, desk, broker, acknowledged):
        broker.open.set()
        events = [Event(f"late-{i}", acknowledged, offset=i) for i in range(50)]
        first = events.pop(0)
        assert not await lane.answer(first.message, first), "Faust may have brought messages before there was a lane"
        await lane.accept(first)
        again = Event("late-7", acknowledged, offset=50)
        for event in [*events, again]:
            assert await lane.answer(event.message, event)
        await lane.drained()
        assert broker.handed == [f"late-{i}" for i in range(50)]
        assert acknowledged == [*broker.handed, "late-7"]
        assert all(event.message.value is event.message.headers is None for event in events)

    scenario(run, monkeypatch)


def test_no_late_frame_overtakes_one_that_faust_has(monkeypatch):
    async def run(lane, desk, broker, acknowledged):
        broker.open.set()
        first, second, third = (
            Event("a", acknowledged, 1),
            Event("late-1", acknowledged, 2),
            Event("late-2", acknowledged, 3),
        )
        assert not await lane.answer(first.message, first)
        assert not await lane.answer(second.message, second), "the first is on its way through Faust"
        await lane.accept(first)
        assert not await lane.answer(third.message, third), "so is the second"
        await lane.accept(second)
        await lane.accept(third)
        fourth = Event("late-3", acknowledged, 4)
        assert await lane.answer(fourth.message, fourth)
        desk.inspected.set()
        await lane.drained()
        assert broker.handed == ["a", "late-1", "late-2", "late-3"]
        assert acknowledged == broker.handed

    scenario(run, monkeypatch)


def test_what_faust_has_dropped_is_not_waited_for(monkeypatch):
    async def run(lane, desk, broker, acknowledged):
        broker.open.set()
        dropped, late = Event("a", acknowledged, 5), Event("late-1", acknowledged, 3)
        assert not await lane.answer(dropped.message, dropped)
        assert not await lane.answer(late.message, late)  # Faust has begun again from an earlier offset
        await lane.accept(late)
        after = Event("late-2", acknowledged, 4)
        assert await lane.answer(after.message, after)

    scenario(run, monkeypatch)


@pytest.mark.parametrize("why", ["fresh", "unreadable", "to be inspected", "no place", "not recovered"])
def test_the_others_come_through_faust(why, monkeypatch):
    monkeypatch.setattr(inspect, "_ASIDE", 0 if why == "no place" else 10)

    async def run(lane, desk, broker, acknowledged):
        lane._expected = lane._accepted  # Faust has nothing
        event = Event("a" if why == "to be inspected" else "late-1", acknowledged, fresh=why == "fresh")
        if why == "unreadable":
            event.message.key = b"no station"
        if why == "not recovered":
            lane._recovered = asyncio.get_running_loop().create_future()
        assert not await lane.answer(event.message, event)
        assert not acknowledged
        assert event.message.value is not None, "its picture is needed yet"

    scenario(run, monkeypatch)
