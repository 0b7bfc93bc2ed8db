"""The models in memory, within a budget: the least recently used make room."""

import hashlib
import time
from dataclasses import dataclass
from typing import TypeAlias

from model_store import Version
from pipeline.data import Frame
from pipeline.inspection import Inspects

Place: TypeAlias = tuple[str, ...]
"""Station and recipe, and what tells a model that is tried from the one in service."""


@dataclass(frozen=True, slots=True)
class Live:
    """A model in service; it never changes, a swap replaces it whole. `size_bytes` of memory are its own."""

    inspector: Inspects
    method: str
    version: Version
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """A model that is tried beside the one in service: it decides a share of the parts, and looks at the rest."""

    live: Live
    canary_share: float

    def decides(self, frame: Frame) -> bool:
        """Whether it decides about this part; the same at every station and for every frame of it."""
        digest = hashlib.sha256((frame.part_id or frame.frame_id).encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64 < self.canary_share


class Shelf:
    """Models by station and recipe. One thread puts, any thread finds; finding is one dictionary look-up.

    Beside each model lies the one that it replaced, for a swap back without a load, as long as there is room.

    Args:
        most_bytes: of all models together. The newest is kept even if it alone is larger.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._live: dict[Place, Live] = {}
        self._replaced: dict[Place, Live] = {}
        self._used: dict[Place, float] = {}

    def peek(self, place: Place) -> Live | None:
        """The model in service here, if it is in memory; not counted as a use."""
        return self._live.get(place)

    def find(self, place: Place) -> Live | None:
        """The model in service here, if it is in memory."""
        live = self._live.get(place)
        if live is not None:
            self._used[place] = time.monotonic()
        return live

    def replaced(self, place: Place) -> Live | None:
        """The model that the one in service replaced, if it is still in memory."""
        return self._replaced.get(place)

    def __contains__(self, place: Place) -> bool:
        return place in self._live

    def __len__(self) -> int:
        return len(self._live) + len(self._replaced)

    @property
    def size_bytes(self) -> int:
        """Of all models in memory."""
        return sum(live.size_bytes for kind in (self._live, self._replaced) for live in kind.values())

    @property
    def full(self) -> bool:
        """Whether another model, as large as the largest, would push one out."""
        largest = max((live.size_bytes for live in self._live.values()), default=0)
        return self.size_bytes + largest > self._most_bytes

    def remove(self, place: Place) -> None:
        """Forget what is here, if there is anything."""
        self._live.pop(place, None)
        self._replaced.pop(place, None)

    def put(self, place: Place, live: Live) -> list[Place]:
        """Put a model in service.

        Returns:
            Where models in service had to go to make room: they are loaded again when asked for.
        """
        before = self._live.get(place)
        self._used[place] = time.monotonic()
        self._live[place] = live
        if before is not None:
            self._replaced[place] = before
        for other in self._by_use():
            if self.size_bytes <= self._most_bytes:
                return []
            self._replaced.pop(other, None)
        gone = []
        for other in self._by_use():
            if self.size_bytes <= self._most_bytes:
                break
            if other != place:
                del self._live[other]
                gone.append(other)
        return gone

    def _by_use(self) -> list[Place]:
        """Least recently used first."""
        return sorted(self._live, key=lambda place: self._used[place])
