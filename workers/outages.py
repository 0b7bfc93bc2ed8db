"""What fails again and again, told when it begins, once a minute while it lasts, and when it is over."""

import time
from collections.abc import Callable

AGAIN_S = 60.0


class Outages:
    """One thing that other things hang on: it is away as long as any of them fails.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failing: dict[str, str] = {}
        self._since: float | None = None
        self._told_at = 0.0

    def fails(self, what: str, error: str) -> None:
        """It failed for this one."""
        self._failing[what] = error

    def works(self, what: str) -> None:
        """It worked for this one."""
        self._failing.pop(what, None)

    def to_tell(self) -> tuple[dict[str, str], float] | None:
        """What fails and for how many seconds, when that is to be told; nothing fails any more where it is over."""
        now = self._clock()
        if not self._failing:
            since, self._since = self._since, None
            return ({}, now - since) if since is not None else None
        if self._since is None:
            self._since = now
        elif now - self._told_at < AGAIN_S:
            return None
        self._told_at = now
        return dict(self._failing), now - self._since
