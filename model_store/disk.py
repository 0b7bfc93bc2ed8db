"""Models on a disk that several line servers share, without a server.

Two ideas carry it. A model lies under its own sha256, so a file is either whole or not there, and writing
it twice is harmless. And what is current is not a file that is changed but the highest-numbered promotion:
each is a file of its own, made by `link`, which fails if the number is taken. So the history can only grow,
and of two people who promote at once one gets a PromotionConflict, on NFS as on a local disk. Marks are kept
likewise. Only deleting needs a lock: who deletes is alone with the store, while puts, promotions and marks share it.
The README draws the folders.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from model_store.base import marks_conflict, promotion_conflict, read_whole
from model_store.codec import Encoded, decode, verify
from model_store.entries import new_entry, new_line, now, read_entry, read_line
from model_store.files import Log, create, locked, make_folder, mounted, names, on_disk, replace, sync
from model_store.lifecycle import kept_because
from model_store.records import Marking, Marks, ModelInfo, ModelKey, Promotion, Swept, Version, is_version, short
from pipeline.data import JSON, Artifact
from pipeline.errors import ArtifactError, ConfigError, ModelNotFound

# An unmounted share is an empty folder: only this file tells "no models yet" from "no disk".
MARKER = "goldline-models.v1"
LOCK = "lock"
LEFTOVER_AFTER_S = 24 * 3600.0

_WHAT = "model store"
_MARKER_TEXT = b"Goldline models, layout 1. Nothing here is to be edited; see model_store/README.md.\n"
_TOUCH_AFTER = timedelta(days=1)


class DiskStore:
    """A ModelStore in a folder. Safe to use from threads and processes, on one machine or many.

    Args:
        root: the folder; the first `put` makes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __repr__(self) -> str:
        return f"DiskStore({str(self.root)!r})"

    def put(self, key: ModelKey, artifact: Artifact, *, lineage: Mapping[str, JSON] | None = None) -> Version:
        """Store a model, or mend it where the stored copy is damaged; see `ModelStore.put`."""
        model = Encoded(artifact)
        entry = new_entry(model.size_bytes, lineage)
        with self._disk():
            make_folder(self.root)
            create(self.root / MARKER, [_MARKER_TEXT])
            with self._lock(alone=False):
                self._remove_leftovers()
                blob = self._blob(model.version)
                make_folder(blob.parent)
                if not create(blob, model.pieces()):
                    if not _intact(blob, model.version):
                        replace(blob, model.pieces())
                    with suppress(PermissionError):
                        os.utime(blob)  # when it was last put
                path = self._entry(key, model.version)
                make_folder(path.parent)
                create(path, [entry])
                self._touch(key, model.version)
        return model.version

    def get(self, key: ModelKey, version: Version) -> Artifact:
        """The model, memory-mapped, its checksum verified; see `ModelStore.get`."""
        with self._mounted():
            self._require(key, version)
            self._touch(key, version)
            return read_whole(lambda: decode(self._blob(version), version), lambda: self._require(key, version))

    def current(self, key: ModelKey) -> Version | None:
        """The version of the highest-numbered promotion."""
        with self._mounted():
            numbers = self._promotions(key).numbers()
            return self._promotion(key, numbers[-1]).version if numbers else None

    def remembered(self, key: ModelKey) -> Version | None:  # noqa: ARG002 - what is on a disk is not copied to another
        """None: see `ModelStore.remembered`."""
        return None

    def promote(self, key: ModelKey, version: Version, *, expected: Version | None, who: str, why: str = "") -> None:
        """Add the next promotion if `expected` is current; see `ModelStore.promote`."""
        with self._mounted(), self._lock(alone=False):
            log = self._promotions(key)
            numbers = log.numbers()
            found = self._promotion(key, numbers[-1]).version if numbers else None
            if found != expected:
                raise promotion_conflict(key, found, expected)
            self.get(key, version)  # a damaged candidate never becomes current
            line = new_line(Promotion(version=version, previous=found, at=now(), who=who, why=why))
            if version != found and not log.add(numbers[-1] + 1 if numbers else 1, line):
                raise promotion_conflict(key, self.current(key), expected)

    def history(self, key: ModelKey) -> list[Promotion]:
        """All promotions, oldest first."""
        with self._mounted():
            return [self._promotion(key, number) for number in self._promotions(key).numbers()]

    def marks(self, key: ModelKey) -> Marks:
        """Those of the highest-numbered line."""
        with self._mounted():
            numbers = self._marks(key).numbers()
            return self._marking(key, numbers[-1]).marks if numbers else Marks()

    def mark(self, key: ModelKey, marks: Marks, *, expected: Marks, who: str, why: str = "") -> None:
        """Add the next line if the marks are as `expected`; see `ModelStore.mark`."""
        line = new_line(Marking(marks=marks, at=now(), who=who, why=why))
        with self._mounted(), self._lock(alone=False):
            log = self._marks(key)
            numbers = log.numbers()
            found = self._marking(key, numbers[-1]).marks if numbers else Marks()
            if found != expected:
                raise marks_conflict(key)
            for version in sorted(marks.named - found.named):
                self._require(key, version)
            if marks != found and not log.add(numbers[-1] + 1 if numbers else 1, line):
                raise marks_conflict(key)

    def markings(self, key: ModelKey) -> list[Marking]:
        """All changes of the marks, oldest first."""
        with self._mounted():
            return [self._marking(key, number) for number in self._marks(key).numbers()]

    def versions(self, key: ModelKey) -> list[ModelInfo]:
        """All stored versions, oldest first by lineage."""
        current = self.current(key)
        found = []
        with self._mounted():
            for version in self._stored(key):
                path = self._entry(key, version)
                with suppress(FileNotFoundError):  # deleted since the folder was read
                    used_at = self._used_at(key, version)
                    is_current = version == current
                    found.append(
                        read_entry(path.read_bytes(), version, current=is_current, used_at=used_at, where=str(path))
                    )
        return sorted(found, key=lambda info: (info.lineage.created_at, info.version))

    def keys(self) -> list[ModelKey]:
        """Every key that has a version; folders that are none of ours are passed over."""
        found = []
        with self._mounted():
            for path in self.root.glob("models/*/*/*/versions"):
                line, place, recipe = path.parts[-4:-1]
                with suppress(ConfigError):
                    key = ModelKey(f"{line}/{place}", recipe)
                    if self._stored(key):
                        found.append(key)
        return sorted(found)

    def delete(self, key: ModelKey, version: Version, *, unused_since: datetime) -> str:
        """Remove a version's entry, alone with the store; see `ModelStore.delete`."""
        with self._mounted(), self._lock(alone=True):
            self._require(key, version)
            kept = kept_because(
                version,
                used_at=self._used_at(key, version),
                history=self.history(key),
                marks=self.marks(key),
                unused_since=unused_since,
            )
            if not kept:
                entry = self._entry(key, version)
                entry.unlink()
                sync(entry.parent)  # before the model goes: no power cut may bring back an entry without one
                self._used(key, version).unlink(missing_ok=True)
        return kept

    def sweep(self, *, unused_since: datetime, dry_run: bool = False) -> list[Swept]:
        """Delete models that no key names and that nobody put since then; see `ModelStore.sweep`."""
        swept = []
        with self._mounted(), self._lock(alone=True):
            named = {version for key in self.keys() for version in self._stored(key)}
            for path in sorted(self.root.glob("objects/*/*")):
                if is_version(path.name) and path.name not in named:
                    status = path.stat()
                    if status.st_mtime <= unused_since.timestamp():
                        if not dry_run:
                            path.unlink()
                        swept.append(Swept(where="store", version=Version(path.name), size_bytes=status.st_size))
        return swept

    def _folder(self, key: ModelKey) -> Path:
        return self.root.joinpath("models", *key.station.split("/"), key.recipe)

    def _blob(self, version: Version) -> Path:
        return self.root / "objects" / version[:2] / version

    def _entry(self, key: ModelKey, version: Version) -> Path:
        return self._folder(key) / "versions" / f"{version}.json"

    def _used(self, key: ModelKey, version: Version) -> Path:
        return self._folder(key) / "versions" / f"{version}.used"

    def _promotions(self, key: ModelKey) -> Log:
        return Log(self._folder(key) / "promotions")

    def _promotion(self, key: ModelKey, number: int) -> Promotion:
        path = self._promotions(key).path(number)
        return read_line(path.read_bytes(), Promotion, str(path))

    def _marks(self, key: ModelKey) -> Log:
        return Log(self._folder(key) / "marks")

    def _marking(self, key: ModelKey, number: int) -> Marking:
        path = self._marks(key).path(number)
        return read_line(path.read_bytes(), Marking, str(path))

    def _stored(self, key: ModelKey) -> list[Version]:
        found = (name.removesuffix(".json") for name in names(self._folder(key) / "versions") if name.endswith(".json"))
        return [Version(name) for name in found if is_version(name)]

    def _used_at(self, key: ModelKey, version: Version) -> datetime:
        """When a version was put, or used since: the later time of its entry and of the empty file beside it."""
        seconds = self._entry(key, version).stat().st_mtime
        with suppress(FileNotFoundError):
            seconds = max(seconds, self._used(key, version).stat().st_mtime)
        return datetime.fromtimestamp(seconds, UTC)

    def _touch(self, key: ModelKey, version: Version) -> None:
        """Record that a version is used, once a day; whoever may not write here is not recorded."""
        with suppress(OSError):
            if now() - self._used_at(key, version) > _TOUCH_AFTER:
                self._used(key, version).unlink(missing_ok=True)  # it may be another user's
                self._used(key, version).touch()

    def _require(self, key: ModelKey, version: Version) -> None:
        # A version is only ever used in a path once it is known to be 64 hexadecimal digits.
        if not is_version(version) or not self._entry(key, version).exists():
            raise ModelNotFound(f"{key} has no version {short(version)!r}")

    @contextmanager
    def _lock(self, *, alone: bool) -> Iterator[None]:
        with locked(self.root / LOCK, alone=alone):
            yield

    def _mounted(self) -> AbstractContextManager[None]:
        return mounted(self.root, _WHAT, MARKER)

    def _disk(self) -> AbstractContextManager[None]:
        return on_disk(self.root, _WHAT)

    def _remove_leftovers(self) -> None:
        """Remove models half written by processes that died, once they are surely dead."""
        for path in self.root.glob("objects/*/.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_AFTER_S:
                    path.unlink()


def _intact(blob: Path, version: Version) -> bool:
    try:
        verify(blob, version)
    except ArtifactError:
        return False
    return True
