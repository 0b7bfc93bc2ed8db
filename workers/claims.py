"""Pictures that travel by reference: fetched beside the event loop, by their frames' deadlines."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from model_store.frames import Reference, Roots
from pipeline.data import Failure, Reason
from pipeline.errors import BlobError, StoreUnavailable
from workers import logs
from workers.wire import Arrival

log = logs.get(__name__)

_THREADS = 4
_BACKOFF_S = (0.02, 0.05, 0.1, 0.25)


class Claims:
    """Fetches pictures. Each root has threads of its own: one that hangs holds up no frame of another's.

    Args:
        roots: where references may point.
        on_silence: told of each time that a root does not answer.
    """

    def __init__(self, roots: Roots, *, on_silence: Callable[[], object] = lambda: None) -> None:
        self._roots = roots
        self._on_silence = on_silence
        self._threads = [ThreadPoolExecutor(_THREADS, thread_name_prefix="frames") for _ in roots.stores]

    async def fetch(self, arrival: Arrival, *, deadline: float) -> Arrival:
        """The arrival with its picture, or with the problem that it has none.

        Args:
            arrival: returned as it is where the picture came along.
            deadline: wall time in seconds; until then a store that does not answer is asked again.
        """
        reference = arrival.reference
        if reference is None:
            return arrival
        try:
            image = await self._read(reference, deadline)
        except BlobError as error:
            return replace(arrival, problem=_failure(arrival, Reason.BAD_FRAME, str(error)), unreadable=True)
        except StoreUnavailable as error:
            return replace(arrival, problem=_failure(arrival, Reason.LATE, f"not fetched by its deadline: {error}"))
        return replace(arrival, frame=replace(arrival.frame, image=image))

    def close(self) -> None:
        """Fetch no more; a read that hangs is left to itself."""
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _read(self, reference: Reference, deadline: float) -> bytes:
        store = self._roots.find(reference.url)
        threads = self._threads[self._roots.stores.index(store)]
        loop = asyncio.get_running_loop()
        told = StoreUnavailable("the store of pictures has not answered")
        attempt = 0
        try:
            async with asyncio.timeout(deadline - time.time()):
                while True:
                    try:
                        return await loop.run_in_executor(threads, store.get, reference)
                    except StoreUnavailable as error:
                        told = error
                        self._on_silence()
                    if attempt == 0:
                        log.warning("pictures cannot be fetched: asking until the deadline", error=str(told))
                    await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                    attempt += 1
        except TimeoutError as error:
            raise told from error


def _failure(arrival: Arrival, reason: Reason, detail: str) -> Failure:
    return Failure(frame_id=arrival.frame.frame_id, reason=reason, detail=detail)
