"""Every metric there is. Each kind of process has a class, with a registry of its own that `health.py` serves.

Units are seconds and bytes, times are seconds since 1970. What may be a label's value is fixed here or in the settings;
it is never a message's word. docs/metrics.md says what each metric is good for.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from model_store.records import ModelKey, short
from pipeline.data import Decision, Failure, Frame, Reason, Verdict
from pipeline.settings import Settings
from workers import wire
from workers.exposition import Exposition, Place
from workers.flow import NONE, Flow

if TYPE_CHECKING:
    from pipeline.drift import Drift
    from workers.camera import Sent
    from workers.gate import Action, Gate
    from workers.outcomes import Outcome
    from workers.shelf import Live

BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)  # around the deadlines
SLACK_S = (-1.0, -0.3, -0.1, -0.03, 0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
RATIOS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STAGES = ("queue", "decode", "embed", "score", "publish", "total")
LOADS = ("loaded", "swapped_back", "refused")
POOL = ("admitted", "refused", "dropped", "unstored")
STORES = ("models", "frames", "pool")
MONITORS = ("score", "exposure", "warmth", "tint", "sharpness", "shift_x", "shift_y", "turn")  # of pipeline.drift
REFITS = ("promoted", "on_trial", "stored", "trial_goes_on", "refused", "failed")
HOOKS = ("pass_command", "reject_command", "stop_command", "pass_url", "reject_url")
_UNDECIDED = {Reason.LATE, Reason.SHED, Reason.NO_MODEL, Reason.ERROR}
_PLACE, _STATION = ("station", "recipe"), ("station",)


class WorkerMetrics(Exposition):
    """A worker's."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("worker", settings)
        counter, gauge, histogram, stations = self.counter, self.gauge, self.histogram, self.stations
        self._station_of = {partition: name for name, partition in settings.partitions().items()}
        self._committed: dict[int, int] = {}
        self._versions: dict[tuple[str, str, str], tuple[str, ...]] = {}
        # The walk.
        self.flow = Flow(self.all_places)
        self.registry.register(self.flow)
        self._in_time = counter("results_in_time", "Verdicts the broker had by the deadline.", _STATION, stations)
        self._late = counter("results_late", "Verdicts that were decided after the deadline.", _STATION, stations)
        self._dead = counter(
            "dead_letters", "Messages that could not be read.", ("station", "reason"), stations, Reason
        )
        self._lost = counter("frames_lost", "Frames that retention deleted unread.", _STATION, stations)
        self._latency = histogram("decision_latency_seconds", "Capture to verdict.", BUCKETS_S, _STATION, stations)
        self._slack = histogram("deadline_slack_seconds", "Left at the verdict.", SLACK_S, _STATION, stations)
        self._stage = histogram(
            "stage_duration_seconds", "By stage.", (0.001, 0.002, *BUCKETS_S), ("station", "stage"), stations, STAGES
        )
        self._batch = histogram("batch_size_frames", "Frames that were inspected together.", FRAMES)
        self._score = histogram("anomaly_score_ratio", "Score over threshold.", RATIOS, _STATION, stations)
        self._heatmaps = counter("heatmaps", "Heatmaps.", ("outcome",), ("published", "failed"))
        self.publish_failures = counter("publish_failures", "Attempts that the broker refused; each is repeated.")
        # Models.
        self._model = gauge("model_info", "Always 1: the models in memory.", (*_PLACE, "role", "method", "version"))
        self._loaded = gauge("model_loaded_timestamp_seconds", "Since when it is in service here.", _PLACE)
        self._created = gauge("model_created_timestamp_seconds", "When the model in service was fitted.", _PLACE)
        self._loads = counter("model_reloads", "Attempts to put a model in service.", (*_PLACE, "outcome"))
        self._refused = gauge("model_refused", "1 while the store names a model that is refused here.", _PLACE)
        self.models_evicted = counter("models_evicted", "Models that left memory to make room.")
        self._resident = gauge("models_resident", "Models in memory, the replaced ones included.")
        self._resident_bytes = gauge("models_resident_bytes", "Their tensors, and their engines in 8 bits, roughly.")
        self.store_errors = counter("store_errors", "A store did not answer, or wrongly.", ("store",), STORES)
        for place in self.places:
            self._refused.labels(*place)
            for outcome in LOADS:
                self._loads.labels(*place, outcome)
        # Beside the walk.
        self._pool = counter("pool_offers", "Frames for the pool.", ("station", "outcome"), stations, POOL)
        self._pool_frames = gauge("pool_frames", "In the pool, as this worker saw it last.", _PLACE)
        self._evidence = gauge("drift_log_martingale", "Evidence of drift (natural log).", (*_PLACE, "monitor"))
        self._limit = gauge("drift_log_limit", "Where a monitor raises its alarm.")
        self._alarms = counter("drift_alarms", "Alarms.", ("station", "monitor"), stations, MONITORS)
        self.drift_left_out = counter("drift_frames_left_out", "Frames that the monitors had no time for.")
        # Kafka.
        self._lag = gauge("consumer_lag_records", "Frames that wait.", ("partition", "station"))
        self._progress = gauge(
            "last_progress_timestamp_seconds", "When one was committed, or none waited.", ("partition", "station")
        )
        self.partitions = gauge("partitions_assigned", "Partitions that this worker has.")
        self.broker_errors = counter("broker_errors", "Looks at the broker that it did not answer.")

    def received(self, frame: Frame) -> None:
        """A frame was taken in that has no verdict yet."""
        self.flow.receive(self.place(frame.station, frame.recipe))

    def repeated(self, frame: Frame) -> None:
        """A frame came that had its verdict already."""
        self.flow.repeat(self.place(frame.station, frame.recipe))

    def lost(self, partition: int, frames: int) -> None:
        """Retention deleted frames of a partition before anyone read them."""
        self._lost.labels(self.station(self._station_of.get(partition))).inc(frames)

    def published(self, outcome: "Outcome") -> None:
        """The broker has a verdict."""
        frame, answer, now = outcome.arrival.frame, outcome.answer, time.time()
        place = self.place(frame.station, frame.recipe)
        station = place[0]
        deadline = (frame.deadline_at or outcome.decided_at).timestamp()
        reason = answer.reason if isinstance(answer, Failure) else None
        traceparent = outcome.arrival.traceparent
        trace = {"trace_id": traceparent[3:35]} if traceparent and wire.is_sampled(traceparent) else None
        self._latency.labels(station).observe(now - (frame.captured_at or outcome.decided_at).timestamp(), trace)
        self._slack.labels(station).observe(deadline - now)
        self._late.labels(station).inc(outcome.decided_at.timestamp() > deadline)
        self._in_time.labels(station).inc(now <= deadline and reason not in _UNDECIDED)
        spent = {"publish": now - outcome.decided_at.timestamp(), "total": outcome.timings.total / 1000}
        if isinstance(answer, Verdict):
            spent |= {stage: getattr(outcome.timings, stage) / 1000 for stage in STAGES[:4]}
            if answer.threshold > 0:
                self._score.labels(station).observe(answer.score / answer.threshold, trace)
        for stage, seconds in spent.items():
            self._stage.labels(station, stage).observe(max(seconds, 0.0))
        if outcome.arrival.unreadable and reason:
            self._dead.labels(station, reason).inc()
        decided = (Decision.NO_DECISION, answer.reason) if isinstance(answer, Failure) else (answer.decision, NONE)
        self.flow.answer(place, *decided)

    def batch(self, frames: int) -> None:
        """So many frames were inspected together."""
        self._batch.observe(frames)

    def heatmap(self, *, published: bool) -> None:
        """A heatmap is out, or lost."""
        self._heatmaps.labels("published" if published else "failed").inc()

    def model_load(self, key: ModelKey, outcome: str) -> None:
        """An attempt to put a model in service."""
        self._loads.labels(key.station, key.recipe, outcome).inc()

    def model_refused(self, station: str, recipe: str, *, refused: bool) -> None:
        """Whether the store names a model here that cannot be used."""
        self._refused.labels(station, recipe).set(refused)

    def model_in_memory(self, key: ModelKey, role: str, live: "Live", created_at: datetime | None) -> None:
        """A model is there; `role` is `active`, or `shadow` on trial."""
        place = (key.station, key.recipe)
        self.model_gone(place, role)
        self._versions[(*place, role)] = labels = (*place, role, live.method, short(live.version))
        self._model.labels(*labels).set(1)
        if role == "active":
            self._loaded.labels(*place).set_to_current_time()
            if created_at is not None:
                self._created.labels(*place).set(created_at.timestamp())

    def model_gone(self, place: Place, role: str) -> None:
        """No model of this role is in memory here any more."""
        labels = self._versions.pop((*place, role), None)
        if labels is not None:
            self._model.remove(*labels)

    def resident(self, models: int, size_bytes: int) -> None:
        """So many models are in memory."""
        self._resident.set(models)
        self._resident_bytes.set(size_bytes)

    def store_failed(self, store: str) -> None:
        """A store of models, frames or pool did not answer, or wrongly."""
        self.store_errors.labels(store).inc()

    def pooled(self, station: str, outcome: str) -> None:
        """What became of a frame that the pool may want."""
        self._pool.labels(self.station(station), outcome).inc()

    def pool_holds(self, station: str, recipe: str, frames: int) -> None:
        """So many frames are in the pool."""
        self._pool_frames.labels(*self.place(station, recipe)).set(frames)

    def drift(self, place: Place, drift: "Drift") -> None:
        """How a place's monitors stand; the limit is the same everywhere."""
        self._limit.set(drift.limit)
        for name, monitor in drift.baseline.monitors.items():
            self._evidence.labels(*self.place(*place), name).set(monitor.log_value)

    def drift_elsewhere(self, place: Place) -> None:
        """Another worker watches this place now."""
        for monitor in MONITORS:
            with suppress(KeyError):
                self._evidence.remove(*self.place(*place), monitor)

    def drift_alarm(self, station: str, monitor: str) -> None:
        """A monitor raised its alarm."""
        self._alarms.labels(self.station(station), monitor).inc()

    def looked(self, committed: Mapping[int, int], end: Mapping[int, int]) -> None:
        """What is committed of this worker's partitions, and where they end."""
        for partition in self._committed.keys() - committed.keys():
            labels = str(partition), self.station(self._station_of.get(partition))
            self._lag.remove(*labels)
            self._progress.remove(*labels)
        for partition, offset in committed.items():
            labels = str(partition), self.station(self._station_of.get(partition))
            lag = max(0, end.get(partition, 0) - offset)
            self._lag.labels(*labels).set(lag)
            if lag == 0 or self._committed.get(partition) != offset:
                self._progress.labels(*labels).set_to_current_time()
        self._committed = dict(committed)


class GateMetrics(Exposition):
    """A gate's."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("gate", settings)
        self._actions = self.counter(
            "gate_actions", "What the gate did with parts.", ("station", "action", "why", "reason")
        )
        for name in settings.stations:
            default = settings.on_no_decision(name)
            decided = [("pass", "verdict", NONE), ("reject", "verdict", NONE), (default, "no_verdict_in_time", NONE)]
            for action, why, reason in [*decided, *((default, "no_decision", reason) for reason in Reason)]:
                self._actions.labels(name, action, why, reason)
        self._slack = self.histogram("gate_slack_seconds", "Left at the action.", SLACK_S, _STATION, self.stations)
        self._hooks = self.counter(
            "gate_hooks", "Calls of commands and URLs.", ("hook", "outcome"), HOOKS, ("done", "failed")
        )
        self.stops = self.counter("gate_stops", "Times the gate asked to stop the line.")
        self._heard = self.gauge("gate_last_heard_timestamp_seconds", "When anything came that told of a part.")
        self._heard.set_to_current_time()

    def watch(self, gate: "Gate") -> None:
        """Read what the gate itself counts."""
        counts = gate.counts
        self.gauge("gate_parts_waiting", "Parts known and not decided.").set_function(lambda: gate.waiting)
        self.gauge("gate_in_a_row", "Parts in a row that were not passed by a verdict.").set_function(
            lambda: gate.in_a_row
        )
        about = "Results that came after their part was decided: late, or repeated."
        self.counted(
            "gate_stragglers", about, ("kind",), lambda: {("late",): counts.late, ("repeated",): counts.repeated}
        )

    def acted(self, action: "Action") -> None:
        """The gate did this."""
        station = self.station(action.station)
        self._actions.labels(station, action.action, action.why, action.reason or NONE).inc()
        self._slack.labels(station).observe(action.slack_ms / 1000)

    def heard(self) -> None:
        """Something came that told of a part."""
        self._heard.set_to_current_time()

    def hook(self, hook: str, *, done: bool) -> None:
        """A command or URL was called."""
        self._hooks.labels(hook, "done" if done else "failed").inc()


class CameraMetrics(Exposition):
    """A camera's."""

    def __init__(self, settings: Settings, station: str, sent: "Sent") -> None:
        super().__init__("camera", settings)
        self.counted(
            "camera_frames",
            "Frames by what became of them; `sent` is all that were handed to the broker.",
            ("station", "outcome"),
            lambda: {(station, outcome): count for outcome, count in asdict(sent).items()},
        )


class RefitMetrics(Exposition):
    """A refit process's."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("refit", settings)
        self._refits = self.counter("refits", "Refits by what came of them.", (*_PLACE, "outcome"))
        self._last = self.gauge("refit_last_timestamp_seconds", "When one ended so.", (*_PLACE, "outcome"))
        self._duration = self.histogram("refit_duration_seconds", "From start to end.", (10, 60, 300, 900, 3600, 14400))
        for place in self.places:
            for outcome in REFITS:
                self._refits.labels(*place, outcome)

    def refit(self, station: str, recipe: str, outcome: str, *, seconds: float | None = None) -> None:
        """A refit ended; `outcome` is one of REFITS, `seconds` what it took."""
        labels = (*self.place(station, recipe), outcome)
        self._refits.labels(*labels).inc()
        self._last.labels(*labels).set_to_current_time()
        if seconds is not None:
            self._duration.observe(seconds)
