"""Files on a shared disk: each whole or absent, made in one step; logs of such; a lock that dies with its holder."""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreUnavailable

Piece = bytes | memoryview

_READ_ONLY = 0o444
_NUMBERED = re.compile(r"[0-9]{8}\.json")


class Log:
    """A folder of numbered files that only grows: a line is added by `link`, which fails if its number is taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, number: int) -> Path:
        """Where a line lies."""
        return self._folder / f"{number:08}.json"

    def numbers(self) -> list[int]:
        """Numbers of the lines there are, in order; temporary files have other names."""
        return sorted(int(name[:8]) for name in names(self._folder) if _NUMBERED.fullmatch(name))

    def add(self, number: int, line: bytes) -> bool:
        """Add a line under a number; False if it is taken."""
        make_folder(self._folder)
        return create(self.path(number), [line])


def names(folder: Path) -> list[str]:
    """What is in a folder; nothing where there is none."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - a Path for each name of thousands is dear
    except FileNotFoundError:
        return []


def make_folder(folder: Path) -> None:
    """The folder and its parents, each on disk before anything is put into it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(folder: Path) -> None:
    """A change of names survives a power cut once their folder was synced; some network disks cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def replace(path: Path, pieces: Iterable[Piece]) -> None:
    """Put the data at `path` in one step; who has the old file open or mapped keeps it."""
    with _written(path, pieces) as temporary:
        temporary.replace(path)
    sync(path.parent)


def create(path: Path, pieces: Iterable[Piece]) -> bool:
    """Put the data at `path` in one step, unless something is there: then it stays, and this is False."""
    if path.exists():
        return False
    with _written(path, pieces) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            # NFS may lose the reply and repeat the call; two names for our file mean that it did succeed.
            if temporary.stat().st_nlink != 2:
                if error.errno == errno.EEXIST:
                    return False
                raise
    sync(path.parent)
    return True


@contextmanager
def on_disk(root: Path, what: str) -> Iterator[None]:
    """The system's errors as ours, for `what` lies at a root."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{what} at {root}: {error.filename or root}: {error.strerror}") from error


@contextmanager
def mounted(root: Path, what: str, marker: str) -> Iterator[None]:
    """Likewise, and the root must have its marker: an unmounted share is an empty folder."""
    with on_disk(root, what):
        if not (root / marker).exists():
            raise StoreUnavailable(f"{root} holds no {what}, no {marker}: is it mounted?")
        yield


@contextmanager
def locked(path: Path, *, alone: bool) -> Iterator[None]:
    """Hold the lock of a file: together with others, or alone. The system frees it when its holder dies.

    A disk that has no locks is an OSError for who would be alone; the others go on without.
    """
    handle = os.open(path, os.O_CREAT | (os.O_RDWR if alone else os.O_RDONLY), 0o664)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        except OSError as error:
            if alone or error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
                raise
        yield
    finally:
        os.close(handle)


@contextmanager
def _written(path: Path, pieces: Iterable[Piece]) -> Iterator[Path]:
    """The data in a temporary file beside `path`, synced and read-only; removed at the end if still there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), _READ_ONLY)
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
