"""The frame producer: shots of a station, onto the topic of frames."""

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from model_store.frames import Reference, open_roots
from pipeline.errors import ConfigError, GoldlineError, StoreUnavailable
from pipeline.settings import Settings
from workers import clients, logs, topics, wire
from workers.outages import Outages
from workers.shots import Shot
from workers.spans import Spans

log = logs.get(__name__)

OUTAGE_S = 120.0  # as long as the producer waits for its broker
_AGAIN_S = 0.5
_ON_THEIR_WAY_BYTES = 256_000_000  # of pictures that the broker has not confirmed yet; with more, shots wait


@dataclass(slots=True)
class Sent:
    """What became of the shots; `accepted` are confirmed by the broker, `failed` by neither broker nor root."""

    sent: int = 0
    accepted: int = 0
    failed: int = 0
    too_large: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartIds:
    """What a camera calls its parts. Cameras that see the same parts have to call them the same.

    Attributes:
        by: `number`, counted from 0; or `filename`, a picture's name up to the first dot.
        prefix: before either, with a dash; without one a number has a random text there, new with each start.
    """

    by: Literal["number", "filename"] = "number"
    prefix: str | None = None

    def __post_init__(self) -> None:
        if self.prefix is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", self.prefix):
            raise ConfigError(f"a prefix of part ids is letters, digits, '.', '_' and '-', not {self.prefix[:60]!r}")

    def of(self, shot: Shot, number: int, run: str) -> str:
        """The part of a shot.

        Raises:
            ConfigError: the shot has no file of its own, or one whose name no worker would take for a part's.
        """
        if self.by == "number":
            return f"{self.prefix or run}-{number:06d}"
        if shot.stem is None or not shot.stem.isprintable():
            raise ConfigError(f"{shot.name!r} has no file name for a part: leave out --part-ids filename")
        part = f"{self.prefix}-{shot.stem}" if self.prefix else shot.stem
        if len(part.encode()) > wire.ID_MAX:
            raise ConfigError(f"a part's id has {wire.ID_MAX} bytes at most, {part[:60]!r}... has {len(part.encode())}")
        return part


class Camera:
    """Sends shots of one station, confirming each.

    Args:
        settings: of the line.
        station: whose camera it is.
        recipe: the product, until another is put there between two shots.
        deadline_ms: from capture to gate; the station's by default.
        part_ids: what it calls its parts.
        spans: told of each frame's way to the broker.

    Raises:
        ConfigError: no such station, no broker, or no partition for it.
    """

    def __init__(
        self,
        settings: Settings,
        station: str,
        *,
        recipe: str = "default",
        deadline_ms: int | None = None,
        part_ids: PartIds = PartIds(),
        spans: Spans | None = None,
    ):
        if station not in settings.stations:
            known = ", ".join(settings.stations) or "none"
            raise ConfigError(f"no station {station} in the settings (there: {known})")
        self._settings = settings
        self._station = station
        self.recipe = recipe
        self._deadline_ms = deadline_ms or settings.deadline_ms(station)
        self._partition = settings.partitions()[station]
        self._topic = topics.name(settings.kafka.prefix, "frames")
        clients.require_partition(settings.kafka, self._topic, self._partition)
        self._producer = clients.producer(settings.kafka, request_max_bytes=topics.frame_max_bytes(settings))
        self._roots = open_roots(settings.frames.roots, keep_s=settings.frames.keep_s)
        self._part_ids = part_ids
        self._spans = spans or Spans(None, process="camera")
        self._run = uuid.uuid4().hex[:8]
        self._on_their_way_bytes = 0
        self._fewer = threading.Condition()
        self._outage = Outages()
        self.sent = Sent()

    def send(self, shot: Shot, *, stopped: Callable[[], bool] = lambda: False) -> str | None:
        """Send one shot; it is confirmed later, see `close`.

        While the broker has too much to confirm, this waits. A picture over the inline limit is written to the first
        root before its message is sent, which takes the time that the root takes; a root that does not answer is tried
        again for `OUTAGE_S`.

        Returns:
            The frame id, or None where the picture was not sent.
        """
        captured_at = datetime.now(UTC)
        number = self.sent.sent + self.sent.too_large
        part_id = self._part_ids.of(shot, number, self._run)
        large = len(shot.image) > self._settings.frames.inline_max_bytes
        reference = self._check_in(shot, stopped) if large else None
        if large and reference is None:
            return None
        frame_id = f"{self._station.replace('/', '-')}-{self._run}-{number:06d}"
        traceparent = wire.new_traceparent(self._settings.tracing.share)
        headers = wire.frame_headers(
            frame_id=frame_id,
            part_id=part_id,
            source=f"camera/{self._station}",
            captured_at=captured_at,
            content_type=shot.content_type,
            recipe=self.recipe,
            deadline_ms=self._deadline_ms,
            reference=reference,
            traceparent=traceparent,
        )
        image = b"" if reference else shot.image
        self._take_room(len(image), stopped)
        future = self._producer.send(
            self._topic,
            value=image,
            key=self._station.encode(),
            headers=headers,
            partition=self._partition,
        )
        self.sent.sent += 1
        about = {"station": self._station, "recipe": self.recipe, "frame_id": frame_id, "part_id": part_id}
        told = partial(self._spans.sent, traceparent, began=captured_at.timestamp(), about=about)
        future.add_callback(self._accepted, len(image), told)
        future.add_errback(self._failed, len(image), told)
        return frame_id

    def play(
        self,
        source: Iterator[Shot],
        *,
        rate: float,
        count: int | None = None,
        on_shot: Callable[[Shot, str | None], Any] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send shots at a steady rate: late ones are not dropped, and catch up.

        Args:
            source: the shots.
            rate: frames a second; 0 is as fast as it goes.
            count: at most this many.
            on_shot: told of each shot and its frame id.
            stopped: asked before each shot.
        """
        started = time.monotonic()
        for i, shot in enumerate(source):
            if (count is not None and i >= count) or stopped():
                return
            due = started + i / rate if rate else 0.0
            while (left := due - time.monotonic()) > 0 and not stopped():
                time.sleep(min(left, 0.1))
            frame_id = self.send(shot, stopped=stopped)
            if on_shot:
                on_shot(shot, frame_id)

    def close(self, timeout_s: float = 120.0) -> Sent:
        """Wait until the broker has confirmed or refused every frame."""
        try:
            self._producer.flush(timeout=timeout_s)
        except Exception as error:  # noqa: BLE001 - the counts tell what was not confirmed
            log.error("not every frame was confirmed", error=str(error))
        self._producer.close(timeout=5)
        return self.sent

    def _check_in(self, shot: Shot, stopped: Callable[[], bool]) -> Reference | None:
        """Where the picture lies now; None, counted and logged, where it cannot be put."""
        limits, size = self._settings.frames, len(shot.image)
        if size > limits.max_bytes or not limits.roots:
            self.sent.too_large += 1
            why = "[frames] max_bytes" if limits.roots else "[frames] inline_max_bytes, and [frames] roots is empty"
            log.error("not sent: the picture is too large", picture=shot.name, bytes=size, over=why)
            return None
        until = time.monotonic() + OUTAGE_S
        while True:
            try:
                reference = self._roots.put(shot.image)
            except GoldlineError as error:
                last = not isinstance(error, StoreUnavailable) or time.monotonic() > until or stopped()
                if isinstance(error, StoreUnavailable):
                    self._outage.fails("roots", str(error))
                if last or self._outage.to_tell():
                    log.error(
                        "a picture was not stored", picture=shot.name, bytes=size, again=not last, error=str(error)
                    )
                if last:
                    self.sent.sent += 1
                    self.sent.failed += 1
                    return None
            else:
                self._outage.works("roots")
                self._outage.to_tell()  # if it fails again, that is another outage
                return reference
            time.sleep(_AGAIN_S)

    def _take_room(self, size: int, stopped: Callable[[], bool]) -> None:
        with self._fewer:
            while self._on_their_way_bytes + size > max(size, _ON_THEIR_WAY_BYTES) and not stopped():
                self._fewer.wait(_AGAIN_S)
            self._on_their_way_bytes += size

    def _give_room(self, size: int) -> None:
        with self._fewer:
            self._on_their_way_bytes -= size
            self._fewer.notify()

    def _accepted(self, size: int, told: Callable[..., None], _: object) -> None:
        self.sent.accepted += 1
        self._give_room(size)
        told()

    def _failed(self, size: int, told: Callable[..., None], error: BaseException) -> None:
        self.sent.failed += 1
        self._give_room(size)
        told(error=error)
        log.error("the broker did not take a frame", error=f"{type(error).__name__}: {error}")
