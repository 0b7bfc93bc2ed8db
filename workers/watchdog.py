"""Ends a worker that is alive but stuck, so that its supervisor starts a new one.

After some errors a Faust worker stays up and idle for good (faust-streaming #166, #523, #532, #629). From a thread of
its own, with a client of its own, the watchdog compares what the group has committed with what the topic holds: frames
waiting and no commit moving for `stuck_s` seconds, while the broker answers, is stuck. A broker that does not answer
is no reason to die: the worker waits for it like everybody else.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping

from kafka import TopicPartition
from kafka.errors import KafkaError

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers import clients, logs, topics
from workers.metrics import WorkerMetrics

log = logs.get(__name__)

EXIT_STUCK = 70
_LOOK_S = 5.0


class Stall:
    """Which partitions have waiting frames and no progress, since when."""

    def __init__(self, stuck_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stuck_s = stuck_s
        self._clock = clock
        self._moved: dict[int, tuple[int, float]] = {}

    def look(self, committed: Mapping[int, int], end: Mapping[int, int]) -> list[int]:
        """Partitions stuck for longer than `stuck_s` by now."""
        now = self._clock()
        # A partition that went to another worker and came back is given its whole time again.
        self._moved = {partition: moved for partition, moved in self._moved.items() if partition in committed}
        stuck = []
        for partition, offset in committed.items():
            before, since = self._moved.get(partition, (-1, now))
            if offset != before or end.get(partition, 0) <= offset:
                self._moved[partition] = (offset, now)
            elif now - since > self._stuck_s:
                stuck.append(partition)
        return stuck


def start(settings: Settings, assigned: Callable[[], set[int]], metrics: WorkerMetrics) -> threading.Thread:
    """Watch until the process ends.

    Args:
        settings: of the worker.
        assigned: the partitions that this worker holds now; with none, all of the topic's count, since a worker that
            lost its place in the group is stuck too when nobody else makes progress.
        metrics: told of what was seen of this worker's own.
    """
    thread = threading.Thread(target=_watch, args=(settings, assigned, metrics), name="watchdog", daemon=True)
    thread.start()
    return thread


def _watch(settings: Settings, assigned: Callable[[], set[int]], metrics: WorkerMetrics) -> None:
    stall = Stall(settings.worker.stuck_s)
    topic = topics.name(settings.kafka.prefix, "frames")
    client = None
    while True:
        time.sleep(_LOOK_S)
        try:
            client = client or clients.consumer(settings.kafka, group_id=settings.kafka.group)
            own = assigned()
            partitions = own or client.partitions_for_topic(topic) or set()
            places = [TopicPartition(topic, p) for p in partitions]
            end = {tp.partition: offset for tp, offset in client.end_offsets(places).items()}
            committed = {tp.partition: client.committed(tp) or 0 for tp in places}
        except (KafkaError, ConfigError) as error:
            log.warning("watchdog: the broker does not answer", error=type(error).__name__)
            metrics.broker_errors.inc()
            stall = Stall(settings.worker.stuck_s)
            continue
        metrics.looked({partition: committed[partition] for partition in own}, end)
        stuck = stall.look(committed, end)
        if stuck:
            log.critical("stuck: frames wait and nothing is committed; exiting", partitions=stuck)
            os._exit(EXIT_STUCK)
