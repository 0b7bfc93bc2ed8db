"""Pictures too large for a message: written to a shared place first, referred to in the message (a claim check).

A reference is believed in nothing. It is compared, as text, with the places that settings permit (`Roots`): what is not
plainly inside one of them is refused before anything is opened. The size that it names bounds what is read, and the
bytes are the picture only if their sha256 is the one it names.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from model_store.urls import folder_of
from pipeline.errors import BlobError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where a picture lies, and what it has to be.

    Attributes:
        url: inside one of the roots.
        sha256: of its bytes, 64 hexadecimal digits in lower case.
        size_bytes: 1 or more; whoever reads it from a message bounds it first.
    """

    url: str
    sha256: str
    size_bytes: int


class FrameStore(Protocol):
    """One root. Safe to use from threads and processes, on one machine or many."""

    def create(self) -> bool:
        """Make the root where there is none; whoever sets a line up does, never a camera: its disk may be away.

        Returns:
            Whether it was made; there already, or without need of it, it was not.

        Raises:
            StoreUnavailable: it does not answer, or is full.
            ConfigError: it can never be written to from here.
        """
        ...

    def check(self) -> None:
        """Nothing, where the root is there and answers.

        Raises:
            StoreUnavailable: it is not, or does not.
        """
        ...

    def put(self, data: bytes) -> Reference:
        """Keep a picture, for as long as the settings say; once this returns, every reader of the root finds it.

        Raises:
            StoreUnavailable: the store does not answer or is full; nothing is referred to.
            ConfigError: it can never be written to from here.
        """
        ...

    def holds(self, url: str) -> bool:
        """Whether a reference's URL points into this root; nothing is looked up."""
        ...

    def get(self, reference: Reference) -> bytes:
        """The picture, whole: of the size and sha256 that the reference names.

        Raises:
            BlobError: it is missing, altered or not permitted.
            StoreUnavailable: the store does not answer.
        """
        ...


class Roots:
    """Every place where a reference may point; new pictures go to the first."""

    def __init__(self, stores: Sequence[FrameStore]) -> None:
        self.stores = tuple(stores)

    def put(self, data: bytes) -> Reference:
        """Keep a picture in the first root; see `FrameStore.put`."""
        if not self.stores:
            raise ConfigError('no place for large pictures: name one, as in [frames] roots = ["file:///srv/frames"]')
        return self.stores[0].put(data)

    def find(self, url: str) -> FrameStore:
        """The root that a reference points into.

        Raises:
            BlobError: none.
        """
        for store in self.stores:
            if store.holds(url):
                return store
        raise BlobError("the picture's reference points outside of what [frames] roots permits")


def open_roots(urls: Sequence[str], *, keep_s: int) -> Roots:
    """The roots that settings name; nothing is created or connected to until it is needed.

    Args:
        urls: each `file:///folder`, or `redis://USER@HOST:PORT/DATABASE` as for models (`redis_client.parse`).
        keep_s: how long a picture is kept, in seconds.

    Raises:
        ConfigError: a URL that names no such place.
    """
    return Roots([_open(url, keep_s) for url in urls])


def describe(url: str, data: bytes) -> Reference:
    """The reference to a picture that lies at `url`."""
    return Reference(url=url, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def verified(data: bytes, reference: Reference) -> bytes:
    """The data, if it is what the reference names.

    Raises:
        BlobError: it is something else.
    """
    found = describe(reference.url, data)
    if found.size_bytes != reference.size_bytes:
        raise BlobError(f"the picture referred to is not of the {reference.size_bytes} bytes that its message says")
    if found.sha256 != reference.sha256:
        raise BlobError(f"the picture referred to was altered: its sha256 begins with {found.sha256[:12]}")
    return data


def _open(url: str, keep_s: int) -> FrameStore:
    scheme = url.partition("://")[0]
    if scheme in {"redis", "rediss"}:
        from model_store import redis_client  # noqa: PLC0415 - a store is loaded only where it is used
        from model_store.frames_redis import RedisFrames  # noqa: PLC0415

        return RedisFrames(redis_client.parse(url), keep_s=keep_s)
    from model_store.frames_disk import DiskFrames  # noqa: PLC0415

    return DiskFrames(folder_of(url, "[frames] roots (or redis://HOST:PORT/DATABASE)"), keep_s=keep_s)
