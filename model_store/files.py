"""Files that are whole or not there, also after a power cut: what every store on a disk writes with."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READ_ONLY = 0o444


def make_folder(folder: Path) -> None:
    """The folder and its parents, each on disk before anything is put into it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    """A new name survives a power cut once its folder was synced; some network disks cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """The data in a temporary file beside `path`, synced and read-only; removed at the end if still there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _READ_ONLY)
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Put the data at `path` in one step; who has the old file open or mapped keeps it."""
    with _written(path, data) as temporary:
        temporary.replace(path)
    _sync(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Put the data at `path` in one step, unless something is there: then it stays, and this is False."""
    if path.exists():
        return False
    with _written(path, data) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            # NFS may lose the reply and repeat the call; two names for our file mean that it did succeed.
            if temporary.stat().st_nlink != 2:
                if error.errno == errno.EEXIST:
                    return False
                raise
    _sync(path.parent)
    return True
