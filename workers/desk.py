"""Where a frame becomes an outcome: picture fetched, batch gathered, inspected on the device's thread."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from torch import Tensor

from model_store.frames import Roots
from pipeline.data import Failure, Frame, Reason, Verdict
from pipeline.decode import Placement
from pipeline.settings import Worker
from workers import logs
from workers.batching import Batcher
from workers.claims import Claims
from workers.live import Live
from workers.messages import ModelBody, TimingsBody
from workers.wire import Arrival

log = logs.get(__name__)


class Finds(Protocol):
    """What the desk needs of the models."""

    def find(self, station: str, recipe: str) -> Live | None:
        """The model that decides here now, if there is one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one frame, ready to be published."""

    arrival: Arrival
    answer: Verdict | Failure
    decided_at: datetime
    model: ModelBody | None = None
    timings: TimingsBody = field(default_factory=TimingsBody)
    map: Tensor | None = None
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class _Ticket:
    arrival: Arrival
    received: float


class Desk:
    """Decides about frames of every partition through one micro-batcher."""

    def __init__(self, models: Finds, settings: Worker, executor: Executor, claims: Claims | None = None) -> None:
        self._models = models
        self._claims = claims or Claims(Roots(()))
        self.batcher: Batcher[_Ticket, Outcome] = Batcher(
            self._process, executor, batch_max=settings.batch_max, wait_s=settings.wait_ms / 1000
        )

    async def decide(self, arrival: Arrival) -> Outcome:
        """One outcome for one frame, whatever happens."""
        received = time.time()
        if arrival.problem:
            return _outcome(arrival, arrival.problem, received)
        deadline_at = arrival.frame.deadline_at
        deadline = deadline_at.timestamp() if deadline_at else received
        if received >= deadline:
            return _late(arrival, received)
        try:
            arrival = await self._claims.fetch(arrival, deadline=deadline)
            if arrival.problem:
                return _outcome(arrival, arrival.problem, received)
            key = (arrival.frame.station, arrival.frame.recipe)
            return await self.batcher.submit(_Ticket(arrival, received), deadline=deadline, key=key)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("inspection failed", frame_id=arrival.frame.frame_id)
            return _outcome(arrival, _failure(arrival, Reason.ERROR, f"{type(error).__name__}: {error}"), received)

    def _process(self, tickets: Sequence[_Ticket]) -> list[Outcome]:
        """In the device's thread: the frames still in time, model by model."""
        started = time.time()
        outcomes: dict[int, Outcome] = {}
        groups: dict[int, tuple[Live, list[int]]] = {}
        for i, ticket in enumerate(tickets):
            frame = ticket.arrival.frame
            live = self._models.find(frame.station, frame.recipe)
            if frame.deadline_at and started >= frame.deadline_at.timestamp():
                outcomes[i] = _late(ticket.arrival, ticket.received)
            elif live is None:
                detail = f"no model for station {frame.station}, recipe {frame.recipe}"
                outcomes[i] = _outcome(
                    ticket.arrival, _failure(ticket.arrival, Reason.NO_MODEL, detail), ticket.received
                )
            else:
                groups.setdefault(id(live), (live, []))[1].append(i)
        for live, places in groups.values():
            outcomes |= zip(places, _inspect(live, [tickets[i] for i in places], started), strict=True)
        return [outcomes[i] for i in range(len(tickets))]


def _inspect(live: Live, tickets: list[_Ticket], started: float) -> list[Outcome]:
    """One model's frames as a batch; if the batch fails, each alone, so that none falls with another."""
    # The same id twice in a batch would be one entry in what comes back: the copies go in batches of their own.
    by_id: dict[str, list[_Ticket]] = defaultdict(list)
    for ticket in tickets:
        by_id[ticket.arrival.frame.frame_id].append(ticket)
    if len(by_id) < len(tickets):
        return [outcome for ticket in tickets for outcome in _inspect(live, [ticket], started)]
    try:
        inspected = live.inspector.inspect([t.arrival.frame for t in tickets])
    except Exception as error:
        if len(tickets) > 1:
            log.warning("a batch failed: its frames go one by one", frames=len(tickets), error=str(error))
            return [outcome for ticket in tickets for outcome in _inspect(live, [ticket], started)]
        log.exception("inspection failed", frame_id=tickets[0].arrival.frame.frame_id)
        detail = f"{type(error).__name__}: {error}"
        return [_outcome(t.arrival, _failure(t.arrival, Reason.ERROR, detail), t.received) for t in tickets]
    answers: dict[str, Verdict | Failure] = {v.frame_id: v for v in inspected.verdicts}
    answers |= {f.frame_id: f for f in inspected.failures}
    spent = {stage: seconds * 1000 for stage, seconds in inspected.seconds.items()}
    outcomes = []
    for ticket in tickets:
        frame_id = ticket.arrival.frame.frame_id
        answer = answers.get(frame_id) or _failure(ticket.arrival, Reason.ERROR, "the inspector left the frame out")
        outcome = _outcome(ticket.arrival, answer, ticket.received, queue_s=started - ticket.received, **spent)
        if isinstance(answer, Failure):
            unreadable = answer.reason is Reason.BAD_FRAME
            outcomes.append(replace(outcome, arrival=replace(ticket.arrival, unreadable=unreadable)))
            continue
        outcomes.append(
            replace(
                outcome,
                model=ModelBody(method=live.method, version=live.version),
                map=inspected.maps.get(frame_id),
                placement=inspected.placements.get(frame_id),
            )
        )
    return outcomes


def _outcome(
    arrival: Arrival,
    answer: Verdict | Failure,
    received: float,
    *,
    queue_s: float = 0.0,
    decode: float = 0.0,
    embed: float = 0.0,
    score: float = 0.0,
) -> Outcome:
    now = time.time()
    timings = TimingsBody(
        queue=_ms(queue_s * 1000),
        decode=_ms(decode),
        embed=_ms(embed),
        score=_ms(score),
        total=_ms((now - received) * 1000),
    )
    return Outcome(arrival=arrival, answer=answer, decided_at=datetime.fromtimestamp(now, UTC), timings=timings)


def _late(arrival: Arrival, received: float) -> Outcome:
    frame: Frame = arrival.frame
    past_ms = (time.time() - frame.deadline_at.timestamp()) * 1000 if frame.deadline_at else 0.0
    return _outcome(arrival, _failure(arrival, Reason.LATE, f"{past_ms:.0f} ms past its deadline"), received)


def _failure(arrival: Arrival, reason: Reason, detail: str) -> Failure:
    return Failure(frame_id=arrival.frame.frame_id, reason=reason, detail=detail)


def _ms(value: float) -> float:
    return round(max(value, 0.0), 3)
