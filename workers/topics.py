"""The topics: what each is made with, making them, and checking those that are there.

Nothing here changes a topic that exists: `check` says what is wrong, a person decides.
"""

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from kafka.net.compat import KafkaNetClient

from pipeline.errors import ConfigError
from pipeline.settings import Settings

__all__ = ["KINDS", "TopicSpec", "admin", "check", "create", "delete", "frame_max_bytes", "name", "of", "specs"]

KINDS = ("frames", "results", "heatmaps", "dead-letters", "feedback", "shadow", "drift")

_HEADERS_MAX_BYTES = 65_536
_BATCH_BYTES = 1_024
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_MIB = 1_048_576
_MEND = "goldline topics create --config line.toml"


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


def admin(brokers: Sequence[str], client_options: Mapping[str, Any], *, timeout_s: float) -> KafkaAdminClient:
    """A connected admin client.

    Raises:
        KafkaError: nobody answered within `timeout_s`; unlike kafka-python alone, this leaves no thread then.
    """
    made: list[KafkaNetClient] = []

    def keep(**options: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**options))
        return made[-1]

    timeout_ms = int(timeout_s * 1000)
    limits = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    try:
        return KafkaAdminClient(bootstrap_servers=list(brokers), kafka_client=keep, **{**limits, **client_options})
    except BaseException:
        for client in made:
            client.close()
        raise


def create(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    replication: int = 1,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> list[str]:
    """Makes the topics that are missing and waits until they can be used.

    Returns:
        The names of those made; existing ones are left as they are (see `check`).

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with _admin(brokers, client_options or {}, timeout_s) as client:
        there = set(client.list_topics())
        missing = [spec for spec in specs if spec.name not in there]
        made: list[str] = []
        for spec in missing:
            # Acknowledged frames survive the loss of one replica where there are three.
            config = {**spec.config, "min.insync.replicas": str(max(1, replication - 1))}
            wanted = {"num_partitions": spec.partitions, "replication_factor": replication, "configs": config}
            with contextlib.suppress(TopicAlreadyExistsError):  # somebody else made it meanwhile
                client.create_topics({spec.name: wanted})
                made.append(spec.name)
        client.wait_for_topics([spec.name for spec in missing], timeout_ms=timeout_s * 1000)
    return made


def delete(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> None:
    """Deletes topics and all that is in them; those that are not there are passed over.

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with _admin(brokers, client_options or {}, timeout_s) as client:
        there = set(client.list_topics())
        client.delete_topics([spec.name for spec in specs if spec.name in there])


def check(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> list[str]:
    """What is wrong with the topics, a sentence each with the command that mends it; empty when all is well.

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with _admin(brokers, client_options or {}, timeout_s) as client:
        names = [spec.name for spec in specs]
        counts = {
            topic["name"]: len(topic["partitions"])
            for topic in client.describe_topics(names)
            if _exists(topic["name"], topic["error_code"])
        }
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in counts]
        configs = client.describe_configs(wanted, config_filter="all")["topic"] if wanted else {}
    problems: list[str] = []
    for spec in specs:
        if spec.name not in counts:
            problems.append(f"topic {spec.name} is missing; make it: {_MEND}")
            continue
        config = {key: str(entry["value"]) for key, entry in configs[spec.name].items()}
        problems += _wrong_count(spec, counts) + _wrong_config(spec, config)
    return problems


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


def _wrong_count(spec: TopicSpec, counts: Mapping[str, int]) -> list[str]:
    have, topic = counts[spec.name], spec.name
    prefix, _, kind = topic.rpartition(".")
    frames = name(prefix, "frames")
    if kind == "results" and counts.get(frames, have) != have:
        need, wanted = f"as many as {frames}, {counts[frames]}", max(counts[frames], spec.partitions)
    elif have < spec.partitions:
        need, wanted = f"{spec.partitions}", spec.partitions
    else:
        return []
    mend = f"kafka-topics.sh --alter --topic {topic} --partitions {wanted} while no worker runs, or delete it and run"
    return [f"topic {topic} has partitions: {have}, needed: {need}; {mend}: {_MEND}"]


def _wrong_config(spec: TopicSpec, have: Mapping[str, str]) -> list[str]:
    def told(key: str, needed: str) -> str:
        alter = f"kafka-configs.sh --alter --topic {spec.name} --add-config {key}={spec.config[key]}"
        seen = f"topic {spec.name} has {key}={have[key]}, needed: {needed}"
        return f"{seen}; {alter}, or delete it and run: {_MEND}"

    problems: list[str] = []
    limit = "max.message.bytes"
    if limit in spec.config and int(have[limit]) < int(spec.config[limit]):
        problems.append(told(limit, f"{spec.config[limit]} or more"))
    exact = (key for key in ("message.timestamp.type", "cleanup.policy") if key in spec.config)
    problems += [told(key, spec.config[key]) for key in exact if have[key] != spec.config[key]]
    return problems


def _exists(topic: str, code: int) -> bool:
    """Whether metadata has the topic; an error other than "unknown" is raised, not taken for absence."""
    if code in {0, 5}:  # 5: a partition has no leader just now
        return True
    if code == 3:
        return False
    raise for_code(code)(topic)


@contextlib.contextmanager
def _admin(brokers: Sequence[str], client_options: Mapping[str, Any], timeout_s: float) -> Iterator[KafkaAdminClient]:
    where = ", ".join(brokers)
    if "proxy_url" not in client_options and not _reachable(brokers, timeout_s):
        raise ConfigError(f"no Kafka broker answers at {where} within {timeout_s:g} s")
    try:
        client = admin(brokers, client_options, timeout_s=timeout_s)
    except (KafkaError, OSError) as error:
        raise ConfigError(f"no Kafka broker answers at {where} within {timeout_s:g} s: {error}") from error
    try:
        with client:
            yield client
    except KafkaError as error:
        raise ConfigError(f"the Kafka broker at {where} refused: {error}") from error


def _reachable(brokers: Sequence[str], within_s: float) -> bool:
    """Whether any address accepts a connection; kafka-python leaks a socket for each one refused."""
    deadline = time.monotonic() + within_s
    while True:
        for broker in brokers:
            host, _, port = broker.rpartition(":")
            with contextlib.suppress(OSError, ValueError):
                socket.create_connection((host.strip("[]"), int(port)), timeout=within_s).close()
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
