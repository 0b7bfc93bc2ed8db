"""What is on the wire: CloudEvents 1.0 in Kafka's binary mode, and the JSON of a result.

Nothing in a message is believed: ids, names and times are checked and bounded here, once, and whatever is wrong
becomes a `Failure` that travels with the frame.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from model_store.frames import Reference
from pipeline.data import Failure, Frame, Reason
from pipeline.settings import RECIPE_PATTERN, STATION_PATTERN, Settings

FRAME_TYPE = "goldline.frame.v1"
RESULT_TYPE = "goldline.result.v1"
HEATMAP_TYPE = "goldline.heatmap.v1"
SHADOW_TYPE = "goldline.shadow.v1"
FEEDBACK_TYPE = "goldline.feedback.v1"
DRIFT_TYPE = "goldline.drift.v1"
ID_MAX = 200
_RECIPE = re.compile(RECIPE_PATTERN)
_STATION = re.compile(STATION_PATTERN)
# W3C Trace Context: ff is no version, and ids of zeros are none.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_LAST_MS = 253_370_764_800_000  # 9999-01-01: Python's calendar ends soon after

Headers: TypeAlias = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A Kafka record as it came, from whichever client."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]

    @property
    def origin(self) -> str:
        """`topic/partition/offset`."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A frame as it arrived.

    Attributes:
        problem: why it cannot be inspected, if so; a readable picture may still turn out broken later.
        reference: where its picture lies, if it did not come along.
        unreadable: the message itself is at fault and belongs among the dead letters.
    """

    frame: Frame
    record: Record
    traceparent: str | None = None
    problem: Failure | None = None
    reference: Reference | None = None
    unreadable: bool = False


def event_headers(kind: str, event_id: str, source: str, at: datetime, content_type: str) -> Headers:
    """The CloudEvents headers that every message of ours carries."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", kind.encode()),
        ("ce_source", source.encode()),
        ("ce_time", rfc3339(at).encode()),
        ("content-type", content_type.encode()),
    ]


def frame_headers(
    *,
    frame_id: str,
    part_id: str,
    source: str,
    captured_at: datetime,
    content_type: str,
    recipe: str = "default",
    deadline_ms: int | None = None,
    reference: Reference | None = None,
    traceparent: str | None = None,
) -> Headers:
    """Headers of a frame, as cameras send them."""
    headers = event_headers(FRAME_TYPE, frame_id, source, captured_at, content_type)
    headers += [("ce_partid", part_id.encode()), ("ce_recipe", recipe.encode())]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    if deadline_ms is not None:
        headers.append(("ce_deadlinems", str(deadline_ms).encode()))
    if reference is not None:
        headers += [
            ("ce_dataref", reference.url.encode()),
            ("ce_datasha256", reference.sha256.encode()),
            ("ce_datasize", str(reference.size_bytes).encode()),
        ]
    return headers


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def station_of(key: bytes | None) -> str | None:
    """The station that a message's key names, if it names one."""
    text = _text(key, ID_MAX)
    return text if text and _STATION.fullmatch(text) else None


def rfc3339(at: datetime) -> str:
    """UTC with microseconds and a Z."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_frame(record: Record, settings: Settings) -> Arrival:
    """What a message on the topic of frames says; whatever it says, an `Arrival` comes of it."""
    headers = _header_texts(record.headers)
    captured_at = _captured_at(headers.get("ce_time"), record.timestamp_ms)
    station = station_of(record.key) or ""
    problem: str | None = None
    if not station:
        problem = "the message's key is not a station (line/station in a-z, 0-9 and -)"
    recipe = headers.get("ce_recipe", "default")
    if not _RECIPE.fullmatch(recipe):
        problem, recipe = problem or "ce_recipe is not a recipe's name", "default"
    reference = None if record.value else _reference(headers, settings.frames.max_bytes)
    if isinstance(reference, str):
        problem, reference = problem or reference, None
    frame = Frame(
        frame_id=_identifier(headers.get("ce_id")) or record.origin,
        image=record.value or b"",
        station=station,
        recipe=recipe,
        part_id=_identifier(headers.get("ce_partid")),
        captured_at=captured_at,
        deadline_at=captured_at + timedelta(milliseconds=_deadline_ms(headers, station, settings)),
    )
    arrival = Arrival(
        frame=frame,
        record=record,
        traceparent=traceparent_of(headers.get("traceparent")),
        reference=reference,
        unreadable=False,
    )
    if problem is None and station not in settings.stations:
        failure = Failure(
            frame_id=frame.frame_id,
            reason=Reason.NO_MODEL,
            detail=f"station {station} is not in the settings",
        )
        return replace(arrival, problem=failure)
    if problem is None:
        return arrival
    failure = Failure(frame_id=frame.frame_id, reason=Reason.BAD_FRAME, detail=problem)
    return replace(arrival, problem=failure, unreadable=True)


def new_traceparent(share: float = 1.0) -> str:
    """A trace of its own, of which this share is sampled: https://www.w3.org/TR/trace-context/."""
    trace = secrets.token_hex(16)
    # By the trace's last 56 bits, which are random in every trace that follows the standard.
    sampled = int(trace[-14:], 16) < share * 2**56
    return f"00-{trace}-{secrets.token_hex(8)}-{sampled:02x}"


def is_sampled(traceparent: str) -> bool:
    """Whether spans of this trace are wanted."""
    return bool(int(traceparent[53:55], 16) & 1)


def traceparent_of(text: str | None) -> str | None:
    """The same, if it is a `traceparent`."""
    return text if text and _TRACEPARENT.fullmatch(text) else None


def header(headers: Sequence[tuple[str, bytes | None]], name: str) -> str | None:
    """One header's text, bounded; None when it is missing or not text."""
    return _header_texts(headers).get(name)


def _header_texts(headers: Sequence[tuple[str, bytes | None]]) -> Mapping[str, str]:
    """The first header of each name, where it is plain text: a later one never stands in for it."""
    first: dict[str, bytes | None] = {}
    for name, value in list(headers)[:64]:
        first.setdefault(name, value)
    texts = {name: _text(value, 1000) for name, value in first.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _text(value: bytes | None, at_most: int) -> str | None:
    """UTF-8 of bounded length without control characters, else None."""
    if not value or len(value) > at_most:
        return None
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _identifier(text: str | None) -> str | None:
    return text if text and len(text) <= ID_MAX and text.strip() else None


def _captured_at(text: str | None, timestamp_ms: int) -> datetime:
    """`ce_time`, but never later than the broker saw the frame: a deadline cannot be put off by a wrong clock."""
    appended = datetime.fromtimestamp(min(max(timestamp_ms, 0), _LAST_MS) / 1000, UTC)
    try:
        claimed = datetime.fromisoformat(text or "")
        return min(claimed.astimezone(UTC), appended) if claimed.tzinfo else appended
    except (ValueError, OverflowError):
        return appended


def _reference(headers: Mapping[str, str], max_bytes: int) -> Reference | str:
    """Where a picture that did not come along is said to lie, or what is wrong with that."""
    url, sha256, size = (headers.get(f"ce_data{part}", "") for part in ("ref", "sha256", "size"))
    if not url:
        return "the message has no picture: 0 bytes, and no readable reference to one"
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return "ce_datasha256 is not 64 hexadecimal digits in lower case"
    if not re.fullmatch(r"[0-9]{1,12}", size) or not 1 <= int(size) <= max_bytes:
        return f"ce_datasize is not a number of bytes from 1 to {max_bytes} ([frames] max_bytes)"
    return Reference(url=url, sha256=sha256, size_bytes=int(size))


def _deadline_ms(headers: Mapping[str, str], station: str, settings: Settings) -> int:
    text = headers.get("ce_deadlinems", "")
    own = settings.deadline_ms(station)
    asked = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else own
    return min(max(asked, 1), settings.frames.deadline_max_ms)
