"""The JSON of a result: what gates subscribe to. Changes are additive; readers ignore what they do not know."""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from model_store.pool_records import Feedback
from pipeline.data import Decision, Failure, Verdict
from workers.wire import FEEDBACK_TYPE, RESULT_TYPE, Arrival

Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]


class RegionBody(Struct, frozen=True, kw_only=True):
    """Image pixels after EXIF rotation; the box's far edges are exclusive."""

    box: tuple[int, int, int, int]
    peak: tuple[int, int]
    area_px: int


class ModelBody(Struct, frozen=True, kw_only=True):
    """Which model decided."""

    method: str
    version: str


class HeatmapBody(Struct, frozen=True, kw_only=True):
    """Where the frame's heatmap will be found; it follows the result, best effort."""

    topic: str
    key: str


class TimingsBody(Struct, frozen=True, kw_only=True):
    """Milliseconds; decode, embed and score are the batch's that the frame was in; total is received to decided."""

    queue: float = 0.0
    decode: float = 0.0
    embed: float = 0.0
    score: float = 0.0
    total: float = 0.0


class Result(Struct, frozen=True, kw_only=True):
    """The JSON of one terminal verdict: what gates subscribe to. Readers ignore fields they do not know."""

    result_id: str
    frame_id: str
    part_id: str | None
    station: str | None
    recipe: str
    verdict: Literal["pass", "reject", "no_decision"]
    reason: Literal["late", "shed", "bad_frame", "no_model", "error"] | None = None
    detail: str | None = None
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    regions: tuple[RegionBody, ...] = ()
    model: ModelBody | None = None
    late: bool = False
    timings_ms: TimingsBody = TimingsBody()
    captured_at: Moment
    deadline_at: Moment
    decided_at: Moment
    heatmap: HeatmapBody | None = None


class OpinionBody(Struct, frozen=True, kw_only=True):
    """What one model said of a frame."""

    model: ModelBody
    verdict: Decision
    score: float
    threshold: float
    p_value: float


class Comparison(Struct, frozen=True, kw_only=True):
    """A frame that one model decided about, and what a model on trial would have said."""

    frame_id: str
    part_id: str | None
    station: str
    recipe: str
    active: OpinionBody
    shadow: OpinionBody
    captured_at: Moment
    decided_at: Moment


_encoder = msgspec.json.Encoder()
_comparisons = msgspec.json.Decoder(Comparison)
_decoder = msgspec.json.Decoder(Result)
_feedback = msgspec.json.Decoder(Feedback)
_FEEDBACK_MAX_BYTES = 16_384


def encode_result(result: Result) -> bytes:
    """A result as JSON."""
    return _encoder.encode(result)


def decode_result(value: bytes | None) -> Result | None:
    """The result in a message; None when it is none of ours."""
    try:
        return _decoder.decode(value or b"")
    except msgspec.MsgspecError:
        return None


def encode_comparison(comparison: Comparison) -> bytes:
    """A comparison as JSON."""
    return _encoder.encode(comparison)


def decode_comparison(value: bytes | None) -> Comparison | None:
    """The comparison in a message; None when it is none of ours."""
    try:
        return _comparisons.decode(value or b"")
    except msgspec.MsgspecError:
        return None


def encode_feedback(feedback: Feedback) -> bytes:
    """What somebody found a part to be, as JSON."""
    return _encoder.encode(feedback)


def decode_feedback(value: bytes | None, key: bytes | None) -> Feedback | None:
    """The feedback in a message whose key is the part; None when it is none of ours."""
    if value is None or len(value) > _FEEDBACK_MAX_BYTES:
        return None
    try:
        feedback = _feedback.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return feedback if feedback.part_id.encode() == key else None


def opinion_of(verdict: Verdict, model: ModelBody) -> OpinionBody:
    """A verdict as the part of a comparison that it becomes."""
    return OpinionBody(
        model=model,
        verdict=verdict.decision,
        score=verdict.score,
        threshold=verdict.threshold,
        p_value=verdict.p_value,
    )


def result_schema() -> dict[str, Any]:
    """JSON Schema of a result, as checked in beside this file and published to subscribers."""
    schema = msgspec.json.schema(Result)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": RESULT_TYPE, **schema}


def feedback_schema() -> dict[str, Any]:
    """JSON Schema of feedback, as checked in beside this file, for programs that send it."""
    schema = msgspec.json.schema(Feedback)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FEEDBACK_TYPE, **schema}


def result_id(frame_id: str, version: str | None) -> str:
    """The same for the same frame and model version, so that repeats are seen to be repeats."""
    return hashlib.sha256(f"{frame_id}\n{version or ''}".encode()).hexdigest()[:32]


def result_of(
    arrival: Arrival,
    outcome: Verdict | Failure,
    *,
    model: ModelBody | None,
    timings: TimingsBody,
    heatmap: HeatmapBody | None,
    decided_at: datetime,
) -> Result:
    """The message for what became of a frame."""
    frame = arrival.frame
    captured_at, deadline_at = frame.captured_at or decided_at, frame.deadline_at or decided_at
    base = Result(
        result_id=result_id(frame.frame_id, model.version if model else None),
        frame_id=frame.frame_id,
        part_id=frame.part_id,
        station=frame.station or None,
        recipe=frame.recipe,
        verdict="no_decision",
        captured_at=captured_at,
        deadline_at=deadline_at,
        decided_at=decided_at,
        late=decided_at > deadline_at,
        timings_ms=timings,
        model=model,
    )
    if isinstance(outcome, Failure):
        return msgspec.structs.replace(base, reason=outcome.reason.value, detail=outcome.detail[:500])
    return msgspec.structs.replace(
        base,
        verdict=outcome.decision.value,
        score=outcome.score,
        threshold=outcome.threshold,
        p_value=outcome.p_value,
        regions=tuple(RegionBody(box=r.box, peak=r.peak, area_px=r.area_px) for r in outcome.regions),
        heatmap=heatmap,
    )
