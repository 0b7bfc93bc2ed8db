"""The dead letters: frames that could not be read, with reason and origin, and their way back."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers import clients, topics, wire
from workers.wire import Headers, Record

_OURS = "goldline_"
_QUIET_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter. `number` is its offset on its partition, `origin` the frame's own topic/partition/offset."""

    number: str
    reason: str
    detail: str
    origin: str
    frame_id: str
    station: str | None
    at: str
    size_bytes: int
    record: Record

    def body(self) -> dict[str, object]:
        """As JSON, without the picture."""
        return {
            "number": self.number,
            "frame_id": self.frame_id,
            "station": self.station,
            "reason": self.reason,
            "detail": self.detail,
            "origin": self.origin,
            "at": self.at,
            "size_bytes": self.size_bytes,
        }


def letters(settings: Settings) -> Iterator[Letter]:
    """Every dead letter there is, oldest first in each partition."""
    limit = topics.frame_max_bytes(settings) + 64 * 1024
    topic = topics.name(settings.kafka.prefix, "dead-letters")
    client = clients.tail(settings.kafka, topic, from_start=True, fetch_max_bytes=2 * limit)
    ends = client.end_offsets(client.assignment())
    heard = time.monotonic()
    try:
        while any(client.position(tp) < end for tp, end in ends.items()):
            for record in clients.records(client):
                heard = time.monotonic()
                yield _letter(record)
            if time.monotonic() - heard > _QUIET_S:
                raise ConfigError("the broker stopped answering in the middle of the dead letters; try again")
    finally:
        client.close()


def find(settings: Settings, wanted: str) -> Letter:
    """The letter with this number (partition/offset) or frame id.

    Raises:
        ConfigError: there is none.
    """
    for letter in letters(settings):
        if wanted in {letter.number, letter.frame_id}:
            return letter
    raise ConfigError(f"no dead letter {wanted!r}; see them with: goldline dead-letters list")


def replay(settings: Settings, found: list[Letter]) -> int:
    """Send letters back to the topic of frames, each under a new frame id that says what it replays.

    The old frame has its verdict, which stands; the new one gets its own, with a deadline from now.

    Returns:
        How many the broker accepted.
    """
    client = clients.producer(settings.kafka, request_max_bytes=topics.frame_max_bytes(settings))
    places = settings.partitions()
    accepted = 0
    for letter in found:
        headers: Headers = [
            (name, value or b"")
            for name, value in letter.record.headers
            if not name.startswith(_OURS) and name not in {"ce_id", "ce_time", "ce_replayof"}
        ]
        headers += [
            ("ce_id", f"replay-{uuid.uuid4().hex}".encode()),
            ("ce_time", wire.rfc3339(wire.now()).encode()),
            ("ce_replayof", letter.frame_id.encode()),
        ]
        client.send(
            topics.name(settings.kafka.prefix, "frames"),
            value=letter.record.value,
            key=letter.record.key,
            headers=headers,
            partition=places.get(letter.station or ""),
        ).get(timeout=60)
        accepted += 1
    client.close()
    return accepted


def _letter(record: Record) -> Letter:
    said = {name: wire.header(record.headers, name) or "" for name in _NAMES}
    return Letter(
        number=f"{record.partition}/{record.offset}",
        reason=said["goldline_reason"],
        detail=said["goldline_detail"],
        origin="/".join(said[f"goldline_{part}"] for part in ("topic", "partition", "offset")),
        frame_id=said["goldline_frame_id"],
        station=wire.station_of(record.key),
        at=said["goldline_at"],
        size_bytes=len(record.value or b""),
        record=record,
    )


_NAMES = tuple(f"{_OURS}{part}" for part in ("reason", "detail", "topic", "partition", "offset", "frame_id", "at"))
