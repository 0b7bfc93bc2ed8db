"""Leases: of many processes on many machines one does a piece of work, and the others learn who.

On a shared disk it is a lock of a file, which the system frees when its holder dies; in Redis a key with a time to
live, which its holder renews. It saves work and confusion. It is no proof: whatever it guards must do no harm when two
do it at once, as a promotion does none.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from model_store.disk import MARKER, DiskStore
from model_store.entries import now
from model_store.files import make_folder, mounted
from model_store.urls import open_store
from pipeline.errors import ConfigError, LeaseTaken, StoreUnavailable

_NAME = re.compile(r"[a-z0-9-]+(/[a-z0-9][a-z0-9._-]*)*")
_HOLDER_MAX = 200


class Holder(Struct, frozen=True, kw_only=True):
    """Who has a lease.

    Attributes:
        who: a person or a job, and where: `ana@server-3, process 4711`.
        since: by that machine's clock.
        token: differs for each time that a lease is taken.
    """

    who: str
    since: datetime
    token: str = ""


class Lease(Protocol):
    """A lease while it is held."""

    def require(self) -> None:
        """Before a step that should be done once: whether it still is.

        Raises:
            LeaseTaken: it was lost, as after a long outage.
        """
        ...


class Leases(Protocol):
    """All the leases of a store."""

    def hold(self, name: str, *, who: str) -> AbstractContextManager[Lease]:
        """Have a lease until the end of the block, or of the process.

        Args:
            name: of the work: `refit/line-1/top/default`.
            who: does it, for those who come later.

        Raises:
            LeaseTaken: another has it; the message says who.
            StoreUnavailable: the store does not answer.
        """
        ...


def open_leases(url: str) -> Leases:
    """The leases of the store at a URL; see `open_store`.

    Raises:
        ConfigError: a URL that names no store we have.
    """
    if url.startswith(("redis://", "rediss://")):
        from model_store import leases_redis, redis_client  # noqa: PLC0415 - loaded only where it is used

        server = redis_client.parse(url, options=frozenset({"cache"}))
        return leases_redis.RedisLeases(server.connect(), server.prefix)
    store = open_store(url)
    if not isinstance(store, DiskStore):
        raise ConfigError(f"the store at {url!r} has no leases")
    return DiskLeases(store.root)


class DiskLeases:
    """Leases as locks of files, ROOT/leases/NAME.lock; all machines must mount the disk with locks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def hold(self, name: str, *, who: str) -> Iterator[Lease]:
        """Lock the file; see `Leases.hold`. What is written in it is for people."""
        check(name)
        with mounted(self._root, "model store", MARKER):
            path = self._root.joinpath("leases", *f"{name}.lock".split("/"))
            make_folder(path.parent)
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o664)
        try:
            self._lock(handle, name)
            os.ftruncate(handle, 0)
            os.pwrite(handle, msgspec.json.encode(Holder(who=who[:_HOLDER_MAX], since=now())), 0)
            yield _Locked()
            os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def _lock(self, handle: int, name: str) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken(name, os.pread(handle, 4096, 0)) from error
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
                raise
            raise StoreUnavailable(f"{self._root} is mounted without locks: mount it with them") from error


class _Locked:
    """The system keeps a lock as long as its holder lives."""

    def require(self) -> None:
        """It is held."""


def check(name: str) -> None:
    """Refuse what could not name a file.

    Raises:
        ConfigError: it could not.
    """
    if not _NAME.fullmatch(name) or len(name) > 300:
        raise ConfigError(f"a lease is named in a-z, 0-9, '-', '.', '_' and '/', not {name[:60]!r}")


def taken(name: str, text: bytes | None) -> LeaseTaken:
    """What somebody is told who comes too late."""
    try:
        holder = msgspec.json.decode(text or b"", type=Holder)
    except msgspec.MsgspecError:
        return LeaseTaken(f"{name}: another process is at it")
    return LeaseTaken(f"{name}: {holder.who} is at it since {holder.since:%Y-%m-%d %H:%M:%S} UTC")
