"""Pictures in Redis, each a key of its own with a time to live: `PREFIX:frame:NAME`.

Redis should have memory for all that comes within that time, and be another instance or database than the models':
these must not be evicted when pictures fill it.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from model_store.frames import Reference, describe, verified
from model_store.redis_client import RedisAddress
from pipeline.errors import BlobError, StoreUnavailable


class RedisFrames:
    """A FrameStore in Redis.

    Args:
        server: and its database and prefix, to which references are held.
        keep_s: the time to live, in seconds.
    """

    def __init__(self, server: RedisAddress, *, keep_s: int) -> None:
        host = f"[{server.host}]" if ":" in server.host else server.host
        self._base = f"{server.scheme}://{host}:{server.port}/{server.database}/"
        self._keys = f"{server.prefix}:frame:"
        self._inside = re.compile(re.escape(self._base) + f"({re.escape(self._keys)}[A-Za-z0-9._-]{{1,200}})")
        # Once more at once, as an idle connection may be gone; beyond that whoever waits for the picture asks again.
        self._redis = server.connect(timeout_s=4.0, retries=1)
        self._keep_s = keep_s

    def create(self) -> bool:
        """Nothing is to be made, but the server must answer; see `FrameStore.create`."""
        self.check()
        return False

    def check(self) -> None:
        """Have the server answer; see `FrameStore.check`."""
        with self._server():
            self._redis.ping()

    def put(self, data: bytes) -> Reference:
        """Set a key of its own; see `FrameStore.put`."""
        key = self._keys + uuid.uuid4().hex
        with self._server():
            self._redis.set(key, data, ex=self._keep_s)
        return describe(self._base + key, data)

    def holds(self, url: str) -> bool:
        """Whether the URL is this server's, database's and prefix's, spelt out: scheme, host, port, database, key."""
        return self._inside.fullmatch(url) is not None

    def get(self, reference: Reference) -> bytes:
        """Read no more of the key than the reference says; see `FrameStore.get`."""
        inside = self._inside.fullmatch(reference.url)
        if inside is None:
            raise BlobError("the picture's reference points outside of this Redis's pictures")
        with self._server():
            data = self._redis.getrange(inside[1], 0, reference.size_bytes)  # one byte more than the picture's
        if not data:
            raise BlobError("the picture referred to is missing: expired, evicted, or never written")
        return verified(data, reference)

    @contextmanager
    def _server(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            if str(error).startswith("WRONGTYPE"):
                raise BlobError("the picture referred to is another kind of key") from error
            # The client's words hold host and port, never the password.
            raise StoreUnavailable(f"pictures in Redis: {error}") from error
