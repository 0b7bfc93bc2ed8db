"""What each topic of a line is made with."""

from dataclasses import dataclass, field

from pipeline.settings import Settings

KINDS = ("frames", "results", "heatmaps", "dead-letters", "feedback", "shadow", "drift")

_HEADERS_MAX_BYTES = 65_536
_BATCH_BYTES = 1_024
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_MIB = 1_048_576


@dataclass(frozen=True, kw_only=True)
class TopicSpec:
    """How a topic has to be."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)
    """Kafka's own names and values; what is not named stays the broker's default."""


def name(prefix: str, kind: str) -> str:
    """The topic of a kind, one of `KINDS`."""
    return f"{prefix}.{kind}"


def specs(*, partitions: int, frame_max_bytes: int, prefix: str = "goldline") -> tuple[TopicSpec, ...]:
    """All topics of a line.

    Args:
        partitions: of frames and results, always the same: a worker recovers its answers to a partition's
            frames from the results partition of the same number.
        frame_max_bytes: the largest inline frame, value alone.
        prefix: what the names begin with.
    """
    # A record's key, headers and batch take room beside its value.
    frame_limit = frame_max_bytes + _HEADERS_MAX_BYTES + _BATCH_BYTES
    # A dead letter is the original message with headers of ours on top.
    letter_limit = frame_limit + _HEADERS_MAX_BYTES
    # Broker's time: recovery looks results up by the time of a frame, and camera clocks drift.
    append_time = {"message.timestamp.type": "LogAppendTime"}
    # An hour outlasts a restart or a refit; parts older than that have long passed the gate. The bytes bound
    # the disk at 30 frames of 200 kB a second for six minutes and more, whichever limit comes first.
    frames = {**_kept(_HOUR_MS, segment_bytes=64 * _MIB, segment_ms=_HOUR_MS // 12), **append_time}
    frames |= {"retention.bytes": str(max(2_048 * _MIB, 64 * frame_limit))}
    # A week answers "what did the line decide last Thursday?"; a result is about 1 kB.
    results = {**_kept(7 * _DAY_MS, segment_bytes=64 * _MIB, segment_ms=_DAY_MS), **append_time}
    # Heatmaps are for the shift that sees them.
    heatmaps = _kept(_DAY_MS, segment_bytes=64 * _MIB, segment_ms=_HOUR_MS)
    # Two weeks: somebody has to find the time to look at them.
    letters = _kept(14 * _DAY_MS, segment_bytes=64 * _MIB, segment_ms=_DAY_MS)
    # A trial takes days; what it said is looked at within weeks.
    shadow = _kept(30 * _DAY_MS, segment_bytes=16 * _MIB, segment_ms=7 * _DAY_MS)
    # A season of refits learns from it, and downstream findings come late.
    feedback = _kept(90 * _DAY_MS, segment_bytes=16 * _MIB, segment_ms=7 * _DAY_MS)
    # Alarms and acceptances are few, and an acceptance counts until another: a year outlasts any state that is kept.
    # Broker's time: which of two is the later must not hang on two machines' clocks.
    drift = {**_kept(365 * _DAY_MS, segment_bytes=16 * _MIB, segment_ms=30 * _DAY_MS), **append_time}
    frames["max.message.bytes"] = str(frame_limit)
    letters["max.message.bytes"] = str(letter_limit)
    made = {"frames": frames, "results": results, "heatmaps": heatmaps, "dead-letters": letters}
    wide = {"frames": partitions, "results": partitions, "heatmaps": partitions}
    return tuple(
        TopicSpec(name=name(prefix, kind), partitions=wide.get(kind, 1), config=config)
        for kind, config in {**made, "feedback": feedback, "shadow": shadow, "drift": drift}.items()
    )


def frame_max_bytes(settings: Settings) -> int:
    """The largest message on the topic of frames: the picture, its key and its headers."""
    return settings.frames.inline_max_bytes + _HEADERS_MAX_BYTES


def of(settings: Settings) -> tuple[TopicSpec, ...]:
    """All topics of the line that these settings describe."""
    return specs(
        partitions=settings.partition_count(),
        frame_max_bytes=settings.frames.inline_max_bytes,
        prefix=settings.kafka.prefix,
    )


def _kept(retention_ms: int, *, segment_bytes: int, segment_ms: int) -> dict[str, str]:
    """Deleted by age, in segments small enough that age is kept to closely.

    Only closed segments are deleted, so `segment_ms` bounds how much longer than `retention_ms` a record
    stays on a quiet topic. What the producer sent stays as sent: the broker never recompresses.
    """
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "segment.bytes": str(segment_bytes),
        "segment.ms": str(segment_ms),
        "compression.type": "producer",
    }
