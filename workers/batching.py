"""The micro-batcher: frames of all stations, one device, one thread.

A batch closes when it is full, when its first frame has waited `wait_s`, or when waiting longer would make its most
urgent frame late, whichever comes first. While the device is busy frames gather, so load makes batches larger, but
never so large that the batch alone would spend more than half the time that its most urgent frame has left.

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

Work = TypeVar("Work")
Done = TypeVar("Done")

_SMOOTHING = 0.2  # share of the newest batch in the running estimates of what a batch and a piece take
SHARE = 0.5  # of the time that the most urgent piece has left, for the batch that it is in


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Work, Done]):
    work: Work
    arrived: float
    deadline: float
    future: "asyncio.Future[Done]"


class Batcher(Generic[Work, Done]):
    """Gathers single pieces of work and hands them to `process` in batches.

    Args:
        process: called in the executor with 1 to `batch_max` pieces; yields answers by the piece's place as they
            come, so that no piece waits for the whole batch. An exception is the answer of those not answered yet.
        executor: where `process` runs; one thread, since one device is behind it.
        batch_max: most pieces in a batch.
        wait_s: longest time that the first piece waits for others.
        clock: seconds of wall time, as deadlines are.
        on_batch: told how many pieces a batch has.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Work]], Iterator[Mapping[int, Done]]],
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
        self._batch_s = 0.0
        self.piece_s = 0.0
        """Running estimate of what a piece takes, in seconds."""

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
            self._on_batch(len(batch))
            started = self._clock()
            await self._answer(batch)
            spent = self._clock() - started
            self._batch_s = _smoothed(self._batch_s, spent)
            self.piece_s = _smoothed(self.piece_s, spent / len(batch))

    async def _gather(self) -> list[_Waiting[Work, Done]]:
        while not self._queues:
            self._arrival.clear()
            await self._arrival.wait()
        while len(self) < self._batch_max:
            self._arrival.clear()
            urgent = min(w.deadline for queue in self._queues.values() for w in queue) - self._batch_s
            first = min(queue[0].arrived for queue in self._queues.values())
            left = min(first + self._wait_s, urgent) - self._clock()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                break
        return self._next()

    def _next(self) -> list[_Waiting[Work, Done]]:
        """Take a batch: the oldest piece of each in turn."""
        batch: list[_Waiting[Work, Done]] = []
        now, room_s = self._clock(), float("inf")
        while self._queues and len(batch) < self._batch_max:
            turn, queue = next(iter(self._queues.items()))
            if queue[0].deadline > now:  # what is late already is answered without the device
                room_s = min(room_s, SHARE * (queue[0].deadline - now))
            if batch and (len(batch) + 1) * self.piece_s > room_s:
                break
            batch.append(queue.popleft())
            self._queues.move_to_end(turn)
            if not queue:
                del self._queues[turn]
        return batch

    async def _answer(self, batch: list[_Waiting[Work, Done]]) -> None:
        loop = asyncio.get_running_loop()

        def tell(answers: Mapping[int, Done]) -> None:
            for place, answer in answers.items():
                if not batch[place].future.done():
                    batch[place].future.set_result(answer)

        def work() -> None:
            for answers in self._process([w.work for w in batch]):
                loop.call_soon_threadsafe(tell, answers)

        failure: Exception = RuntimeError("the batch ended without an answer for this piece")
        try:
            await loop.run_in_executor(self._executor, work)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the answer
            failure = error
        for waiting in batch:
            if not waiting.future.done():
                waiting.future.set_exception(failure)


def _smoothed(before: float, newest: float) -> float:
    return newest if before == 0.0 else (1 - _SMOOTHING) * before + _SMOOTHING * newest
