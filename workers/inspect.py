"""The worker's walk: frames of a partition in, one terminal verdict for each out, acknowledged in order.

Each partition has a lane: up to `window` of its frames are in flight at once, so that one station can fill a batch;
they are handed to the producer in the order they came, and acknowledged in it, once the broker has them. A crash at any
moment loses nothing: what was not acknowledged comes again, and what was already answered is known from the results'
tail.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipeline.settings import Settings
from workers import logs, recovery, topics, wire
from workers.desk import Desk
from workers.metrics import WorkerMetrics
from workers.outcomes import Outcome
from workers.publish import Publisher
from workers.wire import Arrival, Record, read_frame

log = logs.get(__name__)

_OLD_S = 0.05  # a frame that came to the broker less long ago is hardly late
_ASIDE = 1024  # frames of a partition that need no inspection, such as late ones: answered, not acknowledged yet


class Acknowledged(Protocol):
    """A frame's message: whoever has published its verdict says so."""

    def ack(self) -> object:
        """It need not come again."""
        ...


@dataclass(frozen=True, slots=True)
class _Passing:
    """A frame on its way through a lane.

    Attributes:
        room: what it takes a place of, until its verdict is acknowledged.
        deciding: None where it has its verdict already.
    """

    event: Acknowledged
    room: asyncio.Semaphore
    deciding: "asyncio.Future[Outcome] | Outcome | None"


class Lane:
    """One partition's way through the worker."""

    def __init__(
        self, partition: int, settings: Settings, desk: Desk, publisher: Publisher, metrics: WorkerMetrics
    ) -> None:
        self._partition = partition
        self._settings = settings
        self._desk = desk
        self._publisher = publisher
        self._metrics = metrics
        self._room = asyncio.Semaphore(settings.worker.window or 2 * settings.worker.batch_max)
        self._in_flight = 0
        self._waits_since: float | None = None
        self._aside = asyncio.Semaphore(_ASIDE)
        self._expected, self._accepted = 0, -1  # offsets: what Faust was left to bring, and has brought
        self._decided: asyncio.Queue[_Passing] = asyncio.Queue()
        self._sent: asyncio.Queue[tuple[_Passing, asyncio.Future[None] | None]] = asyncio.Queue()
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks = [asyncio.ensure_future(self._publish()), asyncio.ensure_future(self._acknowledge())]
        self._recovered: asyncio.Future[None] = asyncio.ensure_future(self.recover())

    async def recover(self) -> None:
        """Learn which waiting frames have their verdict already; retries until the broker tells."""
        limit = topics.frame_max_bytes(self._settings)
        while True:
            try:
                past = await asyncio.to_thread(
                    recovery.recover, self._settings.kafka, self._partition, fetch_max_bytes=limit
                )
                break
            except Exception as error:  # noqa: BLE001 - whatever a broker in trouble answers, ask again
                log.warning("recovery failed, again in 1 s", partition=self._partition, error=str(error))
                await asyncio.sleep(1.0)
        self._remember(past.answered)
        self._metrics.lost(self._partition, past.lost)
        if past.lost:
            log.error("frames were lost: retention deleted them unread", partition=self._partition, frames=past.lost)
        log.info("assigned", partition=self._partition, backlog=past.backlog, answered=len(past.answered))

    def reassigned(self) -> None:
        """The partition came back after another worker may have held it: recover again before going on."""
        if self._recovered.done():
            self._recovered = asyncio.ensure_future(self.recover())

    async def accept(self, event: Any) -> None:
        """Take one frame in; waits while there is no room for it."""
        await asyncio.shield(self._recovered)
        arrival, repeated, known = self._look(event.message)
        room = self._room
        if repeated or (known is not None and not arrival.unreadable):
            room, event.value = self._aside, None
            event.message.value = event.message.headers = None
        await room.acquire()
        self._enter(event, room, arrival, repeated=repeated, known=known)
        self._accepted = event.message.offset

    async def answer(self, message: Any, event: Acknowledged) -> bool:
        """Take a message in before Faust does, if its frame needs no inspection and Faust has none from before it.

        Faust's way costs twice what the answer does, and behind a backlog of late frames those in time wait for it.

        Returns:
            False where it must come through `accept`.
        """
        recent = message.timestamp is None or time.time() - message.timestamp < _OLD_S
        if recent or not self._recovered.done() or self._expected != self._accepted or self._aside.locked():
            self._expected = message.offset
            return False
        arrival, repeated, known = self._look(message)
        if arrival.unreadable or not (repeated or known):
            self._expected = message.offset
            return False
        message.value = message.headers = None
        await self._aside.acquire()  # there is a place: it does not wait
        self._enter(event, self._aside, arrival, repeated=repeated, known=known)
        return True

    def _look(self, message: Any) -> tuple[Arrival, bool, Outcome | None]:
        """What a message says, whether its frame was answered before, and its outcome where it needs no inspection."""
        arrival = read_frame(record_of(message), self._settings)
        if arrival.traceparent is None:
            arrival = replace(arrival, traceparent=wire.new_traceparent(self._settings.tracing.share))
        repeated = arrival.frame.frame_id in self._answered
        return arrival, repeated, None if repeated else self._desk.at_once(arrival)

    def _enter(
        self, event: Acknowledged, room: asyncio.Semaphore, arrival: Arrival, *, repeated: bool, known: Outcome | None
    ) -> None:
        """A frame that has its place."""
        self._in_flight += 1
        self._empty.clear()
        if repeated:
            self._metrics.repeated(arrival.frame)
            self._decided.put_nowait(_Passing(event, room, None))
            return
        self._metrics.received(arrival.frame)
        self._remember([arrival.frame.frame_id])
        deciding = asyncio.ensure_future(self._desk.decide(arrival)) if known is None else known
        self._decided.put_nowait(_Passing(event, room, deciding))

    @property
    def recovered(self) -> bool:
        """Whether it is known what was answered before."""
        return self._recovered.done()

    @property
    def undecided_s(self) -> float:
        """How long the next frame in line has been waited for."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        await self._empty.wait()

    def close(self) -> None:
        """Stop at once; what is in flight stays unacknowledged and comes again."""
        for task in (*self._tasks, self._recovered):
            task.cancel()

    async def _publish(self) -> None:
        while True:
            passing = await self._decided.get()
            outcome = passing.deciding
            if isinstance(outcome, asyncio.Future):
                self._waits_since = time.monotonic()
                outcome = await outcome
                self._waits_since = None
            handed = await self._publisher.hand(outcome) if outcome else None
            # Each in a task of its own: what fails together is sent again together.
            confirming = asyncio.ensure_future(self._publisher.confirm(handed)) if handed else None
            self._sent.put_nowait((passing, confirming))

    async def _acknowledge(self) -> None:
        while True:
            passing, confirming = await self._sent.get()
            if confirming is not None:
                await confirming
            passing.event.ack()
            passing.room.release()
            self._in_flight -= 1
            if self._in_flight == 0:
                self._empty.set()

    def _remember(self, frame_ids: Any) -> None:
        for frame_id in frame_ids:
            self._answered[frame_id] = None
        while len(self._answered) > self._settings.worker.remember:
            self._answered.popitem(last=False)


class Lanes:
    """Every partition's lane, made when its first frame or its assignment comes."""

    def __init__(self, make: Callable[[int], Lane]) -> None:
        self._make = make
        self._lanes: dict[int, Lane] = {}
        self.joined = False
        """Whether the group has given this worker its partitions, be they none."""
        self._intake = asyncio.Event()
        self._intake.set()

    def assigned(self, partitions: set[int]) -> None:
        """Partitions are ours, for the first time or again."""
        self.joined = True
        for partition in sorted(partitions):
            if partition in self._lanes:
                self._lanes[partition].reassigned()
            else:
                self._lanes[partition] = self._make(partition)

    async def inspect(self, stream: Any) -> None:
        """The actor of one partition."""
        stream.enable_acks = False  # the lane acknowledges, when the verdict is published
        async for event in stream.events():
            await self._intake.wait()
            partition = event.message.partition
            if partition not in self._lanes:
                self.assigned({partition})
            await self._lanes[partition].accept(event)

    async def answer(self, message: Any, event: Acknowledged) -> bool:
        """As `Lane.answer`, of a message of any partition; False, too, while no frames are taken in."""
        lane = self._lanes.get(message.partition)
        return lane is not None and self._intake.is_set() and await lane.answer(message, event)

    async def drain(self, partitions: set[int] | None = None, *, within_s: float) -> bool:
        """Wait until nothing of these partitions (or of any) is in flight; False if that took too long."""
        wanted = self._lanes.keys() if partitions is None else partitions & self._lanes.keys()
        try:
            await asyncio.wait_for(asyncio.gather(*(self._lanes[p].drained() for p in wanted)), within_s)
        except TimeoutError:
            log.error("not everything in flight was published in time: it comes again", within_s=within_s)
            return False
        return True

    def recovering(self) -> list[int]:
        """Partitions of which it is not known yet what was answered before."""
        return [partition for partition, lane in list(self._lanes.items()) if not lane.recovered]

    def undecided_s(self) -> float:
        """How long any partition's next frame has been waited for."""
        return max((lane.undecided_s for lane in list(self._lanes.values())), default=0.0)

    def stop_intake(self) -> None:
        """Take no more frames; what is in flight goes on."""
        self._intake.clear()

    def close(self) -> None:
        """Stop at once."""
        for lane in self._lanes.values():
            lane.close()


def record_of(message: Any) -> Record:
    """A Faust message as our own record."""
    headers = message.headers or []
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=int((message.timestamp or 0) * 1000),
        key=message.key,
        value=message.value,
        headers=list(headers.items()) if isinstance(headers, dict) else list(headers),
    )
