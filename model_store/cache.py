"""Models that this machine has seen, on its own disk: a worker starts from them while the store is away.

FOLDER/objects/VERSION          a model's file
FOLDER/current/STATION/RECIPE   what was current when last asked
"""

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from model_store.codec import verify
from model_store.records import ModelKey, Swept, Version, is_version, short
from pipeline.errors import ArtifactError

_LEFTOVER_AFTER = timedelta(days=1)


class Cache:
    """A folder of one's own on a local disk; what it holds is checked each time it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()

    def find(self, version: Version) -> Path | None:
        """The model's file, if it is here and whole; a damaged one is removed."""
        path = self._object(version)
        try:
            verify(path, version)
        except FileNotFoundError:
            return None
        except ArtifactError:
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(path)  # when it was last used
        return path

    def keep(self, version: Version, chunks: Iterable[bytes]) -> Path:
        """Write a model piece by piece, whole or not at all; a disk that is full or away is an OSError.

        Raises:
            ArtifactError: the pieces are not this version.
        """
        path = self._object(version)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        digest = hashlib.sha256()
        try:
            with part.open("xb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != version:
                raise ArtifactError(f"model {short(version)} is damaged: its content is {digest.hexdigest()[:12]}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def remember(self, key: ModelKey, version: Version | None) -> None:
        """What is current now; a disk that cannot take it is not worth an error."""
        if self.remembered(key) == version:
            return
        path = self._pointer(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
            part.write_text(version or "", encoding="ascii")
            part.replace(path)

    def remembered(self, key: ModelKey) -> Version | None:
        """What was current when last asked; None where nothing ever was."""
        return _read(self._pointer(key))

    def sweep(self, *, unused_since: datetime, dry_run: bool = False) -> list[Swept]:
        """Delete models not read since then, and what processes that died left behind.

        What was current when this machine last asked stays: a worker that has run for months starts from it.
        """
        left_over_by = min(unused_since, datetime.now(UTC) - _LEFTOVER_AFTER)
        kept = {_read(pointer) for pointer in self._folder.glob("current/*/*/*")}
        swept = []
        for path in sorted(self._folder.glob("objects/*")):
            with suppress(FileNotFoundError):
                status = path.stat()
                ours = path.name not in kept if is_version(path.name) else path.suffix == ".tmp"
                too_old_by = unused_since if is_version(path.name) else left_over_by
                if ours and status.st_mtime <= too_old_by.timestamp():
                    if not dry_run:
                        path.unlink()
                    version = Version(path.name.lstrip(".").partition(".")[0])
                    swept.append(Swept(where="cache", version=version, size_bytes=status.st_size))
        return swept

    def _object(self, version: Version) -> Path:
        if not is_version(version):
            raise ArtifactError(f"a version is 64 hexadecimal digits, not {short(version)!r}")
        return self._folder / "objects" / version

    def _pointer(self, key: ModelKey) -> Path:
        return self._folder.joinpath("current", *key.station.split("/"), key.recipe)


def _read(pointer: Path) -> Version | None:
    try:
        text = pointer.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return Version(text) if is_version(text) else None
