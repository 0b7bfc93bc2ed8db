"""How a line stands, from its topics and its store alone: no worker is asked, and nothing is written.

What is read is bounded: of each partition the last records, within a few seconds.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, KafkaError, NotCoordinatorError
from kafka.structs import OffsetAndMetadata

from model_store import ModelKey, ModelStore, open_store
from pipeline.errors import ConfigError, GoldlineError
from pipeline.settings import Settings
from workers import clients, drift_events, messages, topics, waiting
from workers.drift_events import DriftAlarm
from workers.line_status import LineStatus, ModelStatus, RecipeStatus, RefitStatus, StationStatus
from workers.wire import Record

WINDOW_S = 60.0
AT_MOST = 2_000

_READ_S = 5.0
_STORE_S = 10.0
_FROM_POOL = {"pool", "refit"}  # what the lineage of a refit's version has, and no other's


class _Tally:
    """Results of one station within the window."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.total_ms: list[float] = []
        self.verdicts: dict[str, int] = {}
        self.last_ms = 0

    def add(self, result: messages.Result) -> None:
        if result.frame_id not in self.seen:
            self.seen.add(result.frame_id)
            self.total_ms.append(result.timings_ms.total)
            self.verdicts[result.verdict] = self.verdicts.get(result.verdict, 0) + 1

    def p99_ms(self) -> float | None:
        return sorted(self.total_ms)[math.ceil(0.99 * len(self.total_ms)) - 1] if self.total_ms else None

    def shares(self) -> dict[str, float] | None:
        count = len(self.total_ms)
        kinds = ("pass", "reject", "no_decision")
        return {kind: self.verdicts.get(kind, 0) / count for kind in kinds} if count else None


class LineReader:
    """Looks at a line, again and again; use it as a context manager.

    Args:
        settings: of the line.
        window_s: how far back results are counted.
        at_most: records that are read of each partition.

    Raises:
        ConfigError: on entering: no broker answers.
    """

    def __init__(self, settings: Settings, *, window_s: float = WINDOW_S, at_most: int = AT_MOST) -> None:
        self._settings = settings
        self._window_s = window_s
        self._at_most = at_most
        self._open = ExitStack()
        self._consumer: KafkaConsumer = None
        self._store: ModelStore | None = None
        self._problems: list[str] = []

    def __enter__(self) -> Self:
        self._consumer = clients.consumer(self._settings.kafka)
        self._open.callback(self._consumer.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def look(self) -> LineStatus:
        """How the line stands now.

        Raises:
            ConfigError: the broker went away.
        """
        try:
            return self._look()
        except KafkaError as error:
            brokers = ", ".join(self._settings.kafka.brokers)
            raise ConfigError(f"the broker at {brokers} does not answer any more: {error}") from error

    def _look(self) -> LineStatus:
        self._problems = []
        workers, lags = self._group()
        drift = self._drift()
        tallies, covered_s = self._results()
        models = self._models()
        stations = []
        for name, partition in self._settings.partitions().items():
            tally = tallies[name]
            recipes = tuple(
                RecipeStatus(
                    recipe=recipe, model=model, refit=refit, drift=tuple(drift.get((name, recipe), {}).values())
                )
                for recipe in self._settings.stations[name].recipes
                for model, refit in [models.get(ModelKey(name, recipe), (None, None))]
            )
            stations.append(
                StationStatus(
                    station=name,
                    partition=partition,
                    lag=lags.get(partition),
                    results=len(tally.total_ms),
                    rate_hz=round(len(tally.total_ms) / covered_s[partition], 3),
                    p99_ms=tally.p99_ms(),
                    shares=tally.shares(),
                    last_result_at=datetime.fromtimestamp(tally.last_ms / 1000, UTC) if tally.last_ms else None,
                    recipes=recipes,
                )
            )
        return LineStatus(
            at=datetime.now(UTC),
            window_s=self._window_s,
            workers=workers,
            stations=tuple(stations),
            problems=tuple(self._problems),
        )

    def _group(self) -> tuple[int | None, dict[int, int]]:
        """How many workers there are, and the lag of each station's partition."""
        kafka, options = self._settings.kafka, clients.client_options(self._settings.kafka)
        frames = self._partitions("frames")
        first, ends = self._consumer.beginning_offsets(frames), self._consumer.end_offsets(frames)
        with topics.connected(kafka.brokers, options, _READ_S) as admin:
            committed, members = self._acknowledged(admin, frames)
        done = {tp: committed[tp].offset if tp in committed else -1 for tp in frames}
        if members is None:
            return None, {}
        return members, {tp.partition: ends[tp] - max(done[tp], first[tp]) for tp in frames}

    def _acknowledged(
        self, admin: KafkaAdminClient, frames: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, OffsetAndMetadata], int | None]:
        """What the workers' group has committed, and how many they are; a cluster that never had a group makes one."""
        group, until = self._settings.kafka.group, time.monotonic() + _READ_S
        while True:
            try:
                committed = admin.list_group_offsets({group: frames})[group] if frames else {}
                return committed, len(admin.describe_groups([group])[group]["members"])
            except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError) as error:
                if time.monotonic() > until:
                    self._problems.append(f"workers and lag: {error}")
                    return {}, None
            time.sleep(0.2)

    def _results(self) -> tuple[dict[str, _Tally], dict[int, float]]:
        """Each station's results within the window, and how much of it was read of each partition."""
        now = time.time()
        tallies = {name: _Tally() for name in self._settings.stations}
        covered_s = dict.fromkeys(self._settings.partitions().values(), self._window_s)
        since_ms = round((now - self._window_s) * 1000)
        partitions = self._partitions("results")
        starts, ends = self._starts(partitions, since_ms)
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, since_ms)) if partitions else {}
        left_out = {tp for tp in partitions if found[tp] and found[tp].offset < starts[tp]}
        for record in self._read("results", starts, ends):
            tp = TopicPartition(record.topic, record.partition)
            if tp in left_out:  # there were more than are read: those cover less than the window
                left_out.discard(tp)
                covered_s[record.partition] = max(0.001, now - record.timestamp_ms / 1000)
            result = messages.decode_result(record.value)
            tally = tallies.get(result.station or "") if result else None
            if result and tally:
                tally.last_ms = max(tally.last_ms, record.timestamp_ms)
                if record.timestamp_ms >= since_ms:
                    tally.add(result)
        return tallies, covered_s

    def _drift(self) -> dict[tuple[str, str], dict[str, DriftAlarm]]:
        """The alarms that stand, by station and recipe, then by monitor."""
        standing: dict[tuple[str, str], dict[str, DriftAlarm]] = {}
        for record in self._read("drift", *self._starts(self._partitions("drift"), 0)):
            event = drift_events.decode(record.value)
            if isinstance(event, DriftAlarm):
                standing.setdefault((event.station, event.recipe), {})[event.monitor] = event
            elif event:
                standing.pop((event.station, event.recipe), None)
        return standing

    def _models(self) -> dict[ModelKey, tuple[ModelStatus | None, RefitStatus | None]]:
        try:
            return waiting.at_most(_STORE_S, self._read_store, what="the model store")
        except GoldlineError as error:
            self._problems.append(f"models: {error}")
            return {}

    def _read_store(self) -> dict[ModelKey, tuple[ModelStatus | None, RefitStatus | None]]:
        self._store = store = self._store or open_store(self._settings.store.url)
        keys = [ModelKey(name, recipe) for name, s in self._settings.stations.items() for recipe in s.recipes]
        return {key: (_in_service(store, key), _last_refit(store, key)) for key in keys}

    def _partitions(self, kind: str) -> list[TopicPartition]:
        """Those of a topic that are this line's; none, with a problem told, where it is missing."""
        topic = topics.name(self._settings.kafka.prefix, kind)
        there = self._consumer.partitions_for_topic(topic) or set()
        wanted = {0} if kind == "drift" else set(self._settings.partitions().values())
        if missing := wanted - there:
            self._problems.append(f"topic {topic} lacks partitions {sorted(missing)}: see goldline topics check")
        return [TopicPartition(topic, partition) for partition in sorted(wanted & there)]

    def _starts(
        self, partitions: list[TopicPartition], since_ms: int
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        """Where to begin and to end: the records since then or else the last one, and of many the last ones."""
        if not partitions:
            return {}, {}
        first, ends = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
        since = {tp: found[tp].offset if found[tp] else ends[tp] for tp in partitions}
        return {tp: max(first[tp], ends[tp] - self._at_most, min(since[tp], ends[tp] - 1)) for tp in partitions}, ends

    def _read(
        self, kind: str, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> Iterator[Record]:
        """The records between, for as long as there is time."""
        todo = [tp for tp in starts if starts[tp] < ends[tp]]
        if not todo:
            return
        self._consumer.assign(todo)
        for tp in todo:
            self._consumer.seek(tp, starts[tp])
        until = time.monotonic() + _READ_S
        while any(self._consumer.position(tp) < ends[tp] for tp in todo):
            if time.monotonic() > until:
                self._problems.append(f"not all of the last {kind} could be read within {_READ_S:g} s")
                return
            yield from clients.records(self._consumer)


def _in_service(store: ModelStore, key: ModelKey) -> ModelStatus | None:
    history = store.history(key)
    if not history:
        return None
    last = history[-1]
    return ModelStatus(version=last.version, promoted_at=last.at, by=last.who)


def _last_refit(store: ModelStore, key: ModelKey) -> RefitStatus | None:
    made = [info for info in store.versions(key) if _FROM_POOL & info.lineage.extra.keys()]
    if not made:
        return None
    lineage: Any = made[-1].lineage
    return RefitStatus(version=made[-1].version, at=lineage.created_at, by=lineage.created_by, why=lineage.why)
