"""The micro-batcher: frames of all partitions, one device, one thread.

A batch closes when it is full, when its first frame has waited `wait_s`, or when waiting longer would make its most
urgent frame late, whichever comes first. While the device is busy frames gather, so load makes batches larger.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")
Done = TypeVar("Done")

_SMOOTHING = 0.2  # share of the newest batch in the running estimate of a batch's time


@dataclass(slots=True)
class _Waiting(Generic[Work, Done]):
    work: Work
    key: Hashable
    arrived: float
    deadline: float
    future: "asyncio.Future[Done]"


class Batcher(Generic[Work, Done]):
    """Gathers single pieces of work and hands them to `process` in batches.

    Args:
        process: called in the executor with 1 to `batch_max` pieces; returns one answer for each, in order. An
            exception is the answer of the whole batch.
        executor: where `process` runs; one thread, since one device is behind it.
        batch_max: most pieces in a batch.
        wait_s: longest time that the first piece waits for others.
        clock: seconds of wall time, as deadlines are.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Work]], Sequence[Done]],
        executor: Executor,
        *,
        batch_max: int,
        wait_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._process = process
        self._executor = executor
        self._batch_max = batch_max
        self._wait_s = wait_s
        self._clock = clock
        self._queue: deque[_Waiting[Work, Done]] = deque()
        self._arrival = asyncio.Event()
        self._batch_s = 0.0

    async def submit(self, work: Work, *, deadline: float, key: Hashable = None) -> Done:
        """The answer for one piece of work.

        Args:
            work: the piece.
            deadline: wall time in seconds after which the answer is of little use.
            key: a batch holds pieces of one key only, the oldest piece's: answers of one model must not wait for
                another's.
        """
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(work, key, self._clock(), deadline, future))
        self._arrival.set()
        return await future

    def __len__(self) -> int:
        return len(self._queue)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            batch = await self._gather()
            started = self._clock()
            await self._answer(batch)
            spent = self._clock() - started
            self._batch_s = spent if self._batch_s == 0.0 else (1 - _SMOOTHING) * self._batch_s + _SMOOTHING * spent

    async def _gather(self) -> list[_Waiting[Work, Done]]:
        while not self._queue:
            self._arrival.clear()
            await self._arrival.wait()
        while len(self._next()) < self._batch_max:
            self._arrival.clear()
            urgent = min(w.deadline for w in self._queue) - self._batch_s
            left = min(self._queue[0].arrived + self._wait_s, urgent) - self._clock()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                break
        batch = self._next()
        taken = {id(waiting) for waiting in batch}
        self._queue = deque(waiting for waiting in self._queue if id(waiting) not in taken)
        return batch

    def _next(self) -> list[_Waiting[Work, Done]]:
        """What the next batch would hold now."""
        key = self._queue[0].key
        return [waiting for waiting in self._queue if waiting.key == key][: self._batch_max]

    async def _answer(self, batch: list[_Waiting[Work, Done]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._executor, self._process, [w.work for w in batch])
            pairs = list(zip(batch, answers, strict=True))
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the answer
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting, answer in pairs:
            if not waiting.future.done():
                waiting.future.set_result(answer)
