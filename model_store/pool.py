"""Recently accepted frames, candidates for the next refit, on a disk that several workers share without a server.

ROOT/goldline-pool.v1                          marks a pool; missing means not mounted
ROOT/frames/STATION/RECIPE/BUCKET/NAME.frame   a frame: one line of JSON (`Entry`), then the picture's bytes
ROOT/frames/.../NAME.verified                  what was said of it, where somebody found its part good
ROOT/defects/XX/DIGEST.json                    the report of a defective part: none of its frames comes in any more
ROOT/removals/00000001.json                    log of what was removed, by whom and why

A frame's file is whole or absent, and its name says all that `reservoir.Sample` chooses by, so that workers agree on
what is too much without talking to each other. A report of a defect is written before the part's frames are looked for,
and looked for after a frame was written: whichever comes first, the frame does not stay. Names come from digests alone.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from model_store.entries import now
from model_store.files import create, make_folder, mounted, names, on_disk
from model_store.pool_records import Answer, Candidate, Entry, Feedback, Pooled, Quality, Removal, RemovedFrame
from model_store.pool_reports import Reports
from model_store.records import ModelKey
from model_store.reservoir import Place, Sample, bucket_of, digest, is_bucket
from model_store.urls import folder_of
from pipeline.data import Decision
from pipeline.errors import BlobError, ConfigError
from pipeline.settings import Pool

MARKER = "goldline-pool.v1"
PART_MAX = 4  # a part that stands still under a camera is one part

_WHAT = "pool"
_MARKER_TEXT = b"Frames that Goldline may learn from. Nothing here is to be edited; see model_store/README.md.\n"
_RESCAN_S = 10.0
_AHEAD = timedelta(days=1)  # clocks differ; a frame from further in the future is from a wrong one
_ENTRY_MAX = 8192

_entries = msgspec.json.Decoder(Entry)


def open_pool(settings: Pool) -> "DiskPool":
    """The pool that settings name; nothing is created until `DiskPool.create`.

    Raises:
        ConfigError: they name none.
    """
    if settings.url is None:
        raise ConfigError('there is no pool: name its folder, as in [pool] url = "file:///srv/goldline/pool"')
    return DiskPool(folder_of(settings.url, "[pool] url"), settings)


class DiskPool:
    """A pool in a folder. Safe to use from threads and processes, on one machine or many; one thread of each admits.

    Args:
        root: the folder; absolute.
        settings: the rule of admission, and how much is kept.
        quality: what a picture must be like, where the caller measured it.

    Raises:
        StoreUnavailable: by every method: the disk is full or away.
    """

    def __init__(self, root: Path, settings: Pool, *, quality: Quality | None = None) -> None:
        self.root = root
        self._settings = settings
        self._quality = quality or Quality()
        self._reports = Reports(root)
        self._seen: dict[ModelKey, tuple[float, Sample]] = {}

    def create(self) -> None:
        """Make the pool where there is none. Only whoever admits does: an unmounted disk is no pool to report to."""
        with self._disk():
            make_folder(self.root)
            create(self.root / MARKER, [_MARKER_TEXT])

    def wants(self, candidate: Candidate) -> bool:
        """The rule of admission: clearly accepted, sharp and bright enough where that was measured; nothing is read."""
        return (
            candidate.decision is Decision.PASS
            and candidate.p_value >= self._settings.p_min
            and self._quality.allows(candidate)
            and 0 < len(candidate.image) <= self._settings.max_bytes
        )

    def admit(self, candidate: Candidate, *, at: datetime | None = None) -> Answer:
        """Copy a frame into the pool, if it is fit and belongs to the sample; what is too much then leaves.

        Args:
            candidate: the frame.
            at: the time; now unless a test says otherwise.
        """
        at, key = at or now(), candidate.key
        oldest = at - timedelta(days=self._settings.keep_days)
        if not self.wants(candidate) or not oldest < candidate.captured_at < at + _AHEAD:
            return Answer.UNFIT
        place, entry = candidate.place, candidate.entry(at)
        with self._mounted():
            if self._sample(key, _RESCAN_S).refuses(place):
                return Answer.LEFT_OUT
            if self._reports.find(entry.part_id, [key]):
                return Answer.FLAGGED
            self._expire(key, bucket_of(oldest))
            if self._sample(key).refuses(place):
                return Answer.LEFT_OUT
            path = self._path(key, place)
            make_folder(path.parent)
            create(path, [msgspec.json.encode(entry), b"\n", candidate.image])
            gone = self._sample(key).excess()
            for each in gone:
                self._remove(key, each)
            if self._reports.find(entry.part_id, [key]):
                self._remove(key, place)
                return Answer.FLAGGED
        return Answer.LEFT_OUT if place in gone else Answer.ADMITTED

    def seen(self, key: ModelKey) -> int:
        """How many frames of a key were there when `admit` last looked."""
        return len(self._seen[key][1]) if key in self._seen else 0

    def report(self, said: Sequence[Feedback], *, at: datetime | None = None) -> list[int]:
        """Apply what people or later inspections found. Again, or in another order, it comes to the same.

        A defect removes the part's frames and keeps those out that are offered later; a good marks those there are as
        verified. Where both were said the part is defective.

        Returns:
            How many frames each removed or verified.
        """
        at = at or now()
        counts = [0] * len(said)
        with self._mounted():
            defects = [feedback for feedback in said if feedback.verdict == "defect"]
            new = {id(feedback) for feedback in defects if self._reports.add(feedback)}
            parts = {digest(feedback.part_id) for feedback in said}
            there = [(key, place) for key in self.keys() for place in self._places(key) if place.part in parts]
            for i, feedback in sorted(enumerate(said), key=lambda pair: pair[1].verdict == "defect"):
                part = digest(feedback.part_id)
                own = [(key, place) for key, place in there if place.part == part and feedback.concerns(key)]
                counts[i] = len(own)
                if feedback.verdict == "good":
                    for key, place in own:
                        create(self._path(key, place).with_suffix(".verified"), [msgspec.json.encode(feedback)])
                    continue
                if own or id(feedback) in new:
                    self._reports.log(Removal(feedback=feedback, at=at, frames=tuple(self._described(own))))
                for key, place in own:
                    self._remove(key, place)
                there = [each for each in there if each not in own]
        self._seen.clear()
        return counts

    def frames(self, *, key: ModelKey | None = None, part_id: str | None = None) -> list[Pooled]:
        """All that is there, or that of one key or part, oldest captured first; what does not read is passed over."""
        found = []
        with self._mounted():
            for each in [key] if key else self.keys():
                verified = {name for name in self._names(each) if name.endswith(".verified")}
                for place in self._places(each):
                    if part_id is not None and place.part != digest(part_id):
                        continue
                    entry = self._entry(each, place)
                    if entry:
                        mark = Path(place.name).with_suffix(".verified").name
                        found.append(Pooled(key=each, place=place, entry=entry, verified=mark in verified))
        return sorted(found, key=lambda pooled: (pooled.entry.captured_at, pooled.place))

    def usable(self, key: ModelKey, *, at: datetime | None = None) -> list[Pooled]:
        """What a refit may learn from: out of quarantine, not older than what is kept, of no defective part."""
        at = at or now()
        oldest = at - timedelta(days=self._settings.keep_days)
        found = []
        for pooled in self.frames(key=key):
            entry = pooled.entry
            if (
                entry.captured_at > oldest
                and not self.quarantined(entry, at=at)
                and not self.reports(entry.part_id, key)
            ):
                found.append(pooled)
        return found

    def quarantined(self, entry: Entry, *, at: datetime | None = None) -> bool:
        """Whether late feedback may still come, so that nothing is learnt from it yet."""
        return (at or now()) - entry.admitted_at < timedelta(hours=self._settings.quarantine_h)

    def read(self, pooled: Pooled) -> bytes:
        """The encoded picture.

        Raises:
            BlobError: it is gone, or altered.
        """
        with self._mounted():
            try:
                data = self._path(pooled.key, pooled.place).read_bytes()
            except FileNotFoundError as error:
                raise BlobError(f"frame {pooled.entry.frame_id} is in the pool no more") from error
        image = data.partition(b"\n")[2]
        if hashlib.sha256(image).hexdigest() != pooled.entry.sha256:
            raise BlobError(f"frame {pooled.entry.frame_id} was altered in the pool: {pooled.place.name}")
        return image

    def reports(self, part_id: str, key: ModelKey | None = None) -> list[Feedback]:
        """Reports of a part as defective, that concern one key or any there is."""
        with self._mounted():
            return self._reports.find(part_id, [key] if key else self.keys())

    def defects(self) -> int:
        """How many reports of defective parts there are."""
        with self._mounted():
            return self._reports.count()

    def removals(self) -> list[Removal]:
        """The log of what was removed, oldest first."""
        with self._mounted():
            return self._reports.removals()

    def keys(self) -> list[ModelKey]:
        """Every station and recipe that has had frames; folders that are none of ours are passed over."""
        found = []
        with self._mounted():
            for path in self.root.glob("frames/*/*/*"):
                with suppress(ConfigError):
                    found.append(ModelKey("/".join(path.parts[-3:-1]), path.name))
        return sorted(found)

    def _sample(self, key: ModelKey, max_age_s: float = 0.0) -> Sample:
        """What is there, as last seen if that is not too long ago."""
        seen_at, sample = self._seen.get(key, (float("-inf"), None))
        if sample is None or time.monotonic() - seen_at >= max_age_s:
            rule = self._settings
            sample = Sample(self._places(key), keep=rule.keep, max_bytes=rule.max_bytes, part_max=PART_MAX)
            self._seen[key] = time.monotonic(), sample
        return sample

    def _places(self, key: ModelKey) -> list[Place]:
        folder = self._folder(key)
        found = (Place.read(bucket, name) for bucket in names(folder) for name in names(folder / bucket))
        return [place for place in found if place]

    def _names(self, key: ModelKey) -> Iterator[str]:
        folder = self._folder(key)
        return (name for bucket in names(folder) for name in names(folder / bucket))

    def _expire(self, key: ModelKey, oldest: str) -> None:
        """Remove the buckets before the oldest that is kept, with all that is in them."""
        folder = self._folder(key)
        for bucket in names(folder):
            if is_bucket(bucket) and bucket < oldest:
                for name in names(folder / bucket):
                    (folder / bucket / name).unlink(missing_ok=True)
                with suppress(OSError):  # another worker was faster
                    (folder / bucket).rmdir()

    def _entry(self, key: ModelKey, place: Place) -> Entry | None:
        try:
            with self._path(key, place).open("rb") as file:
                return _entries.decode(file.readline(_ENTRY_MAX))
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _described(self, frames: list[tuple[ModelKey, Place]]) -> Iterator[RemovedFrame]:
        for key, place in frames:
            entry = self._entry(key, place)
            if entry:
                yield RemovedFrame(frame_id=entry.frame_id, station=key.station, recipe=key.recipe, sha256=entry.sha256)

    def _remove(self, key: ModelKey, place: Place) -> None:
        path = self._path(key, place)
        path.unlink(missing_ok=True)
        path.with_suffix(".verified").unlink(missing_ok=True)

    def _folder(self, key: ModelKey) -> Path:
        return self.root.joinpath("frames", *key.station.split("/"), key.recipe)

    def _path(self, key: ModelKey, place: Place) -> Path:
        return self._folder(key) / place.bucket / place.name

    def _mounted(self) -> AbstractContextManager[None]:
        return mounted(self.root, _WHAT, MARKER)

    def _disk(self) -> AbstractContextManager[None]:
        return on_disk(self.root, _WHAT)
