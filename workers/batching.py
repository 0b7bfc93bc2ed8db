"""The micro-batcher: frames of all stations, one device, a thread for each batch that is computed at the same time.

A batch closes when it is full, when its first frame has waited `wait_s`, or when waiting longer would make its most
urgent frame late, whichever comes first. While the device is busy frames gather, so load makes batches larger, as far
as their frames have the time: see `batch_size`.

Stations take turns: a batch holds the oldest frame of each before it holds a second of any. A flood at one of them
fills what the others leave, and no more than their next frames can wait for.
"""

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.batch_size import Candidate, Matters, Pace, back_s, fair, size_of

Work = TypeVar("Work")
Done = TypeVar("Done")


_FLOOD = 2  # times as many waiting as of the next station: what is beyond that is a flood
_LATELY = 0.9  # of what its frames had before counts as what a station's frames have
_FORGOTTEN_S = 60.0  # of a station without a frame for so long none is expected
_TOGETHER_S = 0.02  # an answer waits no longer for others of its batch


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Work, Done]):
    work: Work
    arrived: float
    due: float
    future: "asyncio.Future[Done]"


@dataclass(frozen=True, slots=True)
class _Batch(Generic[Work, Done]):
    """Pieces to process together until `until`, about; those due before that are given up, all but `size`."""

    pieces: list[_Waiting[Work, Done]]
    size: int
    until: float


class Batcher(Generic[Work, Done]):
    """Gathers single pieces of work and hands them to `process` in batches.

    Args:
        process: called in the executor with pieces, whether each is given up since there is no time for it, and yields
            answers by the piece's place as they come, so that no piece waits for the whole batch. An exception is the
            answer of those not answered yet. It returns how many took the device's time.
        executor: where `process` runs; it has a thread for each of `at_once`.
        batch_max: most pieces to process together.
        wait_s: longest time that the first piece waits for others.
        at_once: how many batches are processed at the same time; those that are free share what waits.
        clock: seconds of wall time, as deadlines are.
        on_batch: told how many are processed together.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Work], Sequence[bool]], Generator[Mapping[int, Done], None, int]],
        executor: Executor,
        *,
        batch_max: int,
        wait_s: float,
        at_once: int = 1,
        clock: Callable[[], float] = time.time,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._on_batch = on_batch
        self._process = process
        self._executor = executor
        self._batch_max = batch_max
        self._wait_s = wait_s
        self._at_once = at_once
        self._gathering = asyncio.Lock()
        self._idle = at_once
        self._clock = clock
        self._queues: OrderedDict[Hashable, deque[_Waiting[Work, Done]]] = OrderedDict()  # who is next, first
        self._lately: dict[Hashable, tuple[float, float]] = {}  # when whose piece came last, and what it had in all
        self._arrival = asyncio.Event()
        self.pace = Pace()

    async def submit(self, work: Work, *, deadline: float, turn: Hashable = None) -> Done:
        """The answer for one piece of work.

        Args:
            work: the piece.
            deadline: wall time in seconds after which the answer is of little use.
            turn: whose piece it is: those who submit take turns.
        """
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        now = self._clock()
        waiting = _Waiting(work, now, deadline - back_s(deadline - now), future)
        had = self._lately[turn][1] if turn in self._lately else 0.0
        self._lately[turn] = now, max(deadline - now, _LATELY * had)
        self._queues.setdefault(turn, deque()).append(waiting)
        self._arrival.set()
        return await future

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as served:
            for _ in range(self._at_once):
                served.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            async with self._gathering:
                batch = await self._gather()
            if batch.size:
                self._on_batch(batch.size)
            started = self._clock()
            self._idle -= 1
            try:
                took = await self._answer(batch)
            finally:
                self._idle += 1
            if took:
                self.pace.learn(took, max(0.0, self._clock() - started))
            elif not batch.size and any(waiting.due > started for waiting in batch.pieces):
                self.pace.doubt()

    async def _gather(self) -> _Batch[Work, Done]:
        while not self._queues:
            self._arrival.clear()
            await self._arrival.wait()
        while len(self) < self._batch_max:
            self._arrival.clear()
            urgent = min(w.due for queue in self._queues.values() for w in queue) - self.pace(len(self))
            first = min(queue[0].arrived for queue in self._queues.values())
            left = min(first + self._wait_s, urgent) - self._clock()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                break
        return self._next()

    def _next(self) -> _Batch[Work, Done]:
        """Take a batch: the oldest piece of each in turn, and those given up on the way."""
        now, alone_s = self._clock(), self.pace(1)
        most = min(self._batch_max, math.ceil(len(self) / self._idle))
        drawn: list[tuple[Hashable, float]] = []
        hopeful: list[tuple[Hashable, float]] = []
        for turn, waiting in self._in_turn():
            drawn.append((turn, waiting.due - now))
            if waiting.due - now >= alone_s:
                hopeful.append(drawn[-1])
                if len(hopeful) == most:
                    break
        longest = max(self._queues, key=lambda turn: len(self._queues[turn]))
        candidates = _candidates(hopeful, longest, self._usual(longest))
        size = fair(size_of(candidates, self.pace), candidates, self.pace, self._has_in_all(longest))
        takes_s = self.pace(max(size, 1))
        batch: _Batch[Work, Done] = _Batch([], size, now + takes_s)
        surviving = 0
        for turn, left_s in drawn:
            if surviving == size > 0 and left_s >= takes_s:
                break
            batch.pieces.append(self._queues[turn].popleft())
            self._queues.move_to_end(turn)
            if not self._queues[turn]:
                del self._queues[turn]
            surviving += left_s >= takes_s
        return batch

    def _usual(self, longest: Hashable) -> int:
        """How many may wait of the one with the most before it is a flood."""
        return _FLOOD * max((len(queue) for turn, queue in self._queues.items() if turn != longest), default=1)

    def _has_in_all(self, longest: Hashable) -> float:
        """What the next piece of any other has when it comes, at least; infinite where none is expected."""
        now = self._clock()
        lately = [had for turn, (at, had) in self._lately.items() if turn != longest and now - at < _FORGOTTEN_S]
        return min(lately, default=math.inf)

    def _in_turn(self) -> Iterator[tuple[Hashable, _Waiting[Work, Done]]]:
        """Whose piece, and the piece."""
        for rank in range(max(map(len, self._queues.values()))):
            yield from ((turn, queue[rank]) for turn, queue in self._queues.items() if rank < len(queue))

    async def _answer(self, batch: _Batch[Work, Done]) -> int:
        """Have it processed, answer everybody, and say how many took the device's time."""
        loop = asyncio.get_running_loop()
        answers = _Answers([waiting.future for waiting in batch.pieces])

        def work() -> int:
            given_up = [waiting.due < batch.until for waiting in batch.pieces]
            processing = self._process([waiting.work for waiting in batch.pieces], given_up)
            while True:
                try:
                    loop.call_soon_threadsafe(answers.take, next(processing))
                except StopIteration as ended:
                    return ended.value or 0

        took = 0
        failure: Exception = RuntimeError("the batch ended without an answer for this piece")
        try:
            took = await loop.run_in_executor(self._executor, work)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the answer
            failure = error
        answers.give()
        for waiting in batch.pieces:
            if not waiting.future.done():
                waiting.future.set_exception(failure)
        return took


class _Answers(Generic[Done]):
    """A batch's answers on their way: each alone would become a message of its own, which costs more than a frame."""

    def __init__(self, futures: Sequence["asyncio.Future[Done]"]) -> None:
        self._futures = futures
        self._left = len(futures)
        self._ready: dict[int, Done] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, answers: Mapping[int, Done]) -> None:
        """Give these soon, together with others; at once where they are the last."""
        self._ready.update(answers)
        self._left -= len(answers)
        if self._left <= 0:
            self.give()
        elif self._ready and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TOGETHER_S, self.give)

    def give(self) -> None:
        """Give what is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for place, answer in self._ready.items():
            if place < len(self._futures) and not self._futures[place].done():
                self._futures[place].set_result(answer)
        self._ready.clear()


def _candidates(hopeful: Sequence[tuple[Hashable, float]], longest: Hashable, usual: int) -> list[Candidate]:
    """Those that have the time which they take alone, in turn: whose, and how much; beyond the usual is a flood."""
    ranks: Counter[Hashable] = Counter(turn for turn, _ in hopeful)
    floods = ranks[longest] > usual
    urgent = floods and min(hopeful, key=lambda each: each[1])[0] == longest
    ranks.clear()
    found = []
    for turn, left_s in hopeful:
        ranks[turn] += 1
        matters = Matters.MUCH
        if turn == longest and (urgent or ranks[turn] > usual):
            matters = Matters.SOME if urgent else Matters.LITTLE
        found.append(Candidate(left_s, matters))
    return found
