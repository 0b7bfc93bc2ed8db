"""Work that may hang, as on a network disk that is away: given up after a time."""

import threading
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StoreUnavailable

T = TypeVar("T")


def at_most(seconds: float, work: Callable[[], T], *, what: str) -> T:
    """What the work returns or raises; a thread that hangs is left to itself and does not keep the process.

    Raises:
        StoreUnavailable: it takes longer.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise StoreUnavailable(f"{what} has not answered within {seconds:g} s")
    return done[0]
