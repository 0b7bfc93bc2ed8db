"""What was answered before this worker came: read from the topic of results itself.

Results lie in the partition of their frames, and both topics carry the broker's append time. So every answer to a
frame that is not committed yet was appended after that frame was: reading the results from that moment on finds them
all, however the worker before us ended.
"""

from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition

from pipeline.settings import Kafka
from workers import clients, logs, topics, wire

log = logs.get(__name__)

_CLOCKS_MS = 60_000  # two brokers' clocks may differ; reading too far back costs little, too short would repeat
_READ_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a partition's past says.

    Attributes:
        answered: ids of frames that have their verdict.
        backlog: frames that wait to be inspected, answered ones included.
        lost: frames that retention deleted before anyone read them.
    """

    answered: frozenset[str] = frozenset()
    backlog: int = 0
    lost: int = 0


def recover(kafka: Kafka, partition: int, *, fetch_max_bytes: int) -> Recovered:
    """Read a newly assigned partition's answers; call it on a thread, it blocks.

    Args:
        kafka: where.
        partition: of the frames, and so of their results.
        fetch_max_bytes: at least the largest frame.
    """
    client = clients.consumer(kafka, fetch_max_bytes=fetch_max_bytes, group_id=kafka.group)
    try:
        frames = TopicPartition(topics.name(kafka.prefix, "frames"), partition)
        committed = client.committed(frames)
        begin, end = client.beginning_offsets([frames])[frames], client.end_offsets([frames])[frames]
        lost = max(0, begin - committed) if committed is not None else 0
        start = max(committed or 0, begin)
        if start >= end:
            return Recovered(lost=lost)
        since = _append_time(client, frames, start)
        results = TopicPartition(topics.name(kafka.prefix, "results"), partition)
        answered = frozenset() if since is None else _ids(client, results, since - _CLOCKS_MS)
        return Recovered(answered=answered, backlog=end - start, lost=lost)
    finally:
        client.close()


def _append_time(client: KafkaConsumer, frames: TopicPartition, offset: int) -> int | None:
    """Milliseconds since 1970 at which the broker took the first record at or after `offset`."""
    client.assign([frames])
    client.seek(frames, offset)
    for batch in client.poll(timeout_ms=5000, max_records=1).values():
        return int(batch[0].timestamp)
    return None


def _ids(client: KafkaConsumer, results: TopicPartition, since_ms: int) -> frozenset[str]:
    client.assign([results])
    end = client.end_offsets([results])[results]
    found = client.offsets_for_times({results: max(since_ms, 0)})[results]
    if found is None or found.offset >= end:
        return frozenset()
    client.seek(results, found.offset)
    ids = set()
    while client.position(results) < end:
        read = list(clients.records(client, timeout_ms=round(_READ_S * 1000), at_most=5000))
        if not read:
            log.error("recovery: the results' tail stopped answering", partition=results.partition)
            break
        for record in read:
            frame_id = wire.header(record.headers, "ce_subject")
            if frame_id:
                ids.add(frame_id)
    return frozenset(ids)
