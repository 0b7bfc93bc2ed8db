"""Where a frame becomes an outcome: picture fetched, batch gathered, inspected in a thread of the device's."""

import asyncio
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from model_store.frames import Roots
from pipeline.data import Failure, Frame, Reason, Verdict
from pipeline.inspection import Inspected, inspect_together
from pipeline.settings import Worker
from workers import logs
from workers.batching import Batcher
from workers.claims import Claims
from workers.messages import ModelBody
from workers.outcomes import Outcome, deadline_of, failed, late, no_model, outcome_of, shed
from workers.shelf import Live, Trial
from workers.wire import Arrival

log = logs.get(__name__)


class Finds(Protocol):
    """What the desk needs of the models."""

    def find(self, station: str, recipe: str) -> Live | None:
        """The model that decides here now, if there is one in memory."""
        ...

    def trial(self, station: str, recipe: str) -> Trial | None:
        """The model that is tried here beside it, if there is one."""
        ...

    def load(self, station: str, recipe: str) -> "Future[None] | None":
        """What to wait for before `find` may find a model here; None where waiting would bring nothing."""
        ...


@dataclass(frozen=True, slots=True)
class _Ticket:
    arrival: Arrival
    received: float
    loading: bool = False
    """Whether its model was not in memory when it came."""
    live: Live | None = None
    """The model that was there when it was ready, should that have to leave memory for others before its batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a model on trial would have said of a frame that another decided about."""

    outcome: Outcome
    model: ModelBody
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A frame that was scored, without its map, and the picture (3, H, W) that its model saw.

    `on_trial` where that was a canary.
    """

    outcome: Outcome
    pixels: Tensor
    on_trial: bool


class Desk:
    """Decides about frames of every partition through one micro-batcher.

    Args:
        models: who decides where.
        settings: how batches are made.
        executor: the device's threads.
        claims: fetches the pictures that messages only refer to.
        at_once: how many batches are inspected at the same time, each in a thread of the executor.
        on_tried: told, in such a thread, of what models on trial said.
        on_decided: told, in such a thread, of frames whose verdicts are out; it must not take long.
        on_batch: told how many frames a batch has.
    """

    def __init__(
        self,
        models: Finds,
        settings: Worker,
        executor: Executor,
        claims: Claims | None = None,
        *,
        at_once: int = 1,
        on_tried: Callable[[list[Tried]], object] = lambda _: None,
        on_decided: Callable[[list[Decided]], object] = lambda _: None,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._models = models
        self._claims = claims or Claims(Roots(()))
        self._on_tried = on_tried
        self._on_decided = on_decided
        self.batcher: Batcher[_Ticket, Outcome] = Batcher(
            self._process,
            executor,
            batch_max=settings.batch_max,
            wait_s=settings.wait_ms / 1000,
            at_once=at_once,
            on_batch=on_batch,
        )

    def at_once(self, arrival: Arrival) -> Outcome | None:
        """The outcome of a frame that needs no inspection: it is at fault itself, or late already.

        It holds picture and headers only where a dead letter needs them: those of many frames would fill the memory.
        """
        received = time.time()
        if arrival.problem is None and received < deadline_of(arrival, received):
            return None
        if not arrival.unreadable:
            frame, record = replace(arrival.frame, image=b""), replace(arrival.record, value=None, headers=())
            arrival = replace(arrival, frame=frame, record=record)
        return outcome_of(arrival, arrival.problem, received) if arrival.problem else late(arrival, received)

    async def decide(self, arrival: Arrival) -> Outcome:
        """One outcome for one frame, whatever happens."""
        known = self.at_once(arrival)
        if known is not None:
            return known
        received = time.time()
        deadline = deadline_of(arrival, received)
        try:
            loading = self._models.load(arrival.frame.station, arrival.frame.recipe)
            arrival = await self._claims.fetch(arrival, deadline=deadline)
            if arrival.problem:
                return outcome_of(arrival, arrival.problem, received)
            if loading is not None:
                await asyncio.wait([asyncio.wrap_future(loading)], timeout=max(0.0, deadline - time.time()))
            live = self._models.find(arrival.frame.station, arrival.frame.recipe)
            ticket = _Ticket(arrival, received, loading is not None, live)
            return await self.batcher.submit(ticket, deadline=deadline, turn=arrival.frame.station)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("inspection failed", frame_id=arrival.frame.frame_id)
            return failed(arrival, received, Reason.ERROR, f"{type(error).__name__}: {error}")

    def _process(
        self, tickets: Sequence[_Ticket], given_up: Sequence[bool]
    ) -> Generator[Mapping[int, Outcome], None, int]:
        """In a thread of the device's: the frames still in time, model by model, each model's as soon as it is done.

        Models on trial come last, and only where more than half of every frame's time is left.

        Returns:
            How many have a verdict.
        """
        started = time.time()
        undecided: dict[int, Outcome] = {}
        groups: dict[int, _Group] = {}
        for i, ticket in enumerate(tickets):
            frame = ticket.arrival.frame
            live, trial = self._models.find(frame.station, frame.recipe) or ticket.live, None
            left_s = frame.deadline_at.timestamp() - started if frame.deadline_at else float("inf")
            if left_s <= 0:
                undecided[i] = late(ticket.arrival, ticket.received, loading=ticket.loading)
            elif live is None:
                undecided[i] = no_model(ticket.arrival, ticket.received)
            elif given_up[i]:
                undecided[i] = shed(ticket.arrival, ticket.received, left_s, loading=ticket.loading)
            else:
                trial = self._models.trial(frame.station, frame.recipe)
                if canary := trial is not None and trial.decides(frame):
                    live, trial = trial.live, None
                group = groups.setdefault(id(live), _Group(live, trial.live if trial else None, canary))
                group.places.append(i)
                group.tickets.append(ticket)
                group.frames.append(frame)
                group.hurried |= frame.captured_at is not None and left_s < (started - frame.captured_at.timestamp())
        if undecided:
            yield undecided
        tried = [group for group in groups.values() if group.tried and not group.hurried]
        together = inspect_together(
            [(group.live.inspector, group.frames) for group in groups.values()]
            + [(group.tried.inspector, group.frames) for group in tried if group.tried]
        )
        for group, result in zip(groups.values(), together, strict=False):
            group.outcomes = _outcomes(group.live, group.tickets, result, started)
            yield dict(zip(group.places, group.outcomes, strict=True))
            self._on_decided(_decided(group, result))
        for group, result in zip(tried, together, strict=True):
            self._on_tried(_tried(group, result))
        return sum(isinstance(each.answer, Verdict) for group in groups.values() for each in group.outcomes)


@dataclass(slots=True)
class _Group:
    """Frames of a batch that one model decides about, and the model that is tried on them, if there is one."""

    live: Live
    tried: Live | None
    canary: bool
    places: list[int] = field(default_factory=list)
    tickets: list[_Ticket] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    hurried: bool = False
    outcomes: list[Outcome] = field(default_factory=list)


def _decided(group: _Group, result: Inspected | Exception) -> list[Decided]:
    pixels = {} if isinstance(result, Exception) else result.pixels
    return [
        Decided(  # it may wait while the rest of its batch is gone
            outcome=replace(outcome, map=None), pixels=pixels[outcome.answer.frame_id].clone(), on_trial=group.canary
        )
        for outcome in group.outcomes
        if isinstance(outcome.answer, Verdict) and outcome.answer.frame_id in pixels
    ]


def _tried(group: _Group, result: Inspected | Exception) -> list[Tried]:
    if isinstance(result, Exception) or group.tried is None:
        log.warning("a model on trial failed", error=f"{type(result).__name__}: {result}")
        return []
    model = ModelBody(method=group.tried.method, version=group.tried.version)
    said = {verdict.frame_id: verdict for verdict in result.verdicts}
    return [
        Tried(outcome=outcome, model=model, verdict=said[outcome.answer.frame_id])
        for outcome in group.outcomes
        if isinstance(outcome.answer, Verdict) and outcome.answer.frame_id in said
    ]


def _frames_of(tickets: Sequence[_Ticket]) -> list[Frame]:
    return [ticket.arrival.frame for ticket in tickets]


def _outcomes(live: Live, tickets: list[_Ticket], result: Inspected | Exception, started: float) -> list[Outcome]:
    """What a model said of its frames; if the batch failed, each goes alone, so that none falls with another."""
    ids = {ticket.arrival.frame.frame_id for ticket in tickets}
    # The same id twice in a batch is one entry in what comes back: all go in batches of their own.
    if len(tickets) > 1 and (isinstance(result, Exception) or len(ids) < len(tickets)):
        if isinstance(result, Exception):
            log.warning("a batch failed: its frames go one by one", frames=len(tickets), error=str(result))
        return [outcome for ticket in tickets for outcome in _alone(live, ticket, started)]
    if isinstance(result, Exception):
        log.error("inspection failed", frame_id=tickets[0].arrival.frame.frame_id, exc_info=result)
        detail = f"{type(result).__name__}: {result}"
        return [failed(t.arrival, t.received, Reason.ERROR, detail) for t in tickets]
    return [_scored(live, ticket, result, started) for ticket in tickets]


def _alone(live: Live, ticket: _Ticket, started: float) -> list[Outcome]:
    (result,) = inspect_together([(live.inspector, _frames_of([ticket]))])
    return _outcomes(live, [ticket], result, started)


def _scored(live: Live, ticket: _Ticket, inspected: Inspected, started: float) -> Outcome:
    frame_id = ticket.arrival.frame.frame_id
    answers: list[Verdict | Failure] = [*inspected.verdicts, *inspected.failures]
    left_out = Failure(frame_id=frame_id, reason=Reason.ERROR, detail="the inspector left the frame out")
    answer = next((each for each in answers if each.frame_id == frame_id), left_out)
    spent = {stage: seconds * 1000 for stage, seconds in inspected.seconds.items()}
    outcome = outcome_of(ticket.arrival, answer, ticket.received, queue_s=started - ticket.received, **spent)
    if isinstance(answer, Failure):
        unreadable = answer.reason is Reason.BAD_FRAME
        return replace(outcome, arrival=replace(ticket.arrival, unreadable=unreadable))
    return replace(
        outcome,
        model=ModelBody(method=live.method, version=live.version),
        map=inspected.maps.get(frame_id),
        placement=inspected.placements.get(frame_id),
    )
