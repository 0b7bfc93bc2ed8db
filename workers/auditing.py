"""Parts for a person to look at, drawn from what a station saw, whatever became of them.

Drawn are the n parts whose ids have the lowest hashes: of any parts each is as likely as another, no score or verdict
has a say, and whoever draws again from the same frames draws the same. The hash is not the one that chooses a canary's
parts (`shelf.py`).
"""

import hashlib
import heapq
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from model_store import ModelKey
from model_store.frames import Roots, open_roots
from pipeline import selection
from pipeline.errors import BlobError, ConfigError, StoreUnavailable
from pipeline.selection import Marked, Selection
from pipeline.settings import Settings
from workers import clients, topics, wire
from workers.wire import Arrival

_QUIET_S = 5.0
_SALT = b"goldline audit\0"
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"II*\0": ".tiff",
    b"MM\0*": ".tiff",
    b"RIFF": ".webp",
}


def draw(arrivals: Iterable[Arrival], n: int) -> tuple[list[Arrival], int]:
    """The n parts with the lowest hashes, each by its first frame, in the hashes' order.

    Held in memory are n frames, pictures included.

    Returns:
        These, and how many parts there were.
    """
    seen: set[bytes] = set()
    drawn: list[tuple[int, Arrival]] = []  # a heap, the highest hash on top
    for arrival in arrivals:
        digest = hashlib.sha256(_SALT + _part(arrival).encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        (heapq.heappush if len(drawn) < n else heapq.heappushpop)(drawn, (-int.from_bytes(digest), arrival))
    return [arrival for _, arrival in sorted(drawn, key=lambda each: -each[0])], len(seen)


def frames(settings: Settings, key: ModelKey) -> Iterator[Arrival]:
    """Every frame of a station and recipe that the topic still has, oldest first; what is no frame is left out.

    Raises:
        ConfigError: the station is not in the settings, there is no such topic, or no broker answers.
    """
    if key.station not in settings.stations:
        raise ConfigError(f"no station {key.station} in the settings (there: {', '.join(settings.stations) or 'none'})")
    client = clients.tail(
        settings.kafka,
        topics.name(settings.kafka.prefix, "frames"),
        from_start=True,
        partition=settings.partitions()[key.station],
        fetch_max_bytes=2 * topics.frame_max_bytes(settings),
    )
    ends = client.end_offsets(client.assignment())
    heard = time.monotonic()
    try:
        while any(client.position(tp) < end for tp, end in ends.items()):
            for record in clients.records(client):
                heard = time.monotonic()
                arrival = wire.read_frame(record, settings)
                if arrival.problem is None and ModelKey(arrival.frame.station, arrival.frame.recipe) == key:
                    yield arrival
            if time.monotonic() - heard > _QUIET_S:
                raise ConfigError("the broker stopped answering in the middle of the frames; try again")
    finally:
        client.close()


def sample(settings: Settings, key: ModelKey, n: int, folder: Path, *, who: str) -> Selection:
    """Draw n parts and write their pictures, and the list of them, into a new folder.

    Raises:
        ConfigError: as `frames`; or the folder has something in it; or there is no frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: pictures of two draws must not mix")
    drawn, of = draw(frames(settings, key), n)
    if not drawn:
        raise ConfigError(
            f"the topic has no frame of {key}: it keeps frames for a while only, draw while the line runs"
        )
    roots = open_roots(settings.frames.roots, keep_s=settings.frames.keep_s)
    made = Selection(
        chosen_by="part-id",
        station=key.station,
        recipe=key.recipe,
        of=of,
        drawn_at=wire.rfc3339(wire.now()),
        drawn_by=who,
        parts=tuple(_marked(arrival, i, folder, roots) for i, arrival in enumerate(drawn, start=1)),
    )
    selection.write(folder, made)
    return made


def _marked(arrival: Arrival, number: int, folder: Path, roots: Roots) -> Marked:
    """The part, its picture written; named by its number, as ids are anybody's words."""
    frame = arrival.frame
    image = _image(arrival, roots)
    suffix = next((suffix for begins, suffix in _SUFFIXES.items() if image.startswith(begins)), None)
    picture = f"{number:04}{suffix}" if suffix else None
    if picture:
        (folder / picture).write_bytes(image)
    captured = wire.rfc3339(frame.captured_at) if frame.captured_at else ""
    return Marked(part_id=_part(arrival), frame_id=frame.frame_id, picture=picture, captured_at=captured)


def _image(arrival: Arrival, roots: Roots) -> bytes:
    """The frame's picture; nothing where its reference leads to none."""
    if arrival.reference is None:
        return arrival.frame.image
    try:
        return roots.find(arrival.reference.url).get(arrival.reference)
    except (BlobError, StoreUnavailable):
        return b""


def _part(arrival: Arrival) -> str:
    return arrival.frame.part_id or arrival.frame.frame_id
