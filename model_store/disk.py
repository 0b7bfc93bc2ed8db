"""Models on a disk that several line servers share, without locks and without a server.

Two ideas carry it. A model lies under its own sha256, so a file is either whole or not there, and writing
it twice is harmless. And what is current is not a file that is changed but the highest-numbered promotion:
each is a file of its own, made by `link`, which fails if the number is taken. So the history can only grow,
and of two people who promote at once one gets a PromotionConflict, on NFS as on a local disk. The README
draws the folders.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from model_store.base import Lineage, ModelInfo, ModelKey, Promotion, Version, is_version, short
from model_store.codec import canonical, decode, encode, verify, version_of_bytes
from model_store.files import create, make_folder, replace
from pipeline.data import JSON, Artifact
from pipeline.errors import ArtifactError, ConfigError, ModelNotFound, PromotionConflict, StoreUnavailable

# An unmounted share is an empty folder: only this file tells "no models yet" from "no disk".
MARKER = "goldline-models.v1"
LEFTOVER_AFTER_S = 24 * 3600.0

_MARKER_TEXT = b"Goldline models, layout 1. Nothing here is to be edited; see model_store/README.md.\n"
_NUMBERED = re.compile(r"[0-9]{8}\.json")


class _Entry(msgspec.Struct, frozen=True):
    """A version's file, beside the model: what is known of it without reading it."""

    size_bytes: int
    lineage: dict[str, Any]


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
        data = encode(artifact)
        version = version_of_bytes(data)
        known = {"created_at": _now().isoformat(), **(lineage or {})}
        entry = {"size_bytes": len(data), "lineage": Lineage.from_json(known).to_json()}
        entry_bytes = canonical(entry).encode()
        with self._disk():
            make_folder(self.root)
            create(self.root / MARKER, _MARKER_TEXT)
            self._sweep()
            blob = self._blob(version)
            make_folder(blob.parent)
            if not create(blob, data) and not _intact(blob, version):
                replace(blob, data)
            path = self._entry(key, version)
            make_folder(path.parent)
            create(path, entry_bytes)
        return version

    def get(self, key: ModelKey, version: Version) -> Artifact:
        """The model, memory-mapped, its checksum verified; see `ModelStore.get`."""
        with self._mounted():
            self._require(key, version)
            try:
                return decode(self._blob(version), version)
            except FileNotFoundError as error:
                raise ArtifactError(f"model {short(version)}: {error.filename} is gone") from error

    def current(self, key: ModelKey) -> Version | None:
        """The version of the highest-numbered promotion."""
        with self._mounted():
            numbers = self._numbers(key)
            return self._promotion(key, numbers[-1]).version if numbers else None

    def remembered(self, key: ModelKey) -> Version | None:  # noqa: ARG002 - what is on a disk is not copied to another
        """None: see `ModelStore.remembered`."""
        return None

    def promote(self, key: ModelKey, version: Version, *, expected: Version | None, who: str, why: str = "") -> None:
        """Add the next promotion if `expected` is current; see `ModelStore.promote`."""
        if not who.strip():
            raise ConfigError("a promotion needs a name: who promotes?")
        with self._mounted():
            numbers = self._numbers(key)
            found = self._promotion(key, numbers[-1]).version if numbers else None
            if found != expected:
                raise _conflict(key, found, expected)
            self.get(key, version)  # a damaged candidate never becomes current
            if version == found:
                return
            promotion = Promotion(version=version, previous=found, at=_now(), who=who, why=why)
            path = self._promotion_path(key, numbers[-1] + 1 if numbers else 1)
            make_folder(path.parent)
            if not create(path, _record(promotion)):
                raise _conflict(key, self.current(key), expected)

    def history(self, key: ModelKey) -> list[Promotion]:
        """All promotions, oldest first."""
        with self._mounted():
            return [self._promotion(key, number) for number in self._numbers(key)]

    def versions(self, key: ModelKey) -> list[ModelInfo]:
        """All stored versions, oldest first by lineage."""
        current = self.current(key)
        with self._mounted():
            found = []
            for name in _names(self._folder(key) / "versions"):
                version = Version(name.removesuffix(".json"))
                if is_version(version):
                    size_bytes, lineage = self._read_entry(key, version)
                    found.append(
                        ModelInfo(
                            version=version,
                            size_bytes=size_bytes,
                            lineage=lineage,
                            current=version == current,
                        )
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
                    if any(is_version(name.removesuffix(".json")) for name in _names(path)):
                        found.append(key)
        return sorted(found)

    def _folder(self, key: ModelKey) -> Path:
        return self.root.joinpath("models", *key.station.split("/"), key.recipe)

    def _blob(self, version: Version) -> Path:
        return self.root / "objects" / version[:2] / version

    def _entry(self, key: ModelKey, version: Version) -> Path:
        return self._folder(key) / "versions" / f"{version}.json"

    def _promotion_path(self, key: ModelKey, number: int) -> Path:
        return self._folder(key) / "promotions" / f"{number:08}.json"

    def _numbers(self, key: ModelKey) -> list[int]:
        """Numbers of the promotions there are, in order; temporary files have other names."""
        names = _names(self._folder(key) / "promotions")
        return sorted(int(name[:8]) for name in names if _NUMBERED.fullmatch(name))

    def _promotion(self, key: ModelKey, number: int) -> Promotion:
        path = self._promotion_path(key, number)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Promotion)
        except ValueError as error:
            raise ArtifactError(f"{path} is not a promotion: {error}") from error

    def _read_entry(self, key: ModelKey, version: Version) -> tuple[int, Lineage]:
        path = self._entry(key, version)
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
            return entry.size_bytes, Lineage.from_json(entry.lineage)
        except (ValueError, ArtifactError) as error:
            raise ArtifactError(f"{path} does not describe a model: {error}") from error

    def _require(self, key: ModelKey, version: Version) -> None:
        # A version is only ever used in a path once it is known to be 64 hexadecimal digits.
        if not is_version(version) or not self._entry(key, version).exists():
            raise ModelNotFound(f"{key} has no version {short(version)!r}")

    @contextmanager
    def _mounted(self) -> Iterator[None]:
        """Reading: the store must be there, and the system's errors are ours."""
        with self._disk():
            if not (self.root / MARKER).exists():
                raise StoreUnavailable(f"{self.root} holds no model store, no {MARKER}: is it mounted?")
            yield

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.root
            raise StoreUnavailable(f"model store at {self.root}: {where}: {error.strerror}") from error

    def _sweep(self) -> None:
        """Remove models half written by processes that died, once they are surely dead."""
        for path in self.root.glob("objects/*/.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_AFTER_S:
                    path.unlink()


def _now() -> datetime:
    return datetime.now(UTC)


def _conflict(key: ModelKey, found: Version | None, expected: Version | None) -> PromotionConflict:
    was, wanted = (short(version) if version else "nothing" for version in (found, expected))
    return PromotionConflict(f"{key}: {was} is current, not {wanted}; look at it, then promote again")


def _record(promotion: Promotion) -> bytes:
    try:
        return msgspec.json.encode(promotion)
    except UnicodeEncodeError as error:
        raise ConfigError(f"who and why must be text: {error}") from error


def _intact(blob: Path, version: Version) -> bool:
    try:
        verify(blob, version)
    except ArtifactError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
