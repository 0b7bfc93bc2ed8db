"""Accepted frames on their way into the pool: after the verdict, on a thread of its own, dropped rather than late."""

import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal

from model_store import ModelKey
from model_store.pool import DiskPool
from model_store.pool_records import Answer, Candidate
from pipeline.data import Verdict
from pipeline.errors import StoreUnavailable
from pipeline.settings import Settings
from workers import logs
from workers.metrics import WorkerMetrics
from workers.outcomes import Outcome

log = logs.get(__name__)

_QUEUE_FRAMES = 64
_QUEUE_BYTES = 64_000_000
_AGAIN_S = 30.0
_STOP_S = 2.0


@dataclass(slots=True)
class PoolCounts:
    """What became of frames that the rule of admission wants; offered is all of them together.

    Attributes:
        admitted: copied into the pool.
        refused: the sample has enough, or the part is defective.
        dropped: the queue was full.
        unstored: the disk was full or away.
    """

    offered: int = 0
    admitted: int = 0
    refused: int = 0
    dropped: int = 0
    unstored: int = 0


class Pooling:
    """Offers frames to the pool. Whatever the pool's disk does, `offer` returns at once.

    Args:
        pool: where they go; made if it is not there.
        metrics: of the worker.
        again_s: how long a disk that is full or away is left alone, in seconds.
    """

    def __init__(self, pool: DiskPool, *, metrics: WorkerMetrics | None = None, again_s: float = _AGAIN_S) -> None:
        self._metrics = metrics or WorkerMetrics(Settings())
        self.counts = PoolCounts()
        self._pool = pool
        self._again_s = again_s
        self._away_until: float | None = None
        self._made = False
        self._waiting: deque[Candidate] = deque()
        self._waiting_bytes = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        """Begin to take frames."""
        self._thread.start()

    def stop(self) -> None:
        """Store what waits, if that is quick; a disk that hangs is left to itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_STOP_S)
        log.info("pool: ended", **asdict(self.counts))

    def offer(self, outcome: Outcome) -> None:
        """Queue the frame of a published outcome, if the pool may want it and the queue has room."""
        candidate = _candidate(outcome)
        if candidate is None or not self._pool.wants(candidate):
            return
        with self._changed:
            self.counts.offered += 1
            size = self._waiting_bytes + len(candidate.image)
            if len(self._waiting) >= _QUEUE_FRAMES or (self._waiting and size > _QUEUE_BYTES):
                self._count(candidate, "dropped")
                return
            self._waiting.append(candidate)
            self._waiting_bytes = size
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                candidate = self._waiting.popleft()
                self._waiting_bytes -= len(candidate.image)
            self._admit(candidate)

    def _admit(self, candidate: Candidate) -> None:
        if self._away_until is not None and time.monotonic() < self._away_until:
            self._count(candidate, "unstored")
            return
        try:
            if not self._made:  # later a pool that is not there is a disk that is away
                self._pool.create()
                self._made = True
            answer = self._pool.admit(candidate)
        except StoreUnavailable as error:
            self._count(candidate, "unstored")
            self._metrics.store_failed("pool")
            if self._away_until is None:
                log.error("pool: accepted frames are not kept, inspection goes on", error=str(error))
            self._away_until = time.monotonic() + self._again_s
            return
        except Exception:  # whatever it is, it must not end the thread
            self._count(candidate, "unstored")
            log.exception("pool: a frame was not kept", frame_id=candidate.frame_id)
            return
        if self._away_until is not None:
            log.info("pool: accepted frames are kept again")
            self._away_until = None
        self._count(candidate, "admitted" if answer is Answer.ADMITTED else "refused")
        self._metrics.pool_holds(candidate.key.station, candidate.key.recipe, self._pool.seen(candidate.key))

    def _count(self, candidate: Candidate, outcome: Literal["admitted", "refused", "dropped", "unstored"]) -> None:
        setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
        self._metrics.pooled(candidate.key.station, outcome)


def _candidate(outcome: Outcome) -> Candidate | None:
    frame, answer = outcome.arrival.frame, outcome.answer
    if not isinstance(answer, Verdict) or outcome.model is None:
        return None
    return Candidate(
        key=ModelKey(frame.station, frame.recipe),
        frame_id=frame.frame_id,
        part_id=frame.part_id,
        captured_at=frame.captured_at or outcome.decided_at,
        image=frame.image,
        decision=answer.decision,
        score=answer.score,
        p_value=answer.p_value,
        model=outcome.model.version,
    )
