"""Builds the faust.App: one agent on the topic of frames, settings that keep its known traps shut.

Only the worker imports this: `import faust` reads the process's own command line for an option `--loop`.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver

from pipeline.settings import Kafka, Settings
from workers import clients, fetched, topics
from workers.inspect import Acknowledged, Lanes
from workers.wire import Headers

_PRODUCED_TOGETHER_BYTES = 256 * 1024  # results in a request: with 16 kB, the default, late frames wait for it

_TURN = 32  # messages that are answered before others have theirs
_ROOM_S = 0.02  # until it is looked again whether a stream that had enough has room

fetched.prepare()


class _Producer(driver.Producer):
    """Faust turns idempotence on only with transactions, which we do not use."""

    def _settings_extra(self) -> dict[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


@dataclass(frozen=True, slots=True)
class _Message:
    """A message that no stream was given."""

    consumer: "_Consumer"
    message: Any

    def ack(self) -> None:
        """Its offset may be committed, once all before it may."""
        self.consumer.ack(self.message)


class _Consumer(driver.Consumer):
    """Offers messages to the lanes before Faust takes each through its streams, in tasks and queues of its own."""

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - Faust's name
        """As Faust's, without what the lanes have answered."""
        answer, answered = self.app.answer, 0
        async for tp, message in super().getmany(timeout):
            if not await answer(message, _Message(self, message)):
                yield tp, message
                continue
            # What Faust does with each message that it takes: offsets that there are none of, as of frames that
            # retention deleted, are no reason not to commit, and a stream that it sees nothing of does not stand.
            read, self._read_offset[tp] = self._read_offset[tp], message.offset
            if read and message.offset - read > 1:
                await self._add_gap(tp, read + 1, message.offset - 1)
            self.app.monitor.stream_inbound_time[tp] = time.monotonic()
            answered += 1
            if answered % _TURN == 0:
                await asyncio.sleep(0)

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:  # noqa: ASYNC109 - Faust's name
        """As Faust's, which stands still for a second, its own or a quiet partition's, while a stream has enough."""
        if self.flow_active and not self._get_active_partitions():
            await asyncio.sleep(_ROOM_S)
            return {}, set()
        found: tuple[Any, Any] = await super()._wait_next_records(_ROOM_S if self._buffered_partitions else timeout)
        return found


class _Transport(driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


async def _unanswered(_: Any, __: Acknowledged) -> bool:
    return False


class _App(faust.App):
    answer: Callable[[Any, Acknowledged], Awaitable[bool]] = staticmethod(_unanswered)

    def _new_transport(self) -> _Transport:
        return _Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> _Transport:
        return _Transport(self.conf.broker_producer, self)


def build(settings: Settings) -> _App:
    """The app without its agent: see `attach`."""
    kafka = settings.kafka
    window = settings.worker.window or 2 * settings.worker.batch_max
    return _App(
        kafka.group,
        broker=[f"kafka://{address}" for address in kafka.brokers],
        broker_credentials=_credentials(kafka),
        datadir=tempfile.gettempdir() + f"/goldline-{kafka.group}",
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=max(1_048_576, 4 * topics.frame_max_bytes(settings)),
        producer_max_request_size=topics.frame_max_bytes(settings) + 1024 * 1024,
        producer_linger_ms=0,
        producer_max_batch_size=_PRODUCED_TOGETHER_BYTES,
        stream_buffer_maxsize=window,
        stream_wait_empty=False,
        broker_max_poll_records=window,
        broker_commit_interval=0.5,
        broker_session_timeout=15.0,
        broker_heartbeat_interval=3.0,
        worker_redirect_stdouts=False,
        autodiscover=False,
    )


def attach(app: _App, settings: Settings, lanes: Lanes) -> None:
    """Let the lanes inspect the topic of frames: one actor for each partition."""
    frames = app.topic(
        topics.name(settings.kafka.prefix, "frames"),
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        internal=False,
    )

    async def inspect(stream: Any) -> None:
        await lanes.inspect(stream)

    app.agent(frames, name="inspect", isolated_partitions=True)(inspect)
    app.answer = lanes.answer

    async def assigned(_: Any, partitions: Any, **__: Any) -> None:
        lanes.assigned({tp.partition for tp in partitions if tp.topic == frames.get_topic_name()})

    async def revoked(_: Any, partitions: Any, **__: Any) -> None:
        await lanes.drain({tp.partition for tp in partitions}, within_s=settings.worker.drain_s)

    app.on_partitions_assigned.connect(assigned, weak=False)
    app.on_partitions_revoked.connect(revoked, weak=False)


def assigned(app: faust.App) -> set[int]:
    """The partitions of the frames that this worker has now."""
    return {tp.partition for tp in app.consumer.assignment()}


class Sender:
    """Sends through the app's producer: `send` schedules, what it returns is awaited for delivery."""

    def __init__(self, app: faust.App) -> None:
        self._app = app

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int | None, headers: Headers
    ) -> Awaitable[Any]:
        """Hand one message to the producer."""
        delivered: Awaitable[Any] = await self._app.producer.send(topic, key, value, partition, None, headers)
        return delivered


def _credentials(kafka: Kafka) -> Any:
    """None for plain text."""
    context = clients.ssl_context(kafka)
    if kafka.sasl:
        return faust.SASLCredentials(
            mechanism=kafka.sasl.mechanism,
            username=kafka.sasl.username,
            password=clients.password(kafka),
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None
