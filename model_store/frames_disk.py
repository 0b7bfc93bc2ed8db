"""Pictures in a folder that cameras and line servers share, each for a while.

ROOT/goldline-frames.v1         marks a root, made once (`create`): an unmounted share is an empty folder
ROOT/STAMP/NAME                 a picture; STAMP is the writer's time, to a sixtieth of what is kept
ROOT/STAMP.expired/             on its way out, a few pictures with each that comes

Pictures that others put somewhere in the root are read like ours, and never cleared away.
"""

import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from model_store.files import create, make_folder, replace
from model_store.frames import Reference, describe, verified
from pipeline.errors import BlobError, ConfigError, StoreUnavailable

MARKER = "goldline-frames.v1"

_MARKER_TEXT = b"Pictures of Goldline's frames. They are cleared away; see model_store/README.md.\n"
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"  # so no `..`, no hidden or temporary file, no escape of a URL
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}")
_EXPIRED = ".expired"
_CLEARED_AT_ONCE = 8
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
# What stays wrong with a path however often it is tried; EACCES is one file's here, the root is open by then.
_REFUSED = {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EINVAL}
_NEVER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}  # no folder to write to


class DiskFrames:
    """A FrameStore in a folder.

    Args:
        folder: absolute; `create` makes it, no `put` does.
        keep_s: how long a picture is kept, in seconds.
    """

    def __init__(self, folder: Path, *, keep_s: int) -> None:
        self._folder = folder
        self._keep_s = keep_s
        self._inside = re.compile(re.escape(folder.as_uri()) + rf"((?:/{_NAME}){{1,20}})")

    def create(self) -> bool:
        """Make the folder and its marker; see `FrameStore.create`."""
        with self._writing():
            make_folder(self._folder)
            return create(self._folder / MARKER, [_MARKER_TEXT])

    def check(self) -> None:
        """Look for the marker; see `FrameStore.check`."""
        try:
            (self._folder / MARKER).stat()
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"no place for pictures at {self._folder}, no {MARKER}: is it mounted? One that is new is made once, "
                "with: goldline frames create"
            ) from error

    def put(self, data: bytes) -> Reference:
        """Write a picture under a name of its own, and clear away some that are too old; see `FrameStore.put`."""
        step_s = max(1, self._keep_s // 60)
        stamp = datetime.fromtimestamp(time.time() // step_s * step_s, UTC).strftime("%Y%m%dT%H%M%S")
        path = self._folder / stamp / uuid.uuid4().hex
        with self._writing():
            self.check()
            make_folder(path.parent)
            replace(path, [data])
            self._clear(path.stat().st_mtime)
        return describe(path.as_uri(), data)

    def holds(self, url: str) -> bool:
        """Whether the URL is the root's own, followed by plain names."""
        return self._inside.fullmatch(url) is not None

    def get(self, reference: Reference) -> bytes:
        """Read a regular file below the root, through no symbolic link; see `FrameStore.get`."""
        inside = self._inside.fullmatch(reference.url)
        if inside is None:
            raise BlobError(f"the picture's reference points outside of {self._folder}")
        with self._opened(inside[1].split("/")[1:]) as file:
            if os.fstat(file).st_size != reference.size_bytes:
                raise BlobError(f"the picture referred to is not of {reference.size_bytes} bytes, as its message says")
            with open(file, "rb", closefd=False) as whole:
                data = whole.read(reference.size_bytes + 1)  # it may grow while it is read
        return verified(data, reference)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The system's errors as ours."""
        try:
            yield
        except OSError as error:
            told = f"cannot write pictures to {self._folder}: {error.strerror}"
            if error.errno in _NEVER:
                raise ConfigError(f"{told}; see [frames] roots") from error
            raise StoreUnavailable(told) from error

    @contextmanager
    def _opened(self, names: list[str]) -> Iterator[int]:
        """A descriptor of the regular file; the system's errors are ours, also while it is read."""
        handles: list[int] = []
        try:
            handles.append(os.open(self._folder, _FOLDER))
            try:
                for name in names[:-1]:
                    handles.append(os.open(name, _FOLDER | _NO_LINK, dir_fd=handles[-1]))
                # Looked at before it is opened, as opening a device does something; and after, as it may be swapped.
                _require_file(os.stat(names[-1], dir_fd=handles[-1], follow_symlinks=False))
                # Without O_NONBLOCK, opening a FIFO would wait for its writer.
                handles.append(os.open(names[-1], os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=handles[-1]))
                _require_file(os.fstat(handles[-1]))
            except OSError as error:
                if error.errno in _REFUSED:
                    raise BlobError(f"the picture referred to is not permitted: {error.strerror}") from error
                if error.errno == errno.ENOENT and _is_there(MARKER, handles[0]):
                    raise BlobError("the picture referred to is missing: expired, or never written") from error
                raise
            yield handles[-1]
        except OSError as error:
            raise StoreUnavailable(f"pictures at {self._folder}: {error.strerror}") from error
        finally:
            for handle in handles:
                os.close(handle)

    def _clear(self, now: float) -> None:
        """A few old pictures go with each new one: no put waits for many, and more go than come.

        Args:
            now: by the disk's clock, as the folders' times are: a camera's own may be wrong.
        """
        for name in _names(self._folder):
            folder = self._folder / name
            with suppress(OSError):  # whoever else clears away may be faster; there is a next time
                if folder.suffix == _EXPIRED and _STAMP.fullmatch(folder.stem):
                    _thin(folder)
                    return
                if _STAMP.fullmatch(name) and now - folder.lstat().st_mtime > self._keep_s:
                    folder.rename(folder.with_name(name + _EXPIRED))


def _thin(folder: Path) -> None:
    """Delete a few of a folder's files, and it with the last; what a symbolic link points to is left alone."""
    handle = os.open(folder, _FOLDER | _NO_LINK)
    try:
        names = _names(handle)
        for name in names[:_CLEARED_AT_ONCE]:
            os.unlink(name, dir_fd=handle)
    finally:
        os.close(handle)
    if len(names) <= _CLEARED_AT_ONCE:
        folder.rmdir()


def _names(folder: Path | int) -> list[str]:
    with os.scandir(folder) as found:
        return [entry.name for entry in found]


def _require_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise BlobError("the picture referred to is not a regular file")


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
