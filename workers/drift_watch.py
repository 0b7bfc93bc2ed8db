"""Watches for drift beside the worker: frames' numbers go to their station's monitors after the verdict is out.

Frames come as their verdicts do: those of batches that were computed at once may pass each other. A thread of its own,
best effort: where it does not keep up, frames are left out, which does not depend on what they
show and so harms no promise. States are kept every few seconds, at an alarm, and at the end; a worker that is killed
forgets the frames since. That a person accepted a new baseline is read from the topic of drift, which is the one
authority: a state that began before the last acceptance gives way, whichever worker held it and however long that was
away.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, TypeAlias

from pipeline.appearance import measure
from pipeline.data import Decision, Verdict
from pipeline.drift import Drift
from pipeline.settings import Settings
from workers import baselines, clients, drift_events, logs, topics
from workers.baselines import Kept, Window
from workers.desk import Decided
from workers.drift_events import BaselineAccepted, DriftAlarm
from workers.metrics import WorkerMetrics

log = logs.get(__name__)

_WAITING_MAX = 64  # frames whose pixels are held, beside the lot in hand
_SAVE_S = 10.0
_LISTEN_S = 1.0
_LOT, _GATHER_S = 16, 0.2
_QUIET_S = 10.0

Key: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Watched:
    """A station and recipe: its monitors, and the file they are kept in."""

    drift: Drift
    accepted_ms: int
    path: Path
    stamp: int
    changed: bool = False
    windows: tuple[Window, ...] = ()


class DriftWatch:
    """All the stations that this worker sees.

    Args:
        settings: the delta, the folder, the broker.
        report: told of each alarm, in the watch's thread.
        metrics: of the worker.
    """

    def __init__(
        self, settings: Settings, report: Callable[[DriftAlarm], object], metrics: WorkerMetrics | None = None
    ) -> None:
        self._metrics = metrics or WorkerMetrics(settings)
        self._settings = settings
        self._report = report
        self._waiting: Queue[Decided | None] = Queue(_WAITING_MAX)
        self._watched: dict[Key, _Watched] = {}
        self._accepted: dict[Key, int] = {}
        self._client: Any = None
        self._left_out = 0
        self._counting = threading.Lock()
        self._unkept: set[Path] = set()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    def take(self, decided: Sequence[Decided]) -> None:
        """Frames that have their verdict; from any thread, and without waiting."""
        for each in decided:
            try:
                self._waiting.put_nowait(each)
            except Full:
                with self._counting:
                    self._left_out += 1
                self._metrics.drift_left_out.inc()
        if self._is_enough():
            self._enough.set()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self, within_s: float = 3.0) -> None:
        """Take what waits, keep every state, and end."""
        self._enough.set()
        try:
            self._waiting.put(None, timeout=within_s)
        except Full:
            log.warning("drift: the monitors did not keep up at the end", frames=self._waiting.qsize())
        self._thread.join(within_s)

    def _run(self) -> None:
        self._safely(self._listen_to_the_end)
        next_save, next_listen = (time.monotonic() + pause for pause in (_SAVE_S, _LISTEN_S))
        going = True
        while going:
            for decided in self._lot():
                if decided is None:
                    going = False
                else:
                    self._safely(self._look, decided)
            if time.monotonic() >= next_listen:
                self._safely(self._listen)
                next_listen = time.monotonic() + _LISTEN_S
            if time.monotonic() >= next_save or not going:
                self._safely(self.save)
                next_save = time.monotonic() + _SAVE_S
        if self._client is not None:
            self._client.close()

    def _lot(self) -> list[Decided | None]:
        """What waits, at most `_LOT` frames: as soon as so many do, or soon after the first.

        Each by itself would wake this thread between two steps of other frames' walk.
        """
        try:
            lot = [self._waiting.get(timeout=_LISTEN_S)]
        except Empty:
            return []
        if lot[0] is not None:
            self._enough.wait(_GATHER_S)
        lot.extend(self._waiting.get_nowait() for _ in range(min(self._waiting.qsize(), _LOT - 1)))
        if not self._is_enough():
            self._enough.clear()  # what is set in between is lost: the next lot comes `_GATHER_S` later at most
        return lot

    def _is_enough(self) -> bool:
        """Whether a lot waits, beside one frame in hand."""
        return self._waiting.qsize() >= _LOT - 1

    def _look(self, decided: Decided) -> None:
        outcome = decided.outcome
        answer, frame, model = outcome.answer, outcome.arrival.frame, outcome.model
        if not isinstance(answer, Verdict) or model is None:
            return
        watched = self._of((frame.station, frame.recipe))
        (appearance,) = measure(decided.pixels[None])
        raised = watched.drift.see(
            appearance,
            # Another model's scores, on trial for some of the parts, are other numbers.
            score=answer.score if answer.decision is Decision.PASS and not decided.on_trial else None,
            version=model.version,
            at=frame.captured_at or outcome.decided_at,
            frame_id=frame.frame_id,
        )
        watched.changed = True
        self._metrics.drift((frame.station, frame.recipe), watched.drift)
        for each in raised:
            alarm = drift_events.alarm_of(frame.station, frame.recipe, each, watched.drift.limit)
            log.error(
                "drift: a station is not as it was",
                station=alarm.station,
                recipe=alarm.recipe,
                monitor=alarm.monitor,
                direction=alarm.direction,
                log_martingale=round(alarm.log_martingale, 2),
                since=alarm.since.isoformat(),
                frame_id=alarm.frame_id,
            )
            self._metrics.drift_alarm(alarm.station, alarm.monitor)
            self._report(alarm)
        if raised:
            self._keep(watched)

    def _of(self, key: Key) -> _Watched:
        """The monitors of a station and recipe: those in memory, else those that were kept, else new ones."""
        if key not in self._watched:
            self._watched[key] = self._opened(key)
        return self._watched[key]

    def _opened(self, key: Key) -> _Watched:
        path = baselines.place(self._settings, *key)
        try:
            kept = baselines.read(path)
        except (OSError, ValueError) as error:
            log.error("drift: a baseline cannot be read, a new one begins", path=str(path), error=str(error))
            kept = None
        accepted_ms = self._accepted.get(key, 0)
        if kept is not None and kept.accepted_ms >= accepted_ms:
            drift = Drift(self._settings.drift.delta, kept.baseline)
            return _Watched(drift, kept.accepted_ms, path, baselines.stamp(path), windows=kept.windows)
        begun = _Watched(Drift(self._settings.drift.delta), accepted_ms, path, baselines.stamp(path), changed=True)
        if kept is not None:  # accepted while nobody watched
            begun.windows = baselines.windows(kept, datetime.fromtimestamp(accepted_ms / 1000, UTC))
        return begun

    def save(self) -> None:
        """Keep what changed; where another worker wrote meanwhile, the station was its, and its state is taken."""
        with self._counting:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            log.warning("drift: frames were left out, the monitors do not keep up", frames=left_out)
        for key, watched in list(self._watched.items()):
            if baselines.stamp(watched.path) != watched.stamp:
                del self._watched[key]
                self._metrics.drift_elsewhere(key)
            elif watched.changed:
                self._keep(watched)

    def _keep(self, watched: _Watched) -> None:
        try:
            baselines.write(watched.path, self._kept(watched))
        except OSError as error:
            if watched.path not in self._unkept:  # once: it would fill the log
                log.error("drift: a baseline cannot be kept", path=str(watched.path), error=str(error))
            self._unkept.add(watched.path)
            return
        self._unkept.discard(watched.path)
        watched.stamp, watched.changed = baselines.stamp(watched.path), False

    @staticmethod
    def _kept(watched: _Watched) -> Kept:
        return Kept(
            baseline=watched.drift.baseline,
            accepted_ms=watched.accepted_ms,
            log_limit=watched.drift.limit,
            saved_at=datetime.now(UTC),
            windows=watched.windows,
        )

    def _listen_to_the_end(self) -> None:
        """All that was accepted so far, before any frame is looked at."""
        self._listen()
        ends = self._client.end_offsets(self._client.assignment())
        until = time.monotonic() + _QUIET_S
        while any(self._client.position(tp) < end for tp, end in ends.items()) and time.monotonic() < until:
            self._listen()

    def _listen(self) -> None:
        if self._client is None:
            topic = topics.name(self._settings.kafka.prefix, "drift")
            self._client = clients.tail(self._settings.kafka, topic, from_start=True)
        for record in clients.records(self._client, timeout_ms=50):
            event = drift_events.decode(record.value)
            if isinstance(event, BaselineAccepted):
                self._accept((event.station, event.recipe), record.timestamp_ms, event)

    def _accept(self, key: Key, at_ms: int, event: BaselineAccepted) -> None:
        if at_ms <= self._accepted.get(key, 0):
            return
        self._accepted[key] = at_ms
        watched = self._watched.get(key)
        if watched is not None and watched.accepted_ms < at_ms:
            watched.windows = baselines.windows(self._kept(watched), datetime.fromtimestamp(at_ms / 1000, UTC))
            watched.drift, watched.accepted_ms = Drift(self._settings.drift.delta), at_ms
            self._keep(watched)
            self._metrics.drift(key, watched.drift)
            log.info("drift: a new baseline begins", station=key[0], recipe=key[1], by=event.by, why=event.why)

    @staticmethod
    def _safely(act: Callable[..., None], *given: object) -> None:
        try:
            act(*given)
        except Exception as error:  # noqa: BLE001 - watching must never harm what is watched
            log.warning("drift: watching failed for now", error=f"{type(error).__name__}: {error}")
