"""The walk's fifth step: an outcome onto the topics. The result first; dead letter and heatmap follow."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline import heatmap
from pipeline.data import Decision, Failure, Verdict
from pipeline.settings import Settings
from workers import drift_events, logs, messages, topics, wire
from workers.desk import Tried
from workers.drift_events import DriftAlarm
from workers.metrics import WorkerMetrics
from workers.outcomes import Outcome
from workers.wire import Headers

log = logs.get(__name__)

Send = Callable[[str, bytes | None, bytes | None, int | None, Headers], Awaitable[Awaitable[Any]]]
"""topic, key, value, partition, headers -> scheduled -> delivered."""

Message = tuple[str, bytes | None, bytes | None, int | None, Headers]
"""topic, key, value, partition, headers."""

_BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Handed:
    """An outcome whose result the producer has, and the broker perhaps not yet."""

    outcome: Outcome
    heatmap: messages.HeatmapBody | None
    message: Message
    delivery: Awaitable[Any]


class Publisher:
    """Publishes outcomes; a result's future is done only when the broker has it on all in-sync replicas.

    Args:
        send: to the broker.
        settings: of the line.
        source: what messages say of who sent them.
        on_published: told of each outcome that is out; it must neither wait nor raise.
        metrics: of the worker.
    """

    def __init__(
        self,
        send: Send,
        settings: Settings,
        source: str,
        *,
        on_published: Callable[[Outcome], object] = lambda _: None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._send = send
        self._metrics = metrics or WorkerMetrics(settings)
        self._on_published = on_published
        self._source = source
        self._wanted = settings.worker.heatmaps
        self._topics = {kind: topics.name(settings.kafka.prefix, kind) for kind in topics.KINDS}
        self._later: set[asyncio.Future[None]] = set()

    async def publish(self, outcome: Outcome) -> None:
        """Deliver the result, and the dead letter where there is one; retries until the broker has them."""
        await self.confirm(await self.hand(outcome))

    async def hand(self, outcome: Outcome) -> Handed:
        """Hand the result to the producer, which sends what it was handed together; `confirm` waits for the broker."""
        record = outcome.arrival.record
        body = self.result(outcome)
        value = messages.encode_result(body)
        message = self._topics["results"], record.key, value, record.partition, self._headers(outcome)
        try:
            return Handed(outcome, body.heatmap, message, await self._send(*message))
        except Exception as error:  # noqa: BLE001 - a verdict is kept until the broker takes it
            return Handed(outcome, body.heatmap, message, _failed(error))

    async def confirm(self, handed: Handed) -> None:
        """Wait until the broker has the result, then the dead letter; retries until it has."""
        outcome = handed.outcome
        await self._deliver(handed.message, handed.delivery)
        if outcome.arrival.unreadable:
            await self._dead_letter(outcome)
        if handed.heatmap is not None and outcome.map is not None:
            self._follow(self._heatmap(outcome, handed.heatmap))
        self._metrics.published(outcome)
        self._on_published(outcome)

    def result(self, outcome: Outcome) -> messages.Result:
        """The message for an outcome."""
        place = messages.HeatmapBody(topic=self._topics["heatmaps"], key=outcome.arrival.frame.frame_id)
        return messages.result_of(
            outcome.arrival,
            outcome.answer,
            model=outcome.model,
            timings=outcome.timings,
            heatmap=place if self._wants_heatmap(outcome) else None,
            decided_at=outcome.decided_at,
        )

    def _wants_heatmap(self, outcome: Outcome) -> bool:
        if outcome.map is None or not isinstance(outcome.answer, Verdict):
            return False
        return self._wanted == "all" or (self._wanted == "reject" and outcome.answer.decision is Decision.REJECT)

    def _headers(self, outcome: Outcome) -> Headers:
        frame = outcome.arrival.frame
        version = outcome.model.version if outcome.model else None
        headers = wire.event_headers(
            wire.RESULT_TYPE,
            messages.result_id(frame.frame_id, version),
            self._source,
            outcome.decided_at,
            "application/json",
        )
        headers.append(("ce_subject", frame.frame_id.encode()))
        if outcome.arrival.traceparent:
            headers.append(("traceparent", outcome.arrival.traceparent.encode()))
        return headers

    async def _dead_letter(self, outcome: Outcome) -> None:
        record, answer = outcome.arrival.record, outcome.answer
        detail = answer.detail if isinstance(answer, Failure) else ""
        reason = answer.reason.value if isinstance(answer, Failure) else ""
        # Headers of ours come first, so that no header of the message can pass for one of them.
        headers: Headers = [
            ("goldline_reason", reason.encode()),
            ("goldline_detail", detail[:500].encode()),
            ("goldline_topic", record.topic.encode()),
            ("goldline_partition", str(record.partition).encode()),
            ("goldline_offset", str(record.offset).encode()),
            ("goldline_at", wire.rfc3339(datetime.now(UTC)).encode()),
            ("goldline_frame_id", outcome.arrival.frame.frame_id.encode()),
        ]
        original = [(name, value or b"") for name, value in record.headers]
        room = 32 * 1024
        for name, value in original:
            room -= len(name.encode()) + len(value)
            if room < 0:
                headers.append(("goldline_headers_cut", b"true"))
                break
            headers.append((name, value))
        await self._deliver((self._topics["dead-letters"], record.key, record.value, None, headers))

    def _follow(self, task: Awaitable[None]) -> None:
        future = asyncio.ensure_future(task)
        self._later.add(future)
        future.add_done_callback(self._later.discard)

    async def _heatmap(self, outcome: Outcome, place: messages.HeatmapBody) -> None:
        """Best effort: a lost heatmap is a log line, never a delay."""
        if outcome.map is None or outcome.placement is None:
            return
        try:
            picture = await asyncio.to_thread(heatmap.encode, outcome.map.numpy())
            p = outcome.placement
            headers = wire.event_headers(wire.HEATMAP_TYPE, place.key, self._source, outcome.decided_at, "image/png")
            headers += [
                ("goldline_low", repr(picture.low).encode()),
                ("goldline_high", repr(picture.high).encode()),
                ("goldline_affine", json.dumps([p.x0, p.y0, p.step_x, p.step_y]).encode()),
                ("goldline_image_size", json.dumps(p.image_size).encode()),
            ]
            await (await self._send(place.topic, place.key.encode(), picture.png, None, headers))
            self._metrics.heatmap(published=True)
        except Exception as error:  # noqa: BLE001
            self._metrics.heatmap(published=False)
            log.warning("a heatmap was not published", frame_id=place.key, error=str(error))

    def tried(self, tried: list[Tried]) -> None:
        """Publish what a model on trial said, best effort; on the event loop's thread."""
        for each in tried:
            self._follow(self._comparison(each))

    async def _comparison(self, tried: Tried) -> None:
        frame, answer, model = tried.outcome.arrival.frame, tried.outcome.answer, tried.outcome.model
        if not isinstance(answer, Verdict) or model is None:
            return
        decided_at = tried.outcome.decided_at
        body = messages.Comparison(
            frame_id=frame.frame_id,
            part_id=frame.part_id,
            station=frame.station,
            recipe=frame.recipe,
            active=messages.opinion_of(answer, model),
            shadow=messages.opinion_of(tried.verdict, tried.model),
            captured_at=frame.captured_at or decided_at,
            decided_at=decided_at,
        )
        event_id = messages.result_id(frame.frame_id, tried.model.version)
        headers = wire.event_headers(wire.SHADOW_TYPE, event_id, self._source, decided_at, "application/json")
        try:
            value = messages.encode_comparison(body)
            await (await self._send(self._topics["shadow"], frame.station.encode(), value, None, headers))
        except Exception as error:  # noqa: BLE001
            log.warning("what a model on trial said was not published", frame_id=frame.frame_id, error=str(error))

    def drifted(self, alarm: DriftAlarm) -> None:
        """Publish an alarm, until the broker has it; on the event loop's thread."""
        event_id = messages.result_id(alarm.frame_id, alarm.monitor)
        headers = wire.event_headers(wire.DRIFT_TYPE, event_id, self._source, alarm.at, "application/json")
        value = drift_events.encode(alarm)
        self._follow(self._deliver((self._topics["drift"], alarm.station.encode(), value, None, headers)))

    async def settle(self) -> None:
        """Wait for what is best effort and still under way, but not for a broker that is away."""
        if self._later:
            await asyncio.wait(self._later, timeout=_SETTLE_S)

    async def _deliver(self, message: Message, delivery: Awaitable[Any] | None = None) -> None:
        attempt = 0
        while True:
            try:
                await (delivery if delivery is not None else await self._send(*message))
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a verdict is kept until the broker takes it
                self._metrics.publish_failures.inc()
                pause = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                log.warning(
                    "publish failed", topic=message[0], again_in_s=pause, error=f"{type(error).__name__}: {error}"
                )
            delivery = None
            attempt += 1
            await asyncio.sleep(pause)


async def _failed(error: Exception) -> None:
    """A delivery that did not begin."""
    raise error
