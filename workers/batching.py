"""The micro-batcher: frames of all stations, one device, one thread.

A batch closes when it is full, when its first frame has waited `wait_s`, or when waiting longer would make its most
urgent frame late, whichever comes first. While the device is busy frames gather, so load makes batches larger, as far
as their frames have the time: see `batch_size`.

Stations take turns: a batch holds the oldest frame of each before it holds a second of any. A flood at one of them
fills what the others leave.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.batch_size import BACK_S, Candidate, Pace, size_of

Work = TypeVar("Work")
Done = TypeVar("Done")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Work, Done]):
    work: Work
    arrived: float
    deadline: float
    future: "asyncio.Future[Done]"


@dataclass(frozen=True, slots=True)
class _Batch(Generic[Work, Done]):
    """Pieces to process together; those with less time left than it takes are given up, all but `size`."""

    pieces: list[_Waiting[Work, Done]]
    size: int
    takes_s: float


class Batcher(Generic[Work, Done]):
    """Gathers single pieces of work and hands them to `process` in batches.

    Args:
        process: called in the executor with pieces, and how many seconds it is thought to take; yields answers by the
            piece's place as they come, so that no piece waits for the whole batch. An exception is the answer of those
            not answered yet. At most `batch_max` pieces have the time; it gives up those that have not.
        executor: where `process` runs; one thread, since one device is behind it.
        batch_max: most pieces to process together.
        wait_s: longest time that the first piece waits for others.
        clock: seconds of wall time, as deadlines are.
        on_batch: told how many pieces a batch has.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Work], float], Iterator[Mapping[int, Done]]],
        executor: Executor,
        *,
        batch_max: int,
        wait_s: float,
        clock: Callable[[], float] = time.time,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._on_batch = on_batch
        self._process = process
        self._executor = executor
        self._batch_max = batch_max
        self._wait_s = wait_s
        self._clock = clock
        self._queues: OrderedDict[Hashable, deque[_Waiting[Work, Done]]] = OrderedDict()  # who is next, first
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
        waiting = _Waiting(work, self._clock(), deadline, future)
        self._queues.setdefault(turn, deque()).append(waiting)
        self._arrival.set()
        return await future

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            batch = await self._gather()
            self._on_batch(len(batch.pieces))
            started = self._clock()
            await self._answer(batch)
            if batch.size:
                self.pace.learn(batch.size, self._clock() - started)
            elif any(waiting.deadline > started for waiting in batch.pieces):
                self.pace.doubt()

    async def _gather(self) -> _Batch[Work, Done]:
        while not self._queues:
            self._arrival.clear()
            await self._arrival.wait()
        while len(self) < self._batch_max:
            self._arrival.clear()
            urgent = min(w.deadline for queue in self._queues.values() for w in queue) - BACK_S - self.pace(len(self))
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
        now, drawn, hopeful = self._clock(), [], []
        for turn, rank, waiting in self._in_turn():
            drawn.append((turn, rank, waiting.deadline - BACK_S - now))
            if drawn[-1][2] >= self.pace(1):
                hopeful.append(drawn[-1])
                if len(hopeful) == self._batch_max:
                    break
        most_urgent = min(hopeful, key=lambda each: each[2])[0] if hopeful else None
        candidates = [Candidate(left_s, rank == 0 or turn == most_urgent) for turn, rank, left_s in hopeful]
        size = size_of(candidates, self.pace)
        batch: _Batch[Work, Done] = _Batch([], size, self.pace(max(size, 1)))
        surviving = 0
        for turn, _, left_s in drawn:
            if surviving == size > 0 and left_s >= self.pace(1):
                break
            batch.pieces.append(self._queues[turn].popleft())
            self._queues.move_to_end(turn)
            if not self._queues[turn]:
                del self._queues[turn]
            surviving += left_s >= batch.takes_s
        return batch

    def _in_turn(self) -> Iterator[tuple[Hashable, int, _Waiting[Work, Done]]]:
        """Whose piece, how many of theirs go before it, and the piece."""
        for rank in range(max(map(len, self._queues.values()))):
            yield from ((turn, rank, queue[rank]) for turn, queue in self._queues.items() if rank < len(queue))

    async def _answer(self, batch: _Batch[Work, Done]) -> None:
        loop = asyncio.get_running_loop()

        def tell(answers: Mapping[int, Done]) -> None:
            for place, answer in answers.items():
                if not batch.pieces[place].future.done():
                    batch.pieces[place].future.set_result(answer)

        def work() -> None:
            for answers in self._process([w.work for w in batch.pieces], batch.takes_s + BACK_S):
                loop.call_soon_threadsafe(tell, answers)

        failure: Exception = RuntimeError("the batch ended without an answer for this piece")
        try:
            await loop.run_in_executor(self._executor, work)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the answer
            failure = error
        for waiting in batch.pieces:
            if not waiting.future.done():
                waiting.future.set_exception(failure)
