"""Which pooled frames stay: an even sample over time, the same for everybody who looks at the same folder.

Time is cut into buckets, and of each bucket those frames stay whose digests are smallest: a digest is as good as a
draw by lot, so that this is a uniform sample (a reservoir) that needs no memory, no lock and no order of arrival. When
there are too many, the fullest bucket gives up its largest digest; so a busy shift never crowds out a quiet one.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

BUCKET_H = 4  # every shift of 8 hours has a whole bucket of its own, whenever it begins

_BUCKET = re.compile(r"[0-9]{8}T[0-9]{2}")
_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-([0-9]{1,12})\.frame")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a frame lies in the pool of its station and recipe, and all that the choice needs to know of it.

    Attributes:
        frame: digest of its id; a smaller one stays longer.
        bucket: the time it was captured in, UTC, as in 20250615T12.
        part: digest of its part's id.
        size_bytes: of the picture.
    """

    frame: str
    bucket: str
    part: str
    size_bytes: int

    @classmethod
    def read(cls, bucket: str, name: str) -> Self | None:
        """The place that a file's name tells of; None for what is none of ours."""
        found = _NAME.fullmatch(name)
        return cls(found[1], bucket, found[2], int(found[3])) if found and is_bucket(bucket) else None

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.frame}-{self.part}-{self.size_bytes}.frame"


class Sample:
    """The frames of one station and recipe, and which of them are too many.

    Args:
        places: all there are.
        keep: most frames.
        max_bytes: most bytes of pictures; 1 or more.
        part_max: most frames of one part.
    """

    def __init__(self, places: Iterable[Place], *, keep: int, max_bytes: int, part_max: int) -> None:
        self._keep = keep
        self._max_bytes = max_bytes
        self._part_max = part_max
        self._frames: set[str] = set()
        self._parts: dict[str, list[Place]] = {}
        self._buckets: dict[str, list[Place]] = {}
        self._bytes = 0
        self._gone: list[Place] = []
        for place in sorted(places):
            of_part = self._parts.setdefault(place.part, [])
            if place.frame in self._frames or len(of_part) >= part_max:
                self._gone.append(place)
                continue
            of_part.append(place)
            self._frames.add(place.frame)
            self._buckets.setdefault(place.bucket, []).append(place)
            self._bytes += place.size_bytes

    def __len__(self) -> int:
        return len(self._frames)

    def refuses(self, place: Place) -> bool:
        """Whether a frame would be among those that are too many, or is there already."""
        if place.frame in self._frames:
            return True
        of_part = self._parts.get(place.part, [])
        if len(of_part) >= self._part_max:
            return place.frame > of_part[-1].frame  # else it takes the place of that one
        full = len(self._frames) >= self._keep or self._bytes + place.size_bytes > self._max_bytes
        bucket = self._buckets.get(place.bucket, [])
        fullest = max(map(len, self._buckets.values()), default=0)
        return full and len(bucket) >= fullest and (not bucket or place.frame > bucket[-1].frame)

    def excess(self) -> list[Place]:
        """What has to go: repeats of a frame, what is too much of a part, then the fullest buckets' largest digests."""
        gone = list(self._gone)
        left = {bucket: list(places) for bucket, places in self._buckets.items()}
        count, size_bytes = len(self._frames), self._bytes
        while count > self._keep or size_bytes > self._max_bytes:
            fullest = min(left, key=lambda bucket: (-len(left[bucket]), bucket))  # of equal ones the oldest
            place = left[fullest].pop()
            gone.append(place)
            count, size_bytes = count - 1, size_bytes - place.size_bytes
        return gone


def digest(text: str) -> str:
    """32 hexadecimal digits that stand for an id from a message, as which it may name a file."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def bucket_of(at: datetime) -> str:
    """The bucket that a moment lies in."""
    at = at.astimezone(UTC)
    return f"{at - timedelta(hours=at.hour % BUCKET_H):%Y%m%dT%H}"


def is_bucket(name: str) -> bool:
    """Whether this is a bucket's name."""
    return _BUCKET.fullmatch(name) is not None
